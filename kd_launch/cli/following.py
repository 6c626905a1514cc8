"""The commands about runs: submit, status, logs, cancel. Each asks one module and shows the answer."""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_launch.cli.app import (
    AnyRun,
    ClusterFile,
    Config,
    Json,
    LatestRun,
    NewRunDir,
    OneRole,
    OneRun,
    RunRoot,
    Set,
    app,
    current_folder,
    say,
    source_of,
)
from kd_launch.cli.before import findings, script_of
from kd_launch.errors import CheckError, RunFailedError, UnknownNameError

if TYPE_CHECKING:
    from kd_launch.preparation import Source
    from kd_launch.run_dir import RunDir
    from kd_launch.runs.status import Facts, Status
    from kd_launch.submission import Submitted


@app.command()
def submit(
    config: Config,
    settings: Set = None,
    cluster: ClusterFile = None,
    run_dir: NewRunDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the script, as render does.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end; exit code 5 if it fails.")] = False,
    as_json: Json = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Leave out what check looks at.")] = False,
) -> None:
    """Check, plan and prepare, make the run's folder, and start teacher and student."""
    source = source_of(config, settings, cluster)
    if dry_run:
        print(script_of(source, run_dir), end="")
        return
    submitted = _submit(source, run_dir, no_check)
    run = _run_dir(submitted.run_dir)
    if as_json:
        print(submitted.model_dump_json(indent=2), flush=True)
    else:
        print(f"{run.name} runs on this machine as process {submitted.job_id}. To follow it:")
        print(f"  kd-launch status {_spoken(run)} --watch\n  kd-launch logs {_spoken(run)} --follow")
        print(run.path, flush=True)
    if wait:
        _wait(run)


def _submit(source: "Source", run_dir: Path | None, no_check: bool) -> "Submitted":
    from kd_launch import preparation, submission
    from kd_launch.commands import run

    inputs, plan = preparation.load_and_plan(source)
    submission.refuse_slurm(inputs, source.config)
    if run_dir is not None:
        submission.refuse_existing(source.cwd / run_dir)
    failed = [] if no_check else [found for found in findings(inputs, lambda: plan.chosen) if not found.ok]
    if failed:
        raise CheckError("\n".join(f"{found.what}: {found.says}" for found in failed))
    pool = inputs.cluster.pool(plan.chosen.student.pool)
    prepared = preparation.prepare(inputs, pool, run, source.environ)
    caller = submission.Caller(datetime.now(UTC), sys.argv, source.cwd, source.environ)
    return submission.submit_local(inputs, plan.chosen, prepared.stores, run_dir, caller, run)


def _wait(run: "RunDir") -> None:
    """Bars on stderr to the end of the run, then its state."""
    from kd_launch.cli import display

    with _left_alone(run):
        status = display.follow(lambda: _look(run), display.console(stderr=True))
    say(f"{run.name} {status.state}")
    _raise_unless_completed(run, status)


@app.command()
def status(
    run: AnyRun = None,
    run_root: RunRoot = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until the run has ended.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return at the run's end; exit code 5 if it failed.")] = False,
) -> None:
    """Show the state of a run and of its roles, or all runs."""
    from kd_launch.cli import display

    if run is None and not (watch or wait):
        _list_runs(run_root, as_json)
        return
    found = _find(run or "latest", run_root)
    with _left_alone(found):
        if watch and not as_json:
            latest = display.watch(lambda: _look(found), display.console())
        else:
            latest = _at_end(found) if wait or watch else _look(found)[1]
    if as_json:
        print(latest.model_dump_json(indent=2))
    elif not watch:
        display.console().print(display.status_view(*_look(found)))
    if wait:
        _raise_unless_completed(found, latest)


def _list_runs(run_root: Path | None, as_json: bool) -> None:
    from pydantic import TypeAdapter

    from kd_launch.cli import display
    from kd_launch.runs import lookup as runs
    from kd_launch.runs.status import Status, read_status

    root = runs.run_root(run_root, os.environ, current_folder())
    found = [read_status(run, time.time()) for run in runs.list_runs(root)]
    if as_json:
        print(TypeAdapter(list[Status]).dump_json(found, indent=2).decode())
    elif found:
        display.console().print(display.runs_table(found))
    else:
        say(f"no run in {root}; --run-root names another folder")


def _at_end(run: "RunDir") -> "Status":
    while not (latest := _look(run)[1]).ended:
        time.sleep(0.5)
    return latest


@app.command()
def logs(
    run: LatestRun = "latest",
    run_root: RunRoot = None,
    role: OneRole = None,
    rank: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of that rank only (global).")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Show what the ranks wrote in the newest attempt, each line with its rank."""
    from kd_launch.plan import Role
    from kd_launch.runs import logs as reading

    found = _find(run, run_root)
    facts, _ = _look(found)
    layout = facts.plan.layout
    reading.check_rank(rank, layout.world_size)
    files = reading.log_files(found, facts.attempt, Role(role) if role else None, layout.colocated)
    if not any(file.exists() for file in files):
        say(f"no rank has written anything yet; see {found.batch_log}")
    with _left_alone(found):
        pieces = (
            reading.follow_logs(files, rank, lambda: _look(found)[1].ended)
            if follow
            else (reading.read_logs(files, rank))
        )
        shown = None
        for piece in pieces:
            if piece.log != shown and len(files) > 1:
                sys.stdout.flush()
                say(f"==> {piece.log}")
            shown = piece.log
            sys.stdout.buffer.write(piece.text)
            sys.stdout.buffer.flush()


@app.command()
def cancel(run: OneRun, run_root: RunRoot = None) -> None:
    """End a run, from any shell. A run that has ended stays as it is."""
    from kd_launch.runs.cancel import cancel as end

    found = _find(run, run_root)
    latest, had_ended = end(found)
    print(f"{found.name} {'has already ended: ' if had_ended else ''}{latest.state}")


# What these commands share


def _find(text: str, run_root: Path | None) -> "RunDir":
    from kd_launch.runs import lookup as runs

    cwd = current_folder()
    return runs.find_run(text, runs.run_root(run_root, os.environ, cwd), cwd)


def _run_dir(path: str) -> "RunDir":
    from kd_launch.run_dir import RunDir

    return RunDir(Path(path))


def _look(run: "RunDir") -> "tuple[Facts, Status]":
    from kd_launch.runs.status import build, gather

    if not run.path.exists():
        raise UnknownNameError(f"{run.path}: was removed")
    facts = gather(run, time.time())
    return facts, build(facts)


def _spoken(run: "RunDir") -> str:
    """How the next command names a run: by its name where that is found without --run-root."""
    from kd_launch.runs.lookup import run_root

    is_found = not run.name.startswith("-") and run.path.parent == run_root(None, os.environ, current_folder())
    return shlex.quote(run.name if is_found else str(run.path))


@contextmanager
def _left_alone(run: "RunDir") -> Iterator[None]:
    """Ctrl-C ends the looking, not the run, and says how to end that."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"{run.name} is left as it is; to end it: kd-launch cancel {_spoken(run)}")
        raise


def _raise_unless_completed(run: "RunDir", latest: "Status") -> None:
    from kd_launch.cli.display import failure_words

    if latest.state == "COMPLETED":
        return
    reason = failure_words(latest.failure) if latest.failure else latest.components[0].reason or latest.state.lower()
    log = run.batch_log
    if latest.failure:
        log = run.role_log(latest.failure.attempt, latest.failure.role)
    raise RunFailedError(f"{run.name} {latest.state}: {reason}; see {log}")

"""The commands that start and end runs: submit, resume, cancel. Each asks one module and shows the answer."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_launch.cli.app import (
    ClusterFile,
    Config,
    Json,
    NewRunDir,
    OneRun,
    RunRoot,
    Set,
    app,
    current_folder,
    say,
    source_of,
)
from kd_launch.cli.before import ask_site, findings, refuse, script_of
from kd_launch.cli.one_run import find, left_alone, look, looking_at, raise_unless_completed, spoken
from kd_launch.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kd_launch.plan import RunPlan
    from kd_launch.preparation import Source
    from kd_launch.run_dir import RunDir
    from kd_launch.submission import Caller, Submitted


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
    """Check and plan, make the run's folder, and start teacher and student: as a Slurm job, or on this machine."""
    source = source_of(config, settings, cluster)
    if dry_run:
        print(script_of(source, run_dir, ask_site), end="")
        return
    submitted = _submit(source, run_dir, no_check)
    _announce(submitted, as_json)
    if wait:
        _wait(_folder(submitted))


def _submit(source: "Source", run_dir: Path | None, no_check: bool) -> "Submitted":
    from kd_launch import preparation, submission
    from kd_launch.commands import run

    inputs, plan = preparation.load_and_plan(source, ask_site=ask_site)
    for note in inputs.notes:
        say(note)
    if run_dir is not None:
        submission.refuse_existing(source.cwd / run_dir)
    if not no_check:
        refuse(findings(inputs, lambda: plan.chosen))
    if inputs.cluster.scheduler == "slurm":
        stores = preparation.prepared_stores(inputs, source.config)
        return submission.submit_slurm(inputs, plan.chosen, stores, run_dir, _caller(), run)
    pool = inputs.cluster.pool(plan.chosen.student.pool)
    stores = preparation.prepare(inputs, pool, run, source.environ).stores
    return submission.submit_local(inputs, plan.chosen, stores, run_dir, _caller(), run)


@app.command()
def resume(
    run: OneRun,
    run_root: RunRoot = None,
    as_json: Json = False,
    replan: Annotated[
        bool, typer.Option("--replan", help="Plan it again, for other GPUs or another layout: see --set, --cluster.")
    ] = False,
    settings: Set = None,
    cluster: ClusterFile = None,
) -> None:
    """Start a run again that has ended before it was done, as its next attempt, from its newest checkpoint."""
    from kd_launch import resumption
    from kd_launch.commands import run as runner

    found = find(run, run_root)
    saved = max(found.checkpoint_steps(), default=0)
    if not replan and (settings or cluster):
        raise SpecError("--set and --cluster of resume need --replan: without it a run goes on as it was planned")
    again = _replanner(settings or [], cluster) if replan else None
    submitted = resumption.resume(found, _caller(), runner, replan=again)
    begins = (
        f"goes on from the checkpoint of step {saved}" if saved else "starts from the beginning: it has no checkpoint"
    )
    say(f"{submitted.run} {begins}")
    _announce(submitted, as_json)


@app.command()
def cancel(run: OneRun, run_root: RunRoot = None) -> None:
    """End a run, from any shell; nothing of it comes back. A run that has ended stays as it is."""
    from kd_launch.commands import run as runner
    from kd_launch.errors import SpecError
    from kd_launch.runs.cancel import cancel as end

    found = find(run, run_root)
    outcome = end(found, runner)
    try:
        latest = look(found)[1]
    except SpecError as error:  # a damaged file keeps nobody from ending a run
        print(f"{found.name} {'had already ended' if outcome.had_ended else 'is ended'}")
        say(f"warning: its state cannot be told: {error}")
        return
    before = "has already ended" if latest.ended else "has nothing that could be ended"
    print(f"{found.name} {f'{before}: ' if outcome.had_ended else ''}{latest.state}")
    if outcome.note is not None:
        say(outcome.note)


# What these commands share


def _caller() -> "Caller":
    from kd_launch.submission import Caller

    return Caller(datetime.now(UTC), sys.argv, current_folder(), os.environ)


def _replanner(settings: list[str], cluster: Path | None) -> "Callable[[RunPlan], RunPlan]":
    from kd_launch.replanning import replan

    return lambda plan: replan(plan, settings, cluster, os.environ, current_folder(), ask_site)


def _announce(submitted: "Submitted", as_json: bool) -> None:
    """What was started, the two commands to follow it, and the run's folder in the last line."""
    if as_json:
        print(submitted.model_dump_json(indent=2), flush=True)
        return
    run = _folder(submitted)
    place = "is Slurm's job" if submitted.launch else "runs on this machine as process"
    print(f"{run.name} {place} {submitted.job_id}. To follow it:")
    print(f"  kd-launch status {spoken(run)} --watch\n  kd-launch logs {spoken(run)} --follow")
    print(run.path, flush=True)


def _folder(submitted: "Submitted") -> "RunDir":
    from kd_launch.run_dir import RunDir

    return RunDir(Path(submitted.run_dir))


def _wait(run: "RunDir") -> None:
    """Bars on stderr to the end of the run, then its state."""
    from kd_launch.cli import display

    with left_alone(run):
        status = display.follow(looking_at(run), display.console(stderr=True))
    say(f"{run.name} {status.state}")
    raise_unless_completed(run, status)

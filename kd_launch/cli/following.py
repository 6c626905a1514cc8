"""The commands that look at runs: status, logs. Each asks one module and shows the answer."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_launch.cli.app import AnyRun, Json, LatestRun, OneRole, RunRoot, app, current_folder, say
from kd_launch.cli.one_run import find, left_alone, looking_at, raise_unless_completed
from kd_launch.errors import SlurmSilentError

if TYPE_CHECKING:
    from kd_launch.run_dir import RunDir
    from kd_launch.runs.facts import Facts
    from kd_launch.runs.logs import Piece
    from kd_launch.runs.status import Status


@app.command()
def status(
    run: AnyRun = None,
    run_root: RunRoot = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until the run has ended.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return at the run's end; exit code 5 if it failed.")] = False,
) -> None:
    """Show the state of a run and of its roles, or all runs."""
    if run is None and not (watch or wait):
        _list_runs(run_root, as_json)
        return
    found = find(run or "latest", run_root)
    if watch or wait:
        _show_to_the_end(found, as_json, watch and not as_json, wait)
    else:
        _show_now(found, as_json)


def _show_now(run: "RunDir", as_json: bool) -> None:
    from kd_launch.commands import run as start
    from kd_launch.runs.asking import look_once

    facts, latest, silent = look_once(run, start)
    _show(facts, latest, as_json)
    if silent is not None:
        raise SlurmSilentError(silent)


def _show_to_the_end(run: "RunDir", as_json: bool, live: bool, wait: bool) -> None:
    from kd_launch.cli import display

    look = looking_at(run)
    with left_alone(run):
        if live:
            latest = display.watch(look, display.console())
        else:
            facts, latest = look()
            while not latest.ended:
                time.sleep(display.POLL_S)
                facts, latest = look()
    if not live:
        _show(facts, latest, as_json)
    if wait:
        raise_unless_completed(run, latest)


def _show(facts: "Facts", latest: "Status", as_json: bool) -> None:
    from kd_launch.cli import display

    if as_json:
        print(latest.model_dump_json(indent=2))
    else:
        display.console().print(display.status_view(facts, latest))


def _list_runs(run_root: Path | None, as_json: bool) -> None:
    from pydantic import TypeAdapter

    from kd_launch.cli import display
    from kd_launch.commands import run as start
    from kd_launch.runs import lookup as runs
    from kd_launch.runs.asking import look_at_all
    from kd_launch.runs.status import Status

    root = runs.run_root(run_root, os.environ, current_folder())
    found, silent = look_at_all(runs.list_runs(root), start)
    if as_json:
        print(TypeAdapter(list[Status]).dump_json(found, indent=2).decode())
    elif found:
        out = display.console()
        out.print(display.runs_table(found, time.time(), out.width))
    else:
        say(f"no run in {root}; --run-root names another folder")
    if silent is not None:
        raise SlurmSilentError(silent)


@app.command()
def logs(
    run: LatestRun = "latest",
    run_root: RunRoot = None,
    role: OneRole = None,
    rank: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of that rank only (global).")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of that attempt; else the newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Show what the ranks wrote, each line with its rank; where none has, what srun and the batch script wrote."""
    from kd_launch.plan import Role, read_run_plan
    from kd_launch.runs import logs as reading

    found = find(run, run_root)
    layout = read_run_plan(found.plan).layout
    reading.check_rank(rank, layout.world_size)
    reading.check_attempt(attempt, found)
    wanted = reading.Wanted(found, layout, Role(role) if role else None, rank, attempt)
    with left_alone(found):
        if follow:
            look = looking_at(found)
            _write(reading.follow_logs(wanted, lambda: look()[1].ended))
        else:
            _write(reading.read_logs(wanted))


def _write(pieces: Iterator["Piece"]) -> None:
    shown = None
    for piece in pieces:
        if piece.log != shown and piece.several:
            sys.stdout.flush()
            say(f"==> {piece.log}")
        shown = piece.log
        sys.stdout.buffer.write(piece.text)
        sys.stdout.buffer.flush()

"""The commands before a run: init, prepare, plan, render, check. Each asks one module and shows the answer."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_launch.cli.app import ClusterFile, Config, Json, NewRunDir, Set, app, current_folder, say, source_of
from kd_launch.errors import CheckError

if TYPE_CHECKING:
    # The commands import what they need when they run: --help and status must not wait for the planner.
    from kd_launch.check import Finding
    from kd_launch.plan import Layout
    from kd_launch.preparation import Inputs, Source


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to write them to.")] = Path(),
    local: Annotated[bool, typer.Option("--local", help="Describe this machine, though it has Slurm.")] = False,
) -> None:
    """Write cluster.yaml, as this machine or Slurm describes itself, and distill.yaml to start from."""
    import shutil
    import socket

    from kd_launch import init as first
    from kd_launch.commands import run
    from kd_launch.local.machine import read_machine

    ask_slurm = not local and shutil.which("sinfo") is not None
    text = first.slurm_cluster(run) if ask_slurm else first.local_cluster(read_machine(), socket.gethostname())
    for path in first.write_first_files(folder, text, os.environ):
        print(path)


@app.command()
def prepare(config: Config, settings: Set = None, cluster: ClusterFile = None, as_json: Json = False) -> None:
    """Fetch models and data into the caches and tokenize, where there is network. Does nothing twice."""
    from kd_launch import preparation
    from kd_launch.commands import run

    inputs, plan = preparation.load_and_plan(source_of(config, settings, cluster))
    prepared = preparation.prepare(inputs, inputs.cluster.pool(plan.chosen.student.pool), run, os.environ)
    if as_json:
        print(prepared.model_dump_json(indent=2))
        return
    say("prepared" if prepared.created else "all of it was there")
    for store in filter(None, (prepared.train, prepared.eval)):
        print(store)


@app.command()
def plan(
    config: Config,
    settings: Set = None,
    cluster: ClusterFile = None,
    as_json: Json = False,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show N layouts; else 4 that differ in kind, in JSON 20.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what memory and time consist of.")] = False,
) -> None:
    """Show how both models are laid over the GPUs, what a step takes, and why. Reads neither weights nor data."""
    from kd_launch.cli.plan_text import format_plan
    from kd_launch.preparation import load_and_plan

    _, found = load_and_plan(source_of(config, settings, cluster), top or 20)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        print(format_plan(found, top=top or 4, explain=explain), end="")


@app.command()
def render(
    config: Config,
    settings: Set = None,
    cluster: ClusterFile = None,
    run_dir: NewRunDir = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of stdout.")] = None,
) -> None:
    """Show the script that submit would start. Needs neither Slurm nor torch."""
    text = script_of(source_of(config, settings, cluster), run_dir)
    if output is None:
        print(text, end="")
    else:
        _write(output, text)


def _write(path: Path, text: str) -> None:
    """A file appears whole or not at all; a link or a device, such as /dev/stdout, is written to, not replaced."""
    from kd_launch.run_dir import write_whole

    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        path.write_text(text, encoding="utf-8")
    else:
        write_whole(path, text.encode())


def script_of(source: "Source", given: Path | None) -> str:
    """The script of a run; says its folder on stderr where that is not given."""
    from kd_launch.preparation import load_and_plan
    from kd_launch.submission import planned_run_dir, script_text

    inputs, found = load_and_plan(source)
    run = planned_run_dir(inputs, given, source.cwd, datetime.now(UTC))
    if given is None:
        say(f"the script of a run submitted now, in {run.path}; --run-dir names another folder")
    return script_text(inputs, found.chosen, run)


@app.command()
def check(config: Config, settings: Set = None, cluster: ClusterFile = None) -> None:
    """Look for what would fail inside the job: models, data, lengths, disk, layout, memory, interpreter."""
    from kd_launch.preparation import load_inputs, plan_inputs

    source = source_of(config, settings, cluster)
    inputs = load_inputs(source)
    failed = 0
    for finding in findings(inputs, lambda: plan_inputs(inputs).chosen):
        print(finding.line(), flush=True)
        failed += not finding.ok
    if failed:
        raise CheckError(f"{failed} of these would fail")


def findings(inputs: "Inputs", choose: "Callable[[], Layout]") -> "Iterator[Finding]":
    """What the preflight finds on this machine."""
    from kd_launch.check import Place
    from kd_launch.check import check as look
    from kd_launch.commands import run
    from kd_launch.local.machine import read_machine

    return look(inputs, choose, Place(read_machine(), os.environ, current_folder(), run))

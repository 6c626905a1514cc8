"""The commands before a run: init, prepare, plan, render, check. Each asks one module and shows the answer."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_launch.cli.app import ClusterFile, Config, Json, NewRunDir, Set, app, current_folder, say, source_of
from kd_launch.cli.planning import PlanCommand, show_plan, show_sweep

if TYPE_CHECKING:
    # The commands import what they need when they run: --help and status must not wait for the planner.
    from kd_launch.checks.finding import Finding
    from kd_launch.cluster import SiteFacts
    from kd_launch.plan import Layout
    from kd_launch.preparation import AskSite, Inputs, Source


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to write them to.")] = Path(),
    local: Annotated[bool, typer.Option("--local", help="Describe this machine, though it has Slurm.")] = False,
) -> None:
    """Write cluster.yaml, as this machine or Slurm describes itself, and distill.yaml to start from."""
    import shutil
    import socket

    from kd_launch.commands import run
    from kd_launch.errors import SlurmRefusedError
    from kd_launch.init.files import write_first_files
    from kd_launch.init.slurm_site import describe_slurm
    from kd_launch.init.this_machine import local_cluster
    from kd_launch.local.machine import read_machine

    notes: tuple[str, ...] = ()
    if not local and shutil.which("scontrol") is not None:
        try:
            described = describe_slurm(run)
        except SlurmRefusedError as error:
            raise SlurmRefusedError(f"{error}; `kd-launch init --local` describes this machine alone") from error
        text, notes = described.text, described.notes
    else:
        text = local_cluster(read_machine(), socket.gethostname())
    for path in write_first_files(folder, text, os.environ):
        print(path)
    for note in notes:
        say(note)


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


@app.command(cls=PlanCommand)
def plan(
    config: Config,
    settings: Set = None,
    cluster: ClusterFile = None,
    as_json: Json = False,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show N layouts; else 4 that differ in kind, in JSON 20.")
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--explain",
            metavar="[N]",
            help="Explain the choice, or layout N of the table: what binds it, who waits, memory by part, why it lost.",
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT=FROM..TO",
            help="Show the best layout by nodes, micro_batch, sequence_length or bandwidth (GB/s per node), and where "
            "its regime changes: nodes=1..64, or nodes=1,2,8.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the sweep, or step time against GPU-hours, as .svg or .png."),
    ] = None,
) -> None:
    """Show how both models are laid over the GPUs, what a step takes, and why. Reads neither weights nor data."""
    source = source_of(config, settings, cluster)
    if sweep is not None:
        show_sweep(source, sweep, as_json=as_json, plot=plot)
    else:
        show_plan(source, as_json=as_json, top=top, number=number, plot=plot)


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
    """A file appears whole or not at all; a link or a device, such as /dev/stdout, is written to, not replaced.

    What is there stays, unless it is an earlier script or empty: a slip must not cost somebody his spec.
    """
    from kd_launch.errors import SpecError
    from kd_launch.run_dir import write_whole

    if path.is_file() and (old := path.read_bytes()) and b"# kd-launch run " not in old[:1000]:
        raise SpecError(f"--output {path}: exists and is no script of kd-launch; remove it, or name another file")

    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        path.write_text(text, encoding="utf-8")
    else:
        write_whole(path, text.encode())


def script_of(source: "Source", given: Path | None, ask_site: "AskSite | None" = None) -> str:
    """The script of a run; says its folder on stderr where that is not given."""
    from kd_launch.cluster import SiteFacts
    from kd_launch.preparation import load_and_plan
    from kd_launch.submission import planned_run_dir, script_text

    inputs, found = load_and_plan(source, ask_site=ask_site or SiteFacts)
    for note in inputs.notes:
        say(note)
    run = planned_run_dir(inputs, given, source.cwd, datetime.now(UTC))
    if given is None:
        say(f"the script of a run submitted now, in {run.path}; --run-dir names another folder")
    return script_text(inputs, found.chosen, run)


@app.command()
def check(config: Config, settings: Set = None, cluster: ClusterFile = None) -> None:
    """Look for what would fail in the queue or inside the job: files, disk, layout, interpreter, and what Slurm allows.

    Each line says ok, note, warn or FAIL. Exit code 3 when anything would fail, 6 when Slurm does not answer.
    """
    from kd_launch.checks.finding import error_of
    from kd_launch.preparation import load_inputs, plan_inputs

    inputs = load_inputs(source_of(config, settings, cluster), ask_site)
    found = []
    for finding in findings(inputs, lambda: plan_inputs(inputs).chosen):
        print(finding.line(), flush=True)
        found.append(finding)
    failed = sum(not finding.ok for finding in found)
    error = error_of(found, f"{failed} of these would fail")
    if error is not None:
        raise error


def _address_of(host: str) -> str | None:
    import socket

    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def findings(inputs: "Inputs", choose: "Callable[[], Layout]") -> "Iterator[Finding]":
    """What the preflight finds on this machine, and on the cluster."""
    import socket

    from kd_launch.checks.finding import Place
    from kd_launch.checks.preflight import check as look
    from kd_launch.commands import run
    from kd_launch.local.machine import read_machine

    mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
    place = Place(read_machine(), os.environ, current_folder(), run, socket.gethostname(), mounts, _address_of)
    return look(inputs, choose, place)


def refuse(found: "Iterator[Finding]") -> None:
    """Says what somebody should know who submits all the same, and raises for what would fail."""
    from kd_launch.checks.finding import Level, error_of

    looked_at = list(found)
    for finding in looked_at:
        if finding.level is Level.WARNING:
            say(f"warning: {finding.what}: {finding.says}")
    error = error_of(looked_at)
    if error is not None:
        raise error


def ask_site() -> "SiteFacts":
    """What Slurm says of itself, for the commands that may ask it."""
    from kd_launch.commands import run
    from kd_launch.slurm.site import site_facts

    return site_facts(run)

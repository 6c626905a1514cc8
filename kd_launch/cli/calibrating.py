"""The command that measures: a probe through the launch path of a run, and the calibration file that comes of it."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kd_launch.cli.app import ClusterFile, Config, Json, NewRunDir, Set, app, current_folder, say, source_of
from kd_launch.cli.before import ask_site
from kd_launch.cli.one_run import left_alone, looking_at, raise_unless_completed

if TYPE_CHECKING:
    from kd_launch.calibration.file import PoolCalibration
    from kd_launch.plan import Layout
    from kd_launch.preparation import Inputs
    from kd_launch.probe import ProbeOrder
    from kd_launch.run_dir import RunDir


@app.command()
def calibrate(
    config: Config,
    settings: Set = None,
    cluster: ClusterFile = None,
    run_dir: NewRunDir = None,
    as_json: Json = False,
) -> None:
    """Measure this cluster with a short probe of both models, a minute or two; plan then uses what it found."""
    from kd_launch import __version__
    from kd_launch.calibration.file import path_beside, write
    from kd_launch.calibration.fit import fit
    from kd_launch.calibration.predicted import Uncalibrated
    from kd_launch.calibration.probing import as_probe, layout_of_probe, order_for, read_samples
    from kd_launch.preparation import load_inputs

    inputs = as_probe(load_inputs(source_of(config, settings, cluster), ask_site))
    layout = layout_of_probe(inputs)
    order = order_for(inputs.spec, layout, inputs.teacher, inputs.student)
    run = _run(inputs, layout, order, run_dir)
    model = Uncalibrated.of(inputs.spec, inputs.cluster, inputs.teacher, inputs.student, order)
    samples = read_samples(run, layout.world_size)
    found = fit(samples, model, inputs.cluster.pools, inputs.spec, datetime.now(UTC))
    path = path_beside(current_folder() / inputs.loaded.cluster_path)
    write(path, __version__, found)
    _show(found, path, as_json)


def _run(inputs: "Inputs", layout: "Layout", order: "ProbeOrder", given: Path | None) -> "RunDir":
    """The probe's run, at its end."""
    from kd_launch import submission
    from kd_launch.cli import display
    from kd_launch.commands import run as runner
    from kd_launch.run_dir import RunDir

    caller = submission.Caller(datetime.now(UTC), sys.argv, current_folder(), os.environ)
    if given is not None:
        submission.refuse_existing(caller.cwd / given)
    send = submission.submit_slurm if inputs.cluster.scheduler == "slurm" else submission.submit_local
    submitted = send(inputs, layout, None, given, caller, runner, probe=order)
    run = RunDir(Path(submitted.run_dir))
    say(f"{run.name} measures {layout.world_size} ranks; its folder is {run.path}")
    with left_alone(run):
        status = display.follow(looking_at(run), display.console(stderr=True))
    raise_unless_completed(run, status)
    return run


def _show(found: "dict[str, PoolCalibration]", path: Path, as_json: bool) -> None:
    from kd_launch.cli.calibration_text import format_calibration

    if as_json:
        import json

        pools = {name: pool.model_dump(mode="json") for name, pool in found.items()}
        print(json.dumps({"file": str(path), "pools": pools}, indent=2))
    else:
        print(format_calibration(found), end="")
        say(f"written to {path}; plan uses it from now on, unless you --set cluster.calibration=none")

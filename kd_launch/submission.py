"""A plan becomes a run: its folder with everything in it, and its job, or on this machine its ranks; or nothing."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from kd_launch import __version__, commands
from kd_launch.cluster import Cluster, time_limit_seconds
from kd_launch.commands import Runner
from kd_launch.errors import MaybeSentError, SpecError
from kd_launch.local.supervisor import Patience, with_limit
from kd_launch.plan import Layout, RunPlan, TokenStores
from kd_launch.preparation import Inputs
from kd_launch.probe import ProbeOrder
from kd_launch.run_dir import RunDir, alone, create_run_dir, make_run_dir, run_name, write_whole
from kd_launch.runs.state import JobToken, RunState, git_state, versions, write_state
from kd_launch.scripts.render import render
from kd_launch.scripts.script import decide
from kd_launch.scripts.shell_check import refuse_broken_shell
from kd_launch.sending import Sleep, send_job, token_of

SUBMITIT_TAGS = ("%j", "%t", "%A", "%a")


class Submitted(BaseModel):
    """What `submit --json` shows."""

    model_config = ConfigDict(frozen=True)

    run: str
    run_dir: str
    job_id: str | None
    launch: str | None
    script: str


@dataclass(frozen=True)
class Caller:
    """Who submits, and when: for the record, and what the ranks inherit."""

    now: datetime
    """UTC."""
    command: list[str]
    cwd: Path
    environ: Mapping[str, str]


def planned_run_dir(inputs: Inputs, given: Path | None, cwd: Path, now: datetime) -> RunDir:
    """The folder that a run submitted now would get, if nobody else takes it first. Absolute; not made.

    Raises:
        SpecError: `given` ends in no name.
    """
    if given is not None:
        if given.name in ("", ".."):
            raise SpecError(f"--run-dir {given}: is no name of a new folder; write its own name, such as runs/mine")
        return RunDir(cwd / given)
    return RunDir(Path(inputs.cluster.run_root) / run_name(inputs.name, now))


def refuse_existing(path: Path) -> None:
    """Raises SpecError where something is at a run's place."""
    if os.path.lexists(path):
        raise SpecError(f"{path}: exists; --run-dir names a folder that is made for this run")


def script_text(inputs: Inputs, layout: Layout, run: RunDir, runner: Runner = commands.run) -> str:
    """The script of a run: job.sbatch, and what `render` shows.

    Raises:
        SpecError: a value that no script can hold, or setup lines that bash cannot read.
    """
    text = render(inputs.spec, inputs.cluster, layout, run.path, run.name, sys.executable)
    refuse_broken_shell(inputs.cluster, text, runner)
    return text


def submit_slurm(
    inputs: Inputs, layout: Layout, tokens: TokenStores | None, given: Path | None, caller: Caller, runner: Runner,
    sleep: Sleep = time.sleep, *, probe: ProbeOrder | None = None,
) -> Submitted:  # fmt: skip
    """Makes the run folder and sends its script to Slurm.

    Raises:
        SpecError: the folder exists or cannot be made.
        SlurmRefusedError: sbatch said no.
        SlurmSilentError: Slurm does not answer. The folder is left after a MaybeSentError, and after no other error.
    """
    with _new_run_dir(inputs, given, caller) as run:
        _write_files(run, inputs, _run_plan(inputs, layout, tokens, probe))
        for folder in (run.logs, run.attempts, run.failures, run.heartbeats):
            folder.mkdir()
        state = _state(run, caller, runner, token=token_of(run, caller.now.timestamp()))
        with alone(run):
            sent = send_job(run, state, layout.world_size, caller.environ, runner, sleep)
    return submitted(run, sent.job_id, layout)


def submit_local(
    inputs: Inputs, layout: Layout, tokens: TokenStores | None, given: Path | None, caller: Caller, runner: Runner,
    patience: Patience | None = None, *, probe: ProbeOrder | None = None,
) -> Submitted:  # fmt: skip
    """Makes the run folder and starts the ranks on this machine.

    Raises:
        SpecError: the folder exists or cannot be made.
        CheckError: the ranks cannot be started. No folder is left, nor after any other error.
    """
    with _new_run_dir(inputs, given, caller) as run:
        plan = _run_plan(inputs, layout, tokens, probe)
        _write_files(run, inputs, plan)
        run.attempts.mkdir()
        run.logs.mkdir()
        state = _state(run, caller, runner)
        started = start_local(run, plan, state, 1, caller.environ, patience)
    return submitted(run, started.job_id, layout)


def start_local(
    run: RunDir, plan: RunPlan, state: RunState, attempt: int, environ: Mapping[str, str],
    patience: Patience | None = None,
) -> RunState:  # fmt: skip
    """Starts the ranks of an attempt, once the run folder says what watches them.

    Raises:
        CheckError: the ranks cannot be started.
        SpecError: a setting that no script can hold.
    """
    from kd_launch.submit import start_waiting  # here: render, which this module serves too, needs no submitit

    limit = plan.spec.slurm.time_limit or plan.cluster.time_limit
    patience = patience or with_limit(Patience(), time_limit_seconds(limit) if limit else None)
    run.attempt(attempt).mkdir()
    run.role_log(attempt, "any").parent.mkdir()
    script = decide(plan.spec, plan.cluster, plan.layout, run.path, run.name, sys.executable)
    waiting = start_waiting(run, script, attempt, environ, patience)
    started = state.model_copy(update={"job_id": waiting.job_id, "attempts": attempt, "controller": waiting.identity})
    try:
        write_state(run, started)
        waiting.go()
    except BaseException:
        waiting.abandon()
        raise
    return started


def submitted(run: RunDir, job_id: str | None, layout: Layout) -> Submitted:
    return Submitted(run=run.name, run_dir=str(run.path), job_id=job_id, launch=layout.launch, script=str(run.script))


@contextmanager
def _new_run_dir(inputs: Inputs, given: Path | None, caller: Caller) -> Iterator[RunDir]:
    """The run's folder; removed again when what follows fails, unless a job may need it."""
    planned = planned_run_dir(inputs, given, caller.cwd, caller.now)
    _check_path(planned.path)
    if given is None:
        run = create_run_dir(planned.path.parent, planned.name)
    else:
        refuse_existing(planned.path)
        run = make_run_dir(planned.path)
    try:
        yield run
    except MaybeSentError:
        raise
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise


def _check_path(path: Path) -> None:
    """Refuses what submitit would take for the place of a job's number."""
    for tag in SUBMITIT_TAGS:
        if tag in str(path):
            raise SpecError(f"{path}: holds {tag}, which stands for a job's number in paths; use a path without")


def _write_files(run: RunDir, inputs: Inputs, plan: RunPlan) -> None:
    """All files that are known before anything runs."""
    loaded = inputs.loaded
    write_whole(run.spec, loaded.spec_text.encode())
    write_whole(run.cluster, (loaded.cluster_text or cluster_yaml(loaded.cluster)).encode())
    write_whole(run.plan, (plan.model_dump_json(indent=2) + "\n").encode())
    write_whole(run.script, script_text(inputs, plan.layout, run).encode())


def cluster_yaml(cluster: Cluster) -> str:
    """A cluster that stood inside the spec, as a file."""
    return yaml.safe_dump(cluster.model_dump(mode="json", exclude_unset=True), sort_keys=False)


def _run_plan(inputs: Inputs, layout: Layout, tokens: TokenStores | None, probe: ProbeOrder | None) -> RunPlan:
    return RunPlan(
        version=__version__, spec=inputs.spec, cluster=inputs.cluster, layout=layout, tokens=tokens, probe=probe
    )


def _state(run: RunDir, caller: Caller, runner: Runner, token: JobToken | None = None) -> RunState:
    """Of a run that was not started yet."""
    return RunState(
        run=run.name,
        run_dir=str(run.path),
        scheduler="slurm" if token else "local",
        job_id=None,
        token=token,
        attempts=0,
        controller=None,
        created=caller.now.timestamp(),
        command=caller.command,
        folder=str(caller.cwd),
        git=git_state(caller.cwd, runner),
        versions=versions(),
    )

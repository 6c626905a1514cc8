"""Runs on a test cluster to which something happens: made and sent by hand, their ranks only pretend."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from render_cases import layout_of, pool, role, spec_of

from kd_launch.attempt.history import AttemptRecord, read_attempts
from kd_launch.cluster import Cluster
from kd_launch.plan import Launch, RunPlan
from kd_launch.run_dir import RunDir
from kd_launch.scripts.render import render
from tests.slurm.box import Box
from tests.slurm.machine import parent_of

RANKS = Path(__file__).with_name("failing_ranks.py")
# Four teachers on two nodes, two students on one: ranks 0 to 3, and 4 and 5.
STEPS = 8
# slurmdbd learns of a start a moment later, and of none that is over by then.
NOTED_S = 3.0
# Short, but no shorter than a machine with many tests needs.
PATIENCE: dict[str, Any] = {"heartbeat_timeout_s": 6.0, "stall_timeout_s": 8.0}


@dataclass(frozen=True)
class Trial:
    """What happens, and to which kind of run."""

    told: Mapping[str, Mapping[str, list[Any]]] = field(default_factory=dict)
    """To its ranks: see failing_ranks."""
    strike: Callable[["Sent"], None] | None = None
    """From outside, when training has begun."""
    launch: Launch = "hetjob"
    cluster: Mapping[str, Any] = field(default_factory=dict)
    pools: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    """Changes of the teacher's pool and of the student's."""
    teacher_nodes: int = 2
    time_limit: str = "10"
    """Of the teacher, whatever the pools say by `sbatch`."""


@dataclass(frozen=True)
class Sent:
    """A run that was sent."""

    box: Box
    run: RunDir
    job: str
    trial: Trial

    @property
    def attempts(self) -> list[AttemptRecord]:
        return read_attempts(self.run)

    @property
    def states(self) -> dict[str, str]:
        return self.box.states(self.job)

    @property
    def is_let_go(self) -> bool:
        """Whether no component is queued, running, or being ended or requeued."""
        told = self.box.call("squeue", "-h", "-a", "-j", self.job, "-t", "all", "-o", "%T").stdout.split()
        return bool(told) and set(told) <= _FINAL

    @property
    def starts(self) -> int:
        """How often Slurm has started the job."""
        rows = self.box.ask("sacct", "-D", "-X", "-n", "-P", "-j", self.job, "-o", "JobID,Start").splitlines()
        leader = {f"{self.job}+0", self.job}
        return sum(row.split("|")[0] in leader and "Unknown" not in row and "None" not in row for row in rows)

    def beat(self, rank: int) -> dict[str, Any]:
        return dict(json.loads(self.run.heartbeat(rank).read_text()))

    def host(self, rank: int) -> str:
        return str(self.beat(rank)["host"])

    def nodes_of(self, rank: int) -> list[str]:
        """Of the rank's role in the first attempt, as its job ran."""
        prefix = "t" if rank < 4 or self.trial.launch in ("ranks", "hetstep") else "s"
        return [node for node in self.box.nodes if node.startswith(prefix)]

    def pid(self, rank: int) -> int:
        return int(self.beat(rank)["pid"])

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pid(rank), number)

    def kill_stepd(self, rank: int) -> None:
        os.kill(parent_of(self.pid(rank)), signal.SIGKILL)

    def trains(self, attempt: int = 1) -> bool:
        """Whether each rank is at its second step, in a start that Slurm's accounting has noted."""
        began = self.run.start_record(attempt)
        if not began.exists() or time.time() - began.stat().st_mtime < NOTED_S:
            return False
        beats = [self.run.heartbeat(rank) for rank in range(6)]
        return all(path.exists() and json.loads(path.read_text())["done"] >= 2 for path in beats)

    def start_now(self) -> None:
        """Cuts the time that a requeued job waits."""
        for line in self.box.ask("squeue", "-h", "-a", "-j", self.job, "-o", "%A").split():
            self.box.call("scontrol", "update", f"JobId={line}", "StartTime=now", as_root=True)

    def said(self) -> str:
        """For a test that fails."""
        logs = sorted(self.run.logs.rglob("*.log"))
        texts = [f"--- {path.relative_to(self.run.path)}\n{path.read_text()[-2000:]}" for path in logs]
        return "\n".join([f"{self.run.name}: job {self.job} {self.states}", *map(str, self.attempts), *texts])


def send(box: Box, name: str, trial: Trial) -> Sent:
    """Makes the run folder and sends its script as the box's user."""
    run = RunDir(box.home / name)
    run.logs.mkdir(parents=True)
    python = run.path / "python"
    ours = shlex.quote(sys.executable)
    python.write_text(
        f'#!/bin/sh\n[ "$2" = kd_launch.attempt ] && exec {ours} "$@"\nexec {ours} -IS {shlex.quote(str(RANKS))} "$@"\n'
    )
    python.chmod(0o755)
    plan = _plan(trial, str(python))
    run.plan.write_text(plan.model_dump_json())
    (run.path / "told.json").write_text(json.dumps(trial.told))
    run.script.write_text(render(plan.spec, plan.cluster, plan.layout, run.path, name, str(python)))
    box.give(run.path)
    return Sent(box, run, box.sbatch(str(run.script), cwd=run.path), trial)


def _plan(trial: Trial, python: str) -> RunPlan:
    one_pool = trial.launch in ("hetstep", "ranks")
    teacher_pool, student_pool = ("teach", "teach") if one_pool else ("teach", "train")
    base = {"gpu": "CPU", "cpus_per_node": None, "gpus_per_node": 4}
    pools = [{**pool("teach", **base), **trial.pools[0]}, {**pool("train", **base), **trial.pools[1]}]
    site = {"scheduler": "slurm", "time_limit": trial.time_limit, "python": python, "pools": pools, **PATIENCE}
    cluster = Cluster.model_validate({**site, **trial.cluster}, strict=False)
    layout = layout_of(
        trial.launch, role(teacher_pool, trial.teacher_nodes, 4 // trial.teacher_nodes), role(student_pool, 1, 2)
    )
    spec = spec_of()
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": STEPS})})
    return RunPlan(version="0", spec=spec, cluster=cluster, layout=layout, tokens=None)


def run_wave(box: Box, trials: Mapping[str, Trial], seconds: float = 180) -> dict[str, Sent]:
    """Sends all of them at once, lets happen what shall happen, and returns when Slurm has let go of every job.

    A job that it has not let go of by then is left for a test to find.
    """
    sent = {name: send(box, name, trial) for name, trial in trials.items()}
    deadline = time.monotonic() + seconds
    to_strike = {name for name, trial in trials.items() if trial.strike is not None}
    to_end = set(sent)
    while to_end and time.monotonic() < deadline:
        for name in [name for name in to_strike if sent[name].trains()]:
            to_strike.discard(name)
            strike = trials[name].strike
            assert strike is not None
            strike(sent[name])
        to_end -= {name for name in to_end - to_strike if sent[name].is_let_go}
        time.sleep(0.2)
    return sent


_FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"}

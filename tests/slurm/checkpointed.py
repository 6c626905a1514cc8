"""Runs on a test cluster whose ranks really train, and what they have learnt whatever has happened to them."""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_launch.attempt.history import read_attempts
from kd_launch.plan import read_run_plan
from kd_launch.run_dir import RunDir, read_json
from tests.runtime.harness import Ranks, run_to_end
from tests.slurm.projects import Project

Curve = dict[int, float]


@dataclass(frozen=True)
class Training:
    """A run that was sent."""

    project: Project
    run: RunDir
    """As this process sees it, which need not be in the box's view of the files."""
    inside: Path
    """As the box's user sees it."""

    @property
    def job(self) -> str:
        return str(json.loads(self.run.state.read_text())["job_id"])

    @property
    def attempt(self) -> int:
        return max(self.run.attempt_numbers(), default=0)

    def beat(self, rank: int) -> dict[str, Any]:
        return dict(json.loads(self.run.heartbeat(rank).read_text()))

    def pid(self, rank: int) -> int:
        return int(self.beat(rank)["pid"])

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pid(rank), number)

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines about steps."""
        text = self.run.metrics.read_text() if self.run.metrics.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if '"loss"' in line and line.endswith("\n")]

    def curve(self) -> Curve:
        """The loss of each step; its last line counts."""
        return {line["step"]: line["loss"] for line in self.lines()}

    def steps_of(self, attempt: int) -> list[int]:
        return [line["step"] for line in self.lines() if line["attempt"] == attempt]

    def begin_of(self, attempt: int) -> int:
        return int(json.loads(self.run.start_record(attempt).read_text())["step"])

    def status(self) -> dict[str, Any]:
        return self.project.status(self.inside)

    def has_failed(self, attempt: int) -> bool:
        """Whether it has ended, and none follows."""
        return (read_json(self.run.end_record(attempt)) or {}).get("next") == "fail"

    def unnamed(self, attempt: int) -> list[int]:
        """Steps whose checkpoint this attempt is writing, or was writing when it ended."""
        found = self.run.checkpoints.glob(f".step-*.partial-{attempt}")
        return sorted(int(path.name.split(".")[1].removeprefix("step-")) for path in found)

    def said(self) -> str:
        """For a test that fails."""
        logs = sorted(self.run.logs.rglob("*.log"))
        texts = [f"--- {path.relative_to(self.run.path)}\n{path.read_text()[-2500:]}" for path in logs]
        return "\n".join([str(self.run.path), *map(str, read_attempts(self.run)), *texts])


def weights(run: RunDir) -> dict[str, Any]:
    """Of the exported student."""
    from safetensors.numpy import load_file

    return dict(load_file(run.model / "model.safetensors"))


def largest_difference(one: RunDir, other: RunDir) -> float:
    """Of all weights."""
    import numpy as np

    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def undisturbed(run: RunDir, folder: Path) -> Ranks:
    """The plan of a run, on this machine, at once and without Slurm: nothing happens to it."""
    copy = RunDir(folder)
    shutil.copy(run.plan, copy.plan)
    return run_to_end(copy, read_run_plan(copy.plan).layout)


def send(project: Project, *arguments: str) -> Training:
    path = project.submit("--no-check", *arguments)
    return Training(project, RunDir(project.box.seen(path)), path)

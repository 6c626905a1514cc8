"""Runs on a test cluster whose ranks only pretend: they come up at once, and do what a test tells them."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_launch.run_dir import RunDir
from tests.slurm.box import Box
from tests.slurm.projects import Project, write_project

INTERPRETER = Path(__file__).parents[1] / "fake_runtime" / "interpreter.py"
FOREVER: list[Any] = [["beat", 1], ["sleep", 300]]
# Nobody looks whether pretended ranks make progress.
PATIENT = {"heartbeat_timeout_s": 600, "stall_timeout_s": 600}


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Pretended:
    """A project whose tokens are real and prepared, and whose interpreter pretends."""

    project: Project

    @property
    def box(self) -> Box:
        return self.project.box

    @property
    def folder(self) -> Path:
        return self.project.folder

    @property
    def runs(self) -> list[Path]:
        root = self.folder / "runs"
        return sorted(path for path in root.iterdir() if path.name != "tokens") if root.is_dir() else []

    def told(self, **actions: list[Any]) -> list[str]:
        """The arguments that tell ranks what to do: rank0=[...], every=[...]."""
        keys = {name: "*" if name == "every" else name.removeprefix("rank") for name in actions}
        text = json.dumps({keys[name]: todo for name, todo in actions.items()})
        return ["--set=cluster.python=./python", f"--set=cluster.environment.FAKE_RANKS={json.dumps(text)}"]

    def kd(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return self.project.kd(*arguments, **options)

    def send(self, *arguments: str, every: list[Any] = FOREVER, **options: Any) -> "subprocess.CompletedProcess[str]":
        """`submit`, whatever comes of it."""
        return self.kd("submit", "distill.yaml", *self.told(every=every), *arguments, **options)

    def submit(self, *arguments: str, every: list[Any] = FOREVER, **options: Any) -> RunDir:
        done = self.send(*arguments, every=every, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return RunDir(Path(done.stdout.splitlines()[-1]))

    def running(self, *arguments: str, every: list[Any] = FOREVER) -> RunDir:
        """Submits, and returns when every rank is at work."""
        run = self.submit(*arguments, every=every)
        wait_until(lambda: len(list(run.heartbeats.glob("rank-*.json"))) == 6)
        return run

    def job_id(self, run: RunDir) -> str:
        return str(json.loads(run.state.read_text())["job_id"])

    def status(self, run: RunDir) -> dict[str, Any]:
        return self.project.status(run.path)

    def cancel(self, run: RunDir, **options: Any) -> "subprocess.CompletedProcess[str]":
        return self.kd("cancel", str(run.path), **options)

    def held(self) -> str:
        """What Slurm holds of anybody's."""
        return self.box.ask("squeue", "-h", "-a")


def write_pretended(
    box: Box, name: str, models: Path, cluster: Mapping[str, Any] | None = None, **options: Any
) -> Pretended:
    """Like `write_project`, whose tokens are prepared already."""
    project = write_project(box, name, models, cluster={**PATIENT, **(cluster or {})}, **options)
    line = shlex.join([sys.executable, str(INTERPRETER)])
    project.write("python", f'#!/bin/sh\nexec {line} "$@"\n').chmod(0o755)
    return Pretended(project)

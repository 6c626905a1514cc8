"""What happens to ranks that really train, and what follows: the runtime and the batch script's caretaker together."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_launch.attempt.history import read_attempts
from tests.slurm.box import Box
from tests.slurm.checkpointed import Training, send
from tests.slurm.machine import wait_for
from tests.slurm.projects import write_project
from tests.slurm.trials import parent_of

# One rank each, so that many runs have room; enough steps for what happens to be noticed before the last.
SMALL: dict[str, dict[str, Any]] = {
    "teacher": {"gpus": 1}, "student": {"gpus": 1}, "training": {"steps": 400, "global_batch_size": 4},
}  # fmt: skip
IMPATIENT = {"heartbeat_timeout_s": 20.0}


STRIKES: dict[str, Callable[[Training], object]] = {
    "a killed teacher": lambda it: it.send(0, signal.SIGKILL),
    "a stopped student": lambda it: it.send(1, signal.SIGSTOP),
    "a slurmstepd that is killed": lambda it: os.kill(parent_of(it.pid(0)), signal.SIGKILL),
    "TERM to all": lambda it: it.project.box.ask("scancel", "--signal=TERM", it.job),
}
FATES = {
    "a killed teacher": ("failed", "killed", 0),
    "a stopped student": ("failed", "silent", 1),
    "a slurmstepd that is killed": ("failed", "orphaned", 0),
    "TERM to all": ("preempted", None, None),
}


@pytest.fixture(scope="module")
def struck(box: Box, models: Path) -> dict[str, Training]:
    """All of them, when they have ended."""
    runs = {}
    for name in STRIKES:
        project = write_project(box, name, models, cluster=IMPATIENT, **SMALL)
        runs[name] = send(project)
    left = dict(runs)
    deadline = time.monotonic() + 240
    while left and time.monotonic() < deadline:
        for name in [name for name, one in left.items() if len(one.lines()) > 3]:
            STRIKES[name](left.pop(name))
        time.sleep(0.1)
    assert not left, "\n".join(one.said() for one in left.values())
    for one in runs.values():
        wait_for(lambda one=one: one.project.status(one.run.path)["ended"], 180, lambda one=one: one.said(), every=2)  # type: ignore[misc]
    return runs


@pytest.mark.parametrize("name", STRIKES)
def test_it_comes_back_once_and_is_done(struck: dict[str, Training], name: str) -> None:
    one = struck[name]
    outcome, kind, rank = FATES[name]
    first, *others = read_attempts(one.run)
    assert (first.outcome, first.next) == (outcome, "requeue"), one.said()
    assert [(attempt.outcome, attempt.done) for attempt in others] == [("done", True)], one.said()
    if kind is None:
        assert first.failure is None, one.said()
        assert first.leave is not None
    else:
        assert first.failure is not None
        assert (first.failure.kind, first.failure.rank) == (kind, rank), one.said()
        assert first.failure.role == ("teacher", "student")[first.failure.rank]


@pytest.mark.parametrize("name", STRIKES)
def test_status_tells_it(struck: dict[str, Training], name: str) -> None:
    status = struck[name].project.status(struck[name].run.path)
    assert (status["state"], status["ended"], status["attempt"]) == ("COMPLETED", True, 2)
    assert (status["failure"] or {}).get("rank") == FATES[name][2]

"""A run that is killed and preempted goes on from its checkpoints, and learns what an undisturbed one learns."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kd_launch.attempt.history import read_attempts
from tests.runtime.harness import Ranks
from tests.slurm.box import Box
from tests.slurm.checkpointed import Training, largest_difference, send, undisturbed
from tests.slurm.machine import wait_for
from tests.slurm.projects import write_project

STEPS, EVERY = 80, 5
SPEC: dict[str, dict[str, Any]] = {
    "teacher": {"gpus": 1}, "student": {"gpus": 1},
    "training": {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 1},
    "checkpoint": {"every_steps": EVERY, "keep": 2},
}  # fmt: skip
PATIENCE_S = 500


@dataclass(frozen=True)
class Runs:
    """All of them have ended."""

    struck: Training
    """A student was killed, and later all ranks were told to leave."""
    cancelled: Training
    """While it trained and saved."""
    calm: Ranks
    """The same as the struck one, without Slurm: nothing happens to it."""


@pytest.fixture(scope="module")
def runs(box: Box, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    struck, cancelled = (
        send(write_project(box, name, models, cluster={"heartbeat_timeout_s": 20.0}, **SPEC))
        for name in ("struck", "to be cancelled")
    )
    with ThreadPoolExecutor(2) as strikes:
        striking = [strikes.submit(_kill_then_preempt, struck), strikes.submit(_cancel, cancelled)]
        calm = undisturbed(struck.run, tmp_path_factory.mktemp("calm"))
        for strike in striking:
            strike.result()
    for one in (struck, cancelled):
        _wait(lambda one=one: one.project.status(one.run.path)["ended"], one, every=2)  # type: ignore[misc]
    return Runs(struck, cancelled, calm)


def _wait(there: Callable[[], bool], training: Training, every: float) -> None:
    wait_for(there, PATIENCE_S, training.said, every)


def _kill_then_preempt(training: Training) -> None:
    _after(training, 1, EVERY + 2)
    training.send(1, signal.SIGKILL)
    _after(training, 2, 3)
    # As Slurm preempts with a grace time: TERM to every rank, and the job is still said to run.
    training.project.box.ask("scancel", "--signal=TERM", training.job)


def _cancel(training: Training) -> None:
    _after(training, 1, EVERY)
    training.project.box.ask("scancel", training.job)


def _after(training: Training, attempt: int, steps: int) -> None:
    """When that attempt has made so many steps, and there is a checkpoint."""
    there = training.run.latest_checkpoint.exists
    _wait(lambda: len(training.steps_of(attempt)) >= steps and there(), training, every=0.1)


def test_it_goes_on_from_checkpoint_to_checkpoint_and_is_done(runs: Runs) -> None:
    struck = runs.struck
    attempts = read_attempts(struck.run)
    assert [(one.outcome, one.next) for one in attempts] == [
        ("failed", "requeue"), ("preempted", "requeue"), ("done", "done"),
    ], struck.said()  # fmt: skip
    assert 0 <= struck.steps_of(1)[-1] - struck.begin_of(2) <= 2 * EVERY, struck.said()
    assert struck.begin_of(2) > 0
    # Told to leave, it saved the very last step.
    assert struck.begin_of(3) == struck.steps_of(2)[-1], struck.said()
    assert struck.project.status(struck.run.path)["state"] == "COMPLETED"


def test_it_has_learnt_the_same(runs: Runs) -> None:
    calm = {step: loss for step, (loss, _) in runs.calm.losses().items()}
    assert sorted(calm) == list(range(1, STEPS + 1))
    assert runs.struck.curve() == calm, runs.struck.said()
    assert largest_difference(runs.struck.run, runs.calm.run_dir) == 0


def test_what_is_cancelled_while_it_trains_and_saves_stays_so(runs: Runs) -> None:
    status = runs.cancelled.project.status(runs.cancelled.run.path)
    assert (status["state"], status["ended"], status["attempt"]) == ("CANCELLED", True, 1), runs.cancelled.said()

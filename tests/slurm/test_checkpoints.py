"""A run that is killed and preempted goes on from its checkpoints, and learns what an undisturbed one learns."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kd_launch.attempt.history import read_attempts
from tests.slurm.box import Box
from tests.slurm.checkpointed import Training, largest_difference, send
from tests.slurm.machine import wait_for
from tests.slurm.projects import write_project

STEPS, EVERY = 240, 10
SPEC = {
    "teacher": {"gpus": 1}, "student": {"gpus": 2, "parallelism": {"replicas": 1, "fsdp": 2}},
    "training": {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 1},
    "checkpoint": {"every_steps": EVERY, "keep": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(box: Box, models: Path) -> tuple[Training, Training, Training]:
    """One undisturbed; one with a killed student and a preemption; one that is cancelled while it trains. Ended."""
    calm, struck, cancelled = (
        send(write_project(box, name, models, cluster={"heartbeat_timeout_s": 20.0}, **SPEC))
        for name in ("calm", "struck", "to be cancelled")
    )
    with ThreadPoolExecutor(2) as strikes:
        for strike in [strikes.submit(_kill_then_preempt, struck), strikes.submit(_cancel, cancelled)]:
            strike.result()
    for one in (calm, struck, cancelled):
        wait_for(lambda one=one: one.project.status(one.run.path)["ended"], 240, lambda one=one: one.said(), every=2)  # type: ignore[misc]
    return calm, struck, cancelled


def _kill_then_preempt(training: Training) -> None:
    _after(training, 1, EVERY + 2)
    training.send(2, signal.SIGKILL)
    _after(training, 2, 3)
    # As Slurm preempts with a grace time: TERM to every rank, and the job is still said to run.
    training.project.box.ask("scancel", "--signal=TERM", training.job)


def _cancel(training: Training) -> None:
    _after(training, 1, EVERY)
    training.project.box.ask("scancel", training.job)


def _after(training: Training, attempt: int, steps: int) -> None:
    """When that attempt has made so many steps, and there is a checkpoint."""
    wait_for(
        lambda: len(training.steps_of(attempt)) >= steps and training.run.latest_checkpoint.exists(),
        240, training.said, every=0.1,
    )  # fmt: skip


def test_it_goes_on_from_checkpoint_to_checkpoint_and_is_done(runs: tuple[Training, ...]) -> None:
    struck = runs[1]
    attempts = read_attempts(struck.run)
    assert [(one.outcome, one.next) for one in attempts] == [
        ("failed", "requeue"), ("preempted", "requeue"), ("done", "done"),
    ], struck.said()  # fmt: skip
    lost_by_the_kill = struck.steps_of(1)[-1] - struck.begin_of(2)
    assert 0 <= lost_by_the_kill <= 2 * EVERY, struck.said()
    assert struck.begin_of(2) > 0
    # Told to leave, it saved the very last step.
    assert struck.begin_of(3) == struck.steps_of(2)[-1], struck.said()
    assert struck.project.status(struck.run.path)["state"] == "COMPLETED"


def test_it_has_learnt_the_same(runs: tuple[Training, ...]) -> None:
    calm, struck, _ = runs
    assert list(calm.curve()) == list(range(1, STEPS + 1)), calm.said()
    assert struck.curve() == calm.curve()
    assert largest_difference(struck.run, calm.run) <= 1e-5


def test_what_is_cancelled_while_it_trains_and_saves_stays_so(runs: tuple[Training, ...]) -> None:
    cancelled = runs[2]
    status = cancelled.project.status(cancelled.run.path)
    assert (status["state"], status["ended"], status["attempt"]) == ("CANCELLED", True, 1), cancelled.said()

"""A run that is cancelled just while it writes a checkpoint stays cancelled, and leaves no half of one."""

from pathlib import Path

import pytest

from tests.slurm.box import Box
from tests.slurm.checkpointed import Training, send
from tests.slurm.machine import alive, wait_for
from tests.slurm.projects import write_paced_project

PATIENCE_S = 300
# Longer than a cancel takes: what is being written then is not finished by chance.
NAMING_S = 60.0


@pytest.fixture(scope="module")
def cancelled(box: Box, models: Path) -> Training:
    """While its first checkpoint was being written; it has ended."""
    project = write_paced_project(
        box, "cancelled", models, {"heartbeat_timeout_s": 20.0}, step_s=0.2, naming_s=NAMING_S,
        teacher={"gpus": 1}, student={"gpus": 1},
        training={"steps": 1000, "global_batch_size": 4, "micro_batch_size": 1}, checkpoint={"every_steps": 3},
    )  # fmt: skip
    training = send(project)
    wait_for(lambda: bool(training.unnamed(1)), PATIENCE_S, training.said, every=0.1)
    pids = [training.pid(rank) for rank in (0, 1)]
    box.ask("scancel", training.job)
    wait_for(lambda: training.status()["ended"], PATIENCE_S, training.said, every=2)
    wait_for(lambda: not any(map(alive, pids)), PATIENCE_S, training.said, every=0.5)
    return training


def test_it_stays_cancelled(cancelled: Training) -> None:
    status = cancelled.status()
    assert (status["state"], status["ended"], status["attempt"]) == ("CANCELLED", True, 1), cancelled.said()


def test_what_was_being_written_has_no_name(cancelled: Training) -> None:
    assert cancelled.unnamed(1) == [3], cancelled.said()
    assert cancelled.run.checkpoint_steps() == [], cancelled.said()

"""Six different things happen to a run that really trains: it comes to its end with nothing lost, and tells of each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runtime.harness import Ranks
from tests.slurm.aftermath import Struck, lost_by, wrong
from tests.slurm.box import Box
from tests.slurm.checkpointed import Training, largest_difference, undisturbed
from tests.slurm.random_faults import EVERY, FAULTS, draw, send_to_be_struck, suffer
from tests.slurm.setup import PREEMPTING, Setup

# Each attempt costs the imports of all its ranks. A dead node waits for Slurm's timeout: that is test_failures.py's.
SEED, STEPS, QUICK = 51, 120, tuple(fault for fault in FAULTS if fault != "node")


@dataclass(frozen=True)
class Runs:
    """Both have ended."""

    struck: Training
    calm: Ranks
    told: list[Struck]


@pytest.fixture(scope="module")
def runs(box_with: Callable[[Setup], Box], models: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    box = box_with(PREEMPTING)
    for partition in ("teach", "train"):
        box.ask("scontrol", "update", f"PartitionName={partition}", "GraceTime=60", as_root=True)
    struck = send_to_be_struck(box, "struck", models, STEPS, students=1, silent_s=20.0)
    told = suffer(struck, draw(SEED, 6, ranks=2, kinds=QUICK), STEPS)
    return Runs(struck, undisturbed(struck.run, tmp_path_factory.mktemp("calm")), told)


def test_all_six_happened(runs: Runs) -> None:
    assert len({one.fault for one in runs.told}) == 6, runs.struck.said()


def test_nothing_is_lost_but_the_steps_since_the_last_checkpoint(runs: Runs) -> None:
    problems = list(wrong(runs.struck, runs.calm, runs.told, EVERY))
    assert not problems, "\n".join([*problems, *map(str, lost_by(runs.struck, runs.told)), runs.struck.said()])


def test_on_the_same_layout_it_has_learnt_the_same_in_every_digit(runs: Runs) -> None:
    assert runs.struck.curve() == {step: loss for step, (loss, _) in runs.calm.losses().items()}
    assert largest_difference(runs.struck.run, runs.calm.run_dir) == 0

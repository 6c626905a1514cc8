"""Many runs sent at once, random ones cancelled or killed: every status tells the truth, and nothing is left behind."""

from pathlib import Path

from tests.slurm.box import Box
from tests.slurm.burst import FATES, burst, draw, traces

SEED = 7
JOBS = len(FATES) + 2


def test_every_status_ends_true_and_nothing_is_left(box: Box, models: Path) -> None:
    box.wait_idle()
    before = traces(box)
    members = burst(box, models, draw(SEED, JOBS))
    assert len(members) == JOBS
    assert [f"{member}: {words}" for member in members for words in member.wrong()] == []
    assert {what: words for what, words in traces(box).items() if what not in before} == {}


def test_a_seed_draws_the_same_again_and_every_fate() -> None:
    lots = draw(SEED, JOBS)
    assert lots == draw(SEED, JOBS) != draw(SEED + 1, JOBS)
    assert {lot.fate for lot in lots} == set(FATES)

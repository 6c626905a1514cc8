"""Many runs sent at once, random ones cancelled or killed: every status tells the truth, and nothing is left behind."""

from dataclasses import replace
from pathlib import Path

from kd_launch.run_dir import RunDir
from tests.slurm.box import Box
from tests.slurm.burst import FATES, Lot, Member, burst, draw, traces
from tests.slurm.projects import Project

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


def test_a_status_that_is_not_true_is_found(tmp_path: Path) -> None:
    member = Member(Lot("raise", "ranks", 2, 1, 2, 1.0), Project(Box(tmp_path), tmp_path), RunDir(tmp_path))
    member.status = {"state": "FAILED", "ended": True, "attempt": 1, "failure": {"rank": 2, "role": "student"}}
    assert list(member.wrong()) == []
    for false in ({"state": "RUNNING"}, {"ended": False}, {"attempt": 2}, {"failure": {"rank": 0, "role": "teacher"}}):
        assert list(replace(member, status={**member.status, **false}).wrong()) != []

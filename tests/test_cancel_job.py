"""Cancel on Slurm: the order of record and scancel, and every answer that Slurm may give."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_slurm import DOWN, FakeSlurm, Says, Step
from run_folders import make_run

from kd_launch.errors import CheckError, SlurmSilentError
from kd_launch.run_dir import RunDir, alone, write_json
from kd_launch.runs.cancel import cancel
from kd_launch.runs.cancel_job import AGAIN_S, GONE_S, Outcome, allow_requeue
from kd_launch.runs.state import JobToken, RunState, read_state, write_state

DENIED = Says(stderr="scancel: error: Kill job error on job id 5: Access/permission denied\n", returncode=210)
NOTHING = Says()
UNKNOWN = Says(stderr="slurm_load_jobs error: Invalid job id specified\n", returncode=1)


def squeue(*states: str, job_id: int = 5, name: str = "name") -> Says:
    """What squeue says of a job whose components are in these states."""
    rows = [f"{job_id}+{i}|{word}|0|N/A|n{i}|{name}|None" for i, word in enumerate(states)]
    return Says("".join(f"{row}\n" for row in rows))


RUNNING, LEAVING = squeue("RUNNING", "RUNNING"), squeue("COMPLETING", "COMPLETING")


@dataclass
class Case:
    run: RunDir

    def cancel(self, *looks: Step, scancel: Step = NOTHING) -> tuple[Outcome, FakeSlurm]:
        """`looks` are squeue's answers; sleeping costs nothing."""
        slurm = FakeSlurm({"squeue": looks, "scancel": [scancel]})
        return cancel(self.run, slurm, sleep=lambda _: None), slurm

    def record(self) -> object:
        return json.loads(self.run.cancel_record.read_text())["job_id"]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A run that was sent as job 5."""
    run = make_run(tmp_path / "run", None)
    state = read_state(run)
    assert state is not None
    write_state(run, state.model_copy(update={"scheduler": "slurm", "job_id": "5"}))
    return Case(run)


def lose_the_id(run: RunDir) -> RunState:
    state = read_state(run)
    assert state is not None
    token = JobToken(job_name="run", script=str(run.script), since=0.0)
    lost = state.model_copy(update={"job_id": None, "token": token})
    write_state(run, lost)
    return lost


def test_the_record_is_there_before_scancel(case: Case) -> None:
    seen = []

    def scancel() -> Says:
        seen.append(case.record())
        return Says()

    outcome, slurm = case.cancel(RUNNING, LEAVING, squeue("CANCELLED", "CANCELLED"), scancel=scancel)
    assert outcome == Outcome(had_ended=False)
    assert seen == ["5"]
    assert slurm.called("scancel") == [("scancel", "5")]


@pytest.mark.parametrize("word", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "REQUEUED", "WHAT"])
def test_whatever_slurm_holds_is_cancelled(case: Case, word: str) -> None:
    outcome, slurm = case.cancel(squeue("COMPLETED", word), UNKNOWN)
    assert (outcome.had_ended, len(slurm.called("scancel"))) == (False, 1)


@pytest.mark.parametrize("look", [squeue("COMPLETED", "FAILED"), UNKNOWN, Says()])
def test_what_has_ended_stays_as_it_is(case: Case, look: Says) -> None:
    outcome, slurm = case.cancel(look)
    assert outcome == Outcome(had_ended=True)
    assert slurm.called("scancel") == []
    assert not case.run.cancel_record.exists()


def test_a_job_of_another_that_has_its_number_by_now_is_left_alone(case: Case) -> None:
    """The cluster was set up anew, and counts from 1 again."""
    lost = lose_the_id(case.run)
    assert lost.token is not None
    token = lost.token.model_copy(update={"job_name": "ours"})
    write_state(case.run, lost.model_copy(update={"job_id": "5", "token": token}))
    outcome, slurm = case.cancel(RUNNING)
    assert (outcome.had_ended, slurm.called("scancel")) == (True, [])


def test_a_job_that_comes_back_is_cancelled_again(case: Case) -> None:
    """It was being requeued at that moment."""
    looks = [RUNNING, *[squeue("PENDING", "PENDING")] * (int(AGAIN_S) + 1), LEAVING, UNKNOWN]
    outcome, slurm = case.cancel(*looks)
    assert outcome.note is None
    assert len(slurm.called("scancel")) == 2


def test_a_job_that_does_not_go_is_said(case: Case) -> None:
    outcome, slurm = case.cancel(RUNNING, LEAVING)
    assert outcome.note == "Slurm has accepted it, but still holds job 5 (COMPLETING); nothing of it is requeued"
    assert len(slurm.called("squeue")) == GONE_S + 2
    assert len(slurm.called("scancel")) == 1


def test_another_user_s_job(case: Case) -> None:
    with pytest.raises(CheckError, match=r"job 5 may not be cancelled: .*permission denied; is it another user's\?"):
        case.cancel(RUNNING, scancel=DENIED)
    assert not case.run.cancel_record.exists()


def test_another_user_s_folder(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kd_launch.runs.cancel_job.write_json", refuse)  # root may write everywhere
    with pytest.raises(CheckError, match="is another user's"):
        case.cancel(RUNNING)


def test_a_silent_slurm_does_not_requeue_what_was_cancelled(case: Case) -> None:
    with pytest.raises(SlurmSilentError, match="no attempt follows the present one") as silent:
        case.cancel(DOWN)
    assert "give `kd-launch cancel` again" in str(silent.value)
    assert case.record() == "5"


def test_slurm_that_falls_silent_after_scancel(case: Case) -> None:
    with pytest.raises(SlurmSilentError):
        case.cancel(RUNNING, DOWN)
    assert case.record() == "5"


def test_a_lost_job_is_found_and_cancelled(case: Case) -> None:
    lose_the_id(case.run)
    by_name = Says(f"7|2026-02-01T00:00:00|{case.run.script}\n")
    outcome, slurm = case.cancel(by_name, squeue("RUNNING", job_id=7, name="run"), UNKNOWN)
    assert (outcome.had_ended, slurm.called("scancel")) == (False, [("scancel", "7")])
    state = read_state(case.run)
    assert state is not None
    assert (state.job_id, case.record()) == ("7", "7")


def test_a_lost_job_that_never_was(case: Case) -> None:
    lose_the_id(case.run)
    outcome, slurm = case.cancel(Says())
    assert (outcome, slurm.called("scancel")) == (Outcome(had_ended=True), [])


def test_a_job_that_is_being_sent_is_not_lost(case: Case) -> None:
    lose_the_id(case.run)
    with alone(case.run), pytest.raises(CheckError, match="another kd-launch starts it just now"):
        case.cancel(Says())
    assert not case.run.cancel_record.exists()


def test_a_lost_job_and_a_silent_slurm(case: Case) -> None:
    """The record without a number speaks to every job of the run."""
    lose_the_id(case.run)
    with pytest.raises(SlurmSilentError):
        case.cancel(DOWN)
    assert case.record() is None


@pytest.mark.parametrize(("job_id", "stays"), [("4", False), ("5", False), (None, False), ("6", True)])
def test_a_resumed_run_may_be_requeued_again(case: Case, job_id: str | None, stays: bool) -> None:
    write_json(case.run.cancel_record, {"job_id": job_id, "time": 0.0})
    allow_requeue(case.run, ("4", "5"))
    assert case.run.cancel_record.exists() is stays

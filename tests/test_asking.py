"""How runs are looked at: files after Slurm's answer, Slurm seldom, one question for all, and never for ever."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import DOWN, FakeSlurm, Says, Step
from run_folders import write_record
from slurm_runs import NOW, beats, end, failed, make_slurm_run

from kd_launch.errors import SlurmSilentError, UnknownNameError
from kd_launch.run_dir import RunDir
from kd_launch.runs.asking import Look, look_at_all, look_once
from kd_launch.runs.state import read_state

RUNS = Says("30+0|RUNNING|0|N/A|big[1-2]|chat-1|None\n30+1|RUNNING|0|N/A|small1|chat-1|None\n")
ENDED = Says("30+0|COMPLETED|0|N/A|big[1-2]|chat-1|None\n30+1|COMPLETED|0|N/A|small1|chat-1|None\n")
UNKNOWN_ID = Says(stderr="slurm_load_jobs error: Invalid job id specified\n", returncode=1)
DONE = {"time": NOW, "step": 1000}


def slurm(*squeue: Step, sacct: Says = UNKNOWN_ID) -> FakeSlurm:
    return FakeSlurm({"squeue": squeue, "sacct": [sacct]})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_slurm_run(tmp_path / "chat-1")


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def at_once(work: Callable[[], None]) -> None:
    work()


# Once


def test_what_a_run_wrote_before_slurm_called_it_ended_is_seen(run: RunDir) -> None:
    def ends() -> Says:
        write_record(run, "done", DONE)
        write_record(run, "end", end("done", "done"))
        return ENDED

    _, status, silent = look_once(run, slurm(ends), lambda: NOW)
    assert (status.state, status.ended, silent) == ("COMPLETED", True, None)


def test_a_run_that_is_done_or_was_never_sent_needs_no_slurm(tmp_path: Path) -> None:
    done = make_slurm_run(tmp_path / "done", done=DONE, end=end("done", "done"))
    unsent = make_slurm_run(tmp_path / "unsent", sent_at_all=False, attempts=0)
    programs = slurm(DOWN)
    assert look_once(done, programs, lambda: NOW)[1].state == "COMPLETED"
    assert look_once(unsent, programs, lambda: NOW)[1].state == "FAILED"
    assert programs.calls == []


def test_the_accounting_is_not_asked_about_an_end_that_the_records_tell(tmp_path: Path) -> None:
    run = make_slurm_run(tmp_path / "chat-1", end=end("fail", "failed"))
    programs = slurm(UNKNOWN_ID)
    assert look_once(run, programs, lambda: NOW)[1].state == "FAILED"
    assert [argv[0] for argv in programs.calls] == ["squeue"]


def test_a_silent_slurm_is_told_unless_the_run_has_ended(tmp_path: Path) -> None:
    open_, ended = make_slurm_run(tmp_path / "a"), make_slurm_run(tmp_path / "b", end=end("fail", "failed"))
    assert "Unable to contact" in str(look_once(open_, slurm(DOWN), lambda: NOW)[2])
    assert look_once(ended, slurm(DOWN), lambda: NOW)[2] is None


def test_a_job_whose_number_was_lost_is_found_and_written_down(tmp_path: Path) -> None:
    run = make_slurm_run(tmp_path / "chat-1", job_id=None, attempts=0)
    named = Says(f"30+0|2027-01-15T08:00:00|{run.script}\n30+1|2027-01-15T08:00:00|{run.script}\n")
    _, status, _ = look_once(run, slurm(named, RUNS), lambda: NOW)
    assert (status.state, status.job_id) == ("RUNNING", "30")
    state = read_state(run)
    assert state is not None
    assert state.job_id == "30"


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="was removed"):
        look_once(RunDir(tmp_path / "gone"), slurm(RUNS))


# All


def test_one_question_for_all_runs(tmp_path: Path) -> None:
    runs = [make_slurm_run(tmp_path / f"open-{n}", job_id=str(n)) for n in (30, 31, 32)]
    runs += [make_slurm_run(tmp_path / "failed", job_id="40", end=end("fail", "failed"))]
    runs += [make_slurm_run(tmp_path / "done", job_id="41", done=DONE, end=end("done", "done"))]
    programs = slurm(RUNS, sacct=Says("31+0|FAILED|n|chat-1\n31+1|FAILED|n|chat-1\n"))
    statuses, silent = look_at_all(runs, programs, lambda: NOW)
    assert [status.state for status in statuses] == ["RUNNING", "FAILED", "UNKNOWN", "FAILED", "COMPLETED"]
    assert [(argv[0], argv[argv.index("-j") + 1]) for argv in programs.calls] == [
        ("squeue", "30,31,32"), ("sacct", "31,32"),
    ]  # fmt: skip
    assert silent is None


def test_where_slurm_is_silent_the_rows_that_need_it_say_so(tmp_path: Path) -> None:
    runs = [make_slurm_run(tmp_path / "open"), make_slurm_run(tmp_path / "failed", end=end("fail", "failed"))]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("{}")
    statuses, silent = look_at_all([*runs, RunDir(tmp_path / "broken")], slurm(DOWN), lambda: NOW)
    assert [status.state for status in statuses] == ["UNKNOWN", "FAILED", "UNKNOWN"]
    assert "Slurm does not answer" in str(statuses[0].reason)
    assert "plan.json" in str(statuses[2].reason)
    assert "Unable to contact" in str(silent)


def test_two_hundred_runs_are_listed_in_a_second(tmp_path: Path) -> None:
    runs = []
    for number in range(200):
        ended = {"end": end("fail", "failed"), "failure": failed("raised")} if number % 2 else {}
        runs.append(make_slurm_run(tmp_path / f"run-{number}", job_id=str(number), heartbeats=beats(5), **ended))
    programs = slurm(Says("0+0|RUNNING|0|N/A|n|chat-1|None\n"))
    began = time.process_time()
    statuses, _ = look_at_all(runs, programs, lambda: NOW)
    assert time.process_time() - began < 1
    assert (len(statuses), len(programs.called("squeue")), len(programs.called("sacct"))) == (200, 1, 1)


# Again and again


def looks(run: RunDir, programs: FakeSlurm, seconds: float, clock: Clock | None = None) -> list[Any]:
    """Looks twice a second, for so long."""
    clock = clock or Clock()
    look, found = Look(run, programs, clock, at_once), []
    until = clock.now + seconds
    while clock.now < until:
        found.append(look()[1])
        clock.now += 0.5
    return found


def test_slurm_is_asked_often_after_news_and_else_seldom(run: RunDir) -> None:
    programs = slurm(RUNS)
    found = looks(run, programs, 30)
    assert {status.state for status in found} == {"RUNNING"}
    assert 14 <= len(programs.called("squeue")) <= 17
    programs = slurm(RUNS)
    looks(run, programs, 630)
    assert 14 + 60 <= len(programs.called("squeue")) <= 17 + 60


def test_a_new_attempt_is_news(run: RunDir) -> None:
    clock, programs = Clock(), slurm(RUNS)
    look = Look(run, programs, clock, at_once)
    for _ in range(200):
        look()
        clock.now += 0.5
    before = len(programs.calls)
    run.attempt(2).mkdir()
    for _ in range(20):
        look()
        clock.now += 0.5
    assert len(programs.calls) - before >= 4


def test_the_end_is_seen_and_slurm_is_left_alone_then(run: RunDir) -> None:
    def ends() -> Says:
        write_record(run, "done", DONE)
        write_record(run, "end", end("done", "done"))
        return ENDED

    programs = slurm(RUNS, RUNS, ends)
    found = looks(run, programs, 60)
    assert (found[0].state, found[-1].state, found[-1].ended) == ("RUNNING", "COMPLETED", True)
    assert len(programs.calls) == 3


def test_a_run_that_is_done_has_ended_whatever_slurm_said_last(run: RunDir) -> None:
    clock = Clock()
    look = Look(run, slurm(RUNS), clock, at_once)
    assert look()[1].state == "RUNNING"
    write_record(run, "done", DONE)
    assert look()[1].state == "RUNNING", "its batch script goes on"
    write_record(run, "end", end("done", "done"))
    found = look()[1]
    assert (found.state, found.ended) == ("COMPLETED", True)


def test_a_slurm_that_is_silent_for_a_while_is_waited_for(run: RunDir) -> None:
    found = looks(run, slurm(RUNS, DOWN, DOWN, DOWN, RUNS), 60)
    states = [status.state for status in found]
    assert states[0] == states[-1] == "RUNNING"
    assert "UNKNOWN" in states
    assert not any(status.ended for status in found)


def test_a_slurm_that_is_silent_for_ever_is_given_up(tmp_path: Path, run: RunDir) -> None:
    clock = Clock()
    with pytest.raises(SlurmSilentError, match="Unable to contact"):
        looks(run, slurm(DOWN), 3600, clock)
    assert 600 <= clock.now - NOW <= 610
    living = make_slurm_run(tmp_path / "living", heartbeats=beats(-3600))
    assert looks(living, slurm(DOWN), 1200)[-1].state == "RUNNING", "whose ranks live has a future"


def test_a_slurm_that_hangs_stops_nobody(run: RunDir) -> None:
    clock, started = Clock(), []
    look = Look(run, slurm(RUNS), clock, started.append)
    look._answered.set()  # the first look does not wait in this test
    for _ in range(100):
        assert look()[1].state == "UNKNOWN"
        clock.now += 0.5
    assert len(started) == 1, "no second question while one is open"
    started[0]()
    assert look()[1].state == "RUNNING"


def test_an_answer_about_an_earlier_job_is_none_about_the_present_one(tmp_path: Path) -> None:
    run = make_slurm_run(tmp_path / "chat-1", job_id="30")
    clock, started = Clock(), []

    def background(work: Callable[[], None]) -> None:
        started.append(work) if started else (started.append(work), work())

    look = Look(run, slurm(Says(ENDED.stdout)), clock, background)
    assert look()[1].ended
    make_slurm_run(tmp_path / "other", job_id="31")
    run.state.write_text((tmp_path / "other" / "state.json").read_text())
    found = look()[1]
    assert (found.state, found.ended, found.job_id) == ("UNKNOWN", False, "31")

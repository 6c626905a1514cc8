"""Cancel: from another process, during the run, after it, twice, and when nobody listens."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Project
from run_folders import ELSEWHERE, alive, end, make_run, state_of
from test_submit import FOREVER, assert_nothing_left, end_of, wait_until, written

from kd_launch import commands
from kd_launch.errors import CheckError
from kd_launch.local.processes import identify
from kd_launch.run_dir import RunDir
from kd_launch.runs.asking import look_at_all
from kd_launch.runs.cancel import cancel
from kd_launch.runs.state import read_state, write_state


def ended(run: Path) -> tuple[str, bool]:
    """Cancels a run: its state then, and whether it had ended before."""
    outcome = cancel(RunDir(run), commands.run)
    statuses, _ = look_at_all([RunDir(run)], commands.run)
    return statuses[0].state, outcome.had_ended


def test_a_running_run_from_another_process(project: Project) -> None:
    run = project.submit(rank0=[["beat", 1], *FOREVER], rank1=["child", ["child", True], ["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    done = project.call("cancel", run.name)
    assert (done.returncode, done.stdout) == (0, f"{run.name} CANCELLED\n"), done.stderr
    # At once: what is left now is left for ever. The escaped one lives in a session of its own.
    assert project.processes() == {}
    found = end_of(run)
    assert (found["cancelled"], found["exit_codes"]) == (True, [-signal.SIGTERM, -signal.SIGTERM])
    assert project.status(run)["state"] == "CANCELLED"
    assert project.status(run)["failure"] is None


def test_twice_and_after_the_end(project: Project) -> None:
    run = project.submit_impatiently(every=FOREVER)
    assert project.call("cancel", str(run)).stdout == f"{run.name} CANCELLED\n"
    before = RunDir(run).end_record(1).read_bytes()
    again = project.call("cancel", str(run))
    assert (again.returncode, again.stdout) == (0, f"{run.name} has already ended: CANCELLED\n")
    assert RunDir(run).end_record(1).read_bytes() == before


def test_at_the_very_beginning(project: Project) -> None:
    """The ranks are not yet themselves, or not yet there."""
    run = project.submit_impatiently(every=FOREVER)
    assert ended(run) == ("CANCELLED", False)
    assert_nothing_left(project)


def test_ranks_that_are_deaf(project: Project) -> None:
    run = project.submit_impatiently(every=["ignore_term", ["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00000.json")
    written(run, "heartbeats/rank-00001.json")
    assert ended(run) == ("CANCELLED", False)
    assert end_of(run)["exit_codes"] == [-signal.SIGKILL, -signal.SIGKILL]
    assert_nothing_left(project)


def test_a_controller_that_is_stopped(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot do its part: then the ranks are killed, and the record is written, in its place."""
    monkeypatch.setattr("kd_launch.runs.cancel.CONTROLLER_S", 0.2)
    run = project.submit_impatiently(every=[["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    os.kill(json.loads((run / "state.json").read_text())["controller"]["pid"], signal.SIGSTOP)
    assert ended(run) == ("CANCELLED", False)
    assert end_of(run)["exit_codes"] == [None, None]
    assert_nothing_left(project)


def test_a_run_whose_plan_is_damaged_can_be_ended(project: Project) -> None:
    run = project.submit_impatiently(every=[["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    (run / "plan.json").write_text("{")
    done = project.call("cancel", run.name)
    assert (done.returncode, done.stdout) == (0, f"{run.name} is ended\n"), done.stderr
    assert done.stderr.startswith("warning: its state cannot be told: ")
    assert_nothing_left(project)


def test_a_record_is_written_though_nobody_knows_how_many_ranks_there_were(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_launch.runs.cancel.CONTROLLER_S", 0.2)
    run = project.submit_impatiently(every=[["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    (run / "plan.json").write_text("{")
    os.kill(json.loads((run / "state.json").read_text())["controller"]["pid"], signal.SIGSTOP)
    assert not cancel(RunDir(run), commands.run).had_ended
    assert end_of(run)["exit_codes"] == []
    assert_nothing_left(project)


def test_a_run_whose_controller_was_killed_keeps_its_state(project: Project) -> None:
    run = project.submit_impatiently(every=["child", "ignore_term", ["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    written(run, "heartbeats/rank-00000.json")
    pid = json.loads((run / "state.json").read_text())["controller"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: project.status(run)["ended"])
    assert ended(run) == ("FAILED", True)
    assert_nothing_left(project)


def test_no_other_process_is_touched(tmp_path: Path) -> None:
    """The controller's number was given to a later process: this one."""
    run = make_run(tmp_path / "run", replace(alive(), start_time=1))
    assert ended(run.path) == ("FAILED", True)


def test_a_run_that_was_never_started(tmp_path: Path) -> None:
    assert ended(make_run(tmp_path / "run", started=False).path) == ("PENDING", True)


def test_a_run_on_another_machine(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ELSEWHERE)
    with pytest.raises(CheckError, match="runs on elsewhere: give `kd-launch cancel run` there"):
        cancel(run, commands.run)
    assert not run.end_record(1).exists()
    over = make_run(tmp_path / "ended", ELSEWHERE, end=end(cancelled=True))
    assert cancel(over, commands.run).had_ended


def test_a_run_folder_that_was_moved_is_still_the_same_run(project: Project) -> None:
    run = project.submit_impatiently(every=[["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    moved = project.folder / "moved"
    run.rename(moved)
    cancel(RunDir(moved), commands.run)
    assert_nothing_left(project)


def test_the_helpers_of_these_tests_agree(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", alive())
    write_state(run, state_of(run, alive(), 5.0))
    state = read_state(run)
    assert state is not None
    assert state.controller == identify(os.getpid())

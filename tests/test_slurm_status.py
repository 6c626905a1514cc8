"""What a run on Slurm is, in every window between its submission and its being forgotten."""

from pathlib import Path
from typing import Any

import pytest
from render_cases import layout_of, role
from slurm_runs import (
    HET,
    JOINT,
    NAME,
    NOW,
    SILENT,
    UNKNOWN_JOB,
    accounted,
    beats,
    end,
    failed,
    make_slurm_run,
    queued,
)

from kd_launch.plan import Layout, Role
from kd_launch.runs.facts import gather
from kd_launch.runs.role_nodes import split
from kd_launch.runs.slurm_status import LAG_S, Asked
from kd_launch.runs.status import Status, build

DONE = {"time": NOW, "step": 1000}
NEVER = "made, but never started: its submission was cut off; remove the folder and submit again"
CUT_OFF = "Slurm has no job of it: its submission was cut off; `kd-launch resume` sends it again"
BOTH_RUN = queued("30+0|RUNNING|None|big[1-2]", "30+1|RUNNING|None|small1")
BOTH_WAIT = queued("30+0|PENDING|Resources", "30+1|PENDING|Resources")


def status(folder: Path, asked: Asked, **records: Any) -> Status:
    run = make_slurm_run(folder / NAME, **records)
    return build(gather(run, NOW), asked)


# While Slurm holds the job


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        (("30+0|PENDING|Priority", "30+1|PENDING|Resources"), "PENDING"),
        (("30+0|RUNNING|None", "30+1|RUNNING|None"), "RUNNING"),
        (("30+0|CONFIGURING|None", "30+1|RUNNING|None"), "PENDING"),
        (("30+0|RUNNING|None", "30+1|CANCELLED|None"), "CANCELLED"),
        (("30+0|RUNNING|None", "30+1|TIMEOUT|TimeLimit"), "TIMEOUT"),
        (("30+0|COMPLETING|None", "30+1|NODE_FAIL|None"), "NODE_FAIL"),
        (("30+0|COMPLETING|None", "30+1|PENDING|BeginTime"), "PENDING"),
        (("30+0|COMPLETED|None", "30+1|COMPLETING|None"), "RUNNING"),
        (("30+0|REQUEUE_HOLD|JobHeldUser", "30+1|REQUEUE_HOLD|JobHeldUser"), "REQUEUED"),
        (("30+0|RUNNING|None", "30+1|MELTING|None"), "UNKNOWN"),
    ],
)
def test_a_job_that_slurm_holds_is_as_its_worst_component_and_has_not_ended(
    tmp_path: Path, rows: tuple[str, ...], state: str
) -> None:
    found = status(tmp_path, queued(*rows))
    assert (found.state, found.ended) == (state, False)


@pytest.mark.parametrize(
    "records",
    [
        {"done": DONE, "end": end("done", "done")},
        {"end": end("fail", "failed"), "failure": failed("raised")},
        {"cancelled": {"job_id": "30", "time": NOW}},
    ],
)
def test_no_record_ends_a_job_that_slurm_holds(tmp_path: Path, records: dict[str, Any]) -> None:
    found = status(tmp_path, BOTH_RUN, **records)
    assert (found.state, found.ended) == ("RUNNING", False)


def test_components_say_for_themselves_what_slurm_says_of_them(tmp_path: Path) -> None:
    found = status(tmp_path, queued("30+0|COMPLETING|None|big2", "30+1|TIMEOUT|TimeLimit|small1"))
    teacher, student = found.components
    assert (teacher.role, teacher.job_id, teacher.het_group) == (Role.TEACHER, "30+0", 0)
    assert (teacher.state, teacher.nodes, teacher.reason) == ("RUNNING", ["big2"], "COMPLETING")
    assert (student.job_id, student.het_group, student.state, student.reason) == ("30+1", 1, "TIMEOUT", "TimeLimit")


def test_a_waiting_job_starts_at_the_latest_of_its_components_estimates(tmp_path: Path) -> None:
    early, late = "2027-01-15T09:30:00", "2027-01-15T11:00:00"
    found = status(tmp_path, queued(f"30+0|PENDING|Priority||{late}", f"30+1|PENDING|Resources||{early}"), attempts=0)
    assert [component.start_estimate for component in found.components] == [late, early]
    assert [component.reason for component in found.components] == ["Priority", "Resources"]
    assert (found.start_estimate, found.attempt, found.way_on) == (late, 0, None)


def test_a_running_job_has_a_start_but_no_estimate(tmp_path: Path) -> None:
    found = status(tmp_path, queued("30+0|RUNNING|None|big[1-2]|2027-01-15T09:30:00", "30+1|RUNNING|None"))
    assert found.start_estimate is None


# When Slurm has let go of it


FINAL = [
    (("COMPLETED", "COMPLETED"), {"done": DONE, "end": end("done", "done")}, "COMPLETED", None),
    (("COMPLETED", "COMPLETED"), {"done": DONE}, "COMPLETED", None),
    (("FAILED", "CANCELLED by 0"), {"done": DONE}, "COMPLETED", None),
    (
        ("COMPLETED", "COMPLETED"), {}, "FAILED",
        "Slurm says COMPLETED, but the run left no record of a finished student",
    ),
    (("COMPLETED", "COMPLETED"), {"end": end("fail", "incomplete", "no done.json")}, "FAILED", "no done.json"),
    (("COMPLETED", "TIMEOUT"), {}, "TIMEOUT", None),
    (("TIMEOUT", "TIMEOUT"), {"end": end("fail", "taken", "Slurm ends it")}, "TIMEOUT", "Slurm ends it"),
    (("FAILED", "FAILED"), {"end": end("fail", "time_limit", "too short")}, "TIMEOUT", "too short"),
    (("FAILED", "FAILED"), {"end": end("fail", "failed", "it raised")}, "FAILED", "it raised"),
    (("FAILED", "CANCELLED by 1000"), {"end": end("fail", "taken")}, "CANCELLED", "for a reason"),
    (("FAILED", "FAILED"), {"cancelled": {"job_id": "30"}}, "CANCELLED", None),
    (("FAILED", "FAILED"), {"cancelled": {"job_id": None}}, "CANCELLED", None),
    (("FAILED", "FAILED"), {"cancelled": {"job_id": "29"}}, "FAILED", None),
    (("FAILED", "FAILED"), {"end": end("fail", "cancelled")}, "CANCELLED", None),
    (("PREEMPTED", "CANCELLED by 0"), {"end": end("fail", "taken")}, "PREEMPTED", "for a reason"),
    (("NODE_FAIL", "FAILED"), {}, "NODE_FAIL", None),
    (("FAILED", "OUT_OF_MEMORY"), {}, "OUT_OF_MEMORY", None),
    (
        ("FAILED", "FAILED"), {"end": end("requeue", "failed", "a node was lost")}, "FAILED",
        "a node was lost; it was to be requeued, but Slurm has ended it",
    ),
]  # fmt: skip


@pytest.mark.parametrize("answers", [queued, accounted])
@pytest.mark.parametrize(("words", "records", "state", "reason"), FINAL)
def test_a_job_that_has_ended(
    tmp_path: Path, answers: Any, words: tuple[str, str], records: dict[str, Any], state: str, reason: str | None
) -> None:
    rest = "|None" if answers is queued else ""
    found = status(tmp_path, answers(*(f"30+{i}|{word}{rest}" for i, word in enumerate(words))), **records)
    assert (found.state, found.ended, found.reason) == (state, True, reason)


def test_a_done_run_is_completed_in_all_its_components(tmp_path: Path) -> None:
    found = status(tmp_path, accounted("30+0|COMPLETED|big[1-2]", "30+1|FAILED|small1"), done=DONE)
    assert [component.state for component in found.components] == ["COMPLETED", "COMPLETED"]
    assert [component.nodes for component in found.components] == [["big1", "big2"], ["small1"]]


# When the accounting lags behind, or is all there is


@pytest.mark.parametrize(
    "rows",
    [
        ("30|PENDING|big1",),
        ("30|COMPLETED|big1",),
        ("30+0|RUNNING|big[1-2]", "30+1|RUNNING|small1"),
        ("30+0|REQUEUED|big[1-2]", "30+1|REQUEUED|small1"),
    ],
)
def test_an_accounting_that_lags_behind_is_not_believed(tmp_path: Path, rows: tuple[str, ...]) -> None:
    behind = status(tmp_path / "a", accounted(*rows), heartbeats=beats(20, ended="TERM"))
    assert (behind.state, behind.ended) == ("UNKNOWN", False)
    assert "it lags behind" in str(behind.reason)
    known = status(tmp_path / "b", accounted(*rows), heartbeats=beats(20), end=end("fail", "failed", "it raised"))
    assert (known.state, known.ended, known.reason) == ("FAILED", True, "it raised")


def test_nobody_waits_for_ever_for_an_accounting_that_never_learns_of_the_end(tmp_path: Path) -> None:
    found = status(tmp_path, accounted("30+0|RUNNING", "30+1|RUNNING"), heartbeats=beats(LAG_S + 1))
    assert (found.state, found.ended) == ("UNKNOWN", True)
    assert found.reason == (
        "squeue no longer knows job 30, and sacct still says RUNNING, and the run left no word of its end"
    )


# When Slurm does not know the job


@pytest.mark.parametrize(
    ("records", "state", "ended", "reason"),
    [
        ({"sent_at_all": False, "sent": 10.0, "attempts": 0}, "PENDING", False, "made, but not started"),
        ({"sent_at_all": False, "attempts": 0}, "FAILED", True, NEVER),
        (
            {"sent": 10.0, "attempts": 0}, "PENDING", False,
            "submitted 10 s ago; Slurm does not list it yet",
        ),
        (
            {"sent": 10.0, "attempts": 0, "job_id": None}, "PENDING", False,
            "submitted 10 s ago; Slurm does not list it yet",
        ),
        ({"attempts": 0, "job_id": None}, "FAILED", True, CUT_OFF),
        ({"attempts": 0, "job_id": None, "cancelled": {"job_id": None}}, "CANCELLED", True, CUT_OFF),
        ({"attempts": 0}, "UNKNOWN", True, "Slurm does not know job 30, and it has begun no attempt"),
        ({"attempts": 0, "cancelled": {"job_id": "30"}}, "CANCELLED", True, None),
        ({"cancelled": {"job_id": "30"}}, "CANCELLED", True, None),
        ({"done": DONE}, "COMPLETED", True, None),
        ({"end": end("fail", "failed", "it raised")}, "FAILED", True, "it raised"),
        ({"end": end("fail", "time_limit", "too short")}, "TIMEOUT", True, "too short"),
        ({"failure": failed("killed")}, "FAILED", True, "Slurm does not know job 30"),
        (
            {"end": end("requeue", "failed", "a node was lost")}, "UNKNOWN", True,
            "Slurm does not know job 30, and the last it said was: a node was lost",
        ),
        (
            {"leave": {"signal": "USR2"}}, "UNKNOWN", True,
            "Slurm does not know job 30, and its ranks were last told to leave, by USR2",
        ),
        ({}, "UNKNOWN", True, "Slurm does not know job 30, and the run left no word of its end"),
    ],
)  # fmt: skip
def test_of_a_job_that_slurm_does_not_know_the_runs_last_record_tells(
    tmp_path: Path, records: dict[str, Any], state: str, ended: bool, reason: str | None
) -> None:
    found = status(tmp_path, UNKNOWN_JOB, **records)
    assert (found.state, found.ended, found.reason) == (state, ended, reason)


def test_a_run_whose_ranks_live_has_not_ended_whatever_slurm_says(tmp_path: Path) -> None:
    found = status(tmp_path, UNKNOWN_JOB, heartbeats=beats(5))
    assert (found.state, found.ended) == ("UNKNOWN", False)
    assert "is this the cluster it runs on?" in str(found.reason)
    other_attempt = status(tmp_path / "b", UNKNOWN_JOB, heartbeats=beats(5, attempt=1), attempts=2)
    assert other_attempt.ended


def test_a_number_that_is_another_jobs_by_now_is_not_ours(tmp_path: Path) -> None:
    run = make_slurm_run(tmp_path / NAME)
    facts = gather(run, NOW)
    theirs = queued("30|RUNNING|None")
    assert theirs.answer is not None
    object.__setattr__(theirs.answer.components[0], "name", "theirs")
    found = build(facts, theirs)
    assert (found.state, found.ended) == ("UNKNOWN", True)
    assert str(found.reason).startswith("job 30 is another run's by now, theirs")


# After a resume


def test_what_an_earlier_job_left_says_nothing_of_the_present_one(tmp_path: Path) -> None:
    job = {"job_id": "12", "time": NOW - 5000}
    left = {"job": job, "end": end("fail", "failed"), "failure": failed("raised"), "cancelled": {"job_id": "12"}}
    found = status(tmp_path, UNKNOWN_JOB, sent=10.0, **left)
    assert (found.state, found.ended) == ("PENDING", False)
    assert found.failure is not None, "the latest failure is shown at any time"
    silent = status(tmp_path / "b", SILENT, sent=10.0, **left)
    assert (silent.state, silent.ended) == ("UNKNOWN", False)


def test_an_attempt_without_a_job_record_is_the_jobs_in_whose_time_it_was_begun(tmp_path: Path) -> None:
    ours = status(tmp_path / "a", UNKNOWN_JOB, job={}, end=end("fail", "failed", "it raised"))
    assert (ours.state, ours.reason) == ("FAILED", "it raised")
    before = status(tmp_path / "b", UNKNOWN_JOB, job={}, end=end("fail", "failed"), sent=100.0)
    assert before.state == "UNKNOWN"


# When Slurm does not answer


@pytest.mark.parametrize(
    ("records", "state", "ended"),
    [
        ({"done": DONE}, "COMPLETED", True),
        ({"end": end("fail", "failed")}, "FAILED", True),
        ({"end": end("fail", "taken")}, "UNKNOWN", False),
        ({"end": end("requeue", "preempted")}, "UNKNOWN", False),
        ({"heartbeats": beats(5)}, "RUNNING", False),
        ({"heartbeats": beats(61)}, "UNKNOWN", False),
        ({"heartbeats": beats(5, ended="TERM")}, "UNKNOWN", False),
        ({"cancelled": {"job_id": "30"}}, "UNKNOWN", False),
        ({"attempts": 0, "sent": 5.0}, "UNKNOWN", False),
    ],
)
def test_without_slurm_only_the_runs_own_records_count(
    tmp_path: Path, records: dict[str, Any], state: str, ended: bool
) -> None:
    found = status(tmp_path, SILENT, **records)
    assert (found.state, found.ended) == (state, ended)
    if not ended:
        assert found.reason == "Slurm does not answer: squeue gave no answer within 30 s"


# Between attempts


def requeued(tmp_path: Path, reason: str, failure: dict[str, Any], layout: Layout = HET) -> Status:
    rows = (f"30+0|PENDING|{reason}", f"30+1|PENDING|{reason}") if layout is HET else (f"30|PENDING|{reason}",)
    why = end("requeue", "failed", "teacher rank 2 on big2 (silent): no sign of life; requeued")
    return status(tmp_path, queued(*rows), end=why, failure=failure, layout=layout)


def test_between_attempts_the_last_one_is_told_and_nothing_has_ended(tmp_path: Path) -> None:
    found = requeued(tmp_path, "BeginTime", failed("killed"))
    assert (found.state, found.ended, found.attempt) == ("PENDING", False, 1)
    assert found.attempts is not None
    assert [(one.attempt, one.outcome, one.next) for one in found.attempts] == [(1, "failed", "requeue")]
    assert found.failure is not None
    assert (found.failure.kind, found.way_on) == ("killed", None)


@pytest.mark.parametrize(
    ("reason", "failure", "line"),
    [
        ("Resources", failed("silent"), "scontrol update JobId=30+0 ExcNodeList=big2"),
        ("Priority", failed("absent"), "scontrol update JobId=30+0 ExcNodeList=big2"),
        ("Resources", failed("silent", 5, "small1.site.org"), "scontrol update JobId=30+1 ExcNodeList=small1"),
        ("Resources", failed("killed"), None),
        ("Resources", failed("raised"), None),
        ("BeginTime", failed("silent"), None),
        ("ReqNodeNotAvail, UnavailableNodes:big2", failed("killed"), "scontrol update JobId=30+0 ExcNodeList=big2"),
        ("ReqNodeNotAvail, UnavailableNodes:big[1-3]", failed("killed"), "scontrol update JobId=30+0 ExcNodeList=big2"),
        ("ReqNodeNotAvail, UnavailableNodes:big20", failed("killed"), None),
        ("job requeued in held state", failed("silent"), "scontrol release 30"),
        ("JobHeldUser", failed("silent"), "scontrol release 30"),
    ],
)  # fmt: skip
def test_the_line_that_lets_a_requeued_job_start(
    tmp_path: Path, reason: str, failure: dict[str, Any], line: str | None
) -> None:
    assert requeued(tmp_path, reason, failure).way_on == line


def test_a_job_of_one_component_is_freed_by_its_own_number(tmp_path: Path) -> None:
    found = requeued(tmp_path, "Resources", failed("silent", rank=5, host="big3"), JOINT)
    assert found.way_on == "scontrol update JobId=30 ExcNodeList=big3"


def test_a_job_that_runs_again_needs_no_help(tmp_path: Path) -> None:
    assert status(tmp_path, BOTH_RUN, end=end("requeue", "failed"), failure=failed("silent")).way_on is None


# Which nodes


def test_nodes_of_a_job_of_one_component_are_told_by_the_ranks_and_else_by_the_plan(tmp_path: Path) -> None:
    asked = queued("30|RUNNING|None|big[1-3]")
    planned = status(tmp_path / "a", asked, layout=JOINT)
    assert [component.nodes for component in planned.components] == [["big1", "big2"], ["big3"]]
    assert [component.het_group for component in planned.components] == [None, None]
    swapped = [{**beat, "host": {"big1": "big3", "big2": "big2", "small1": "big1"}[beat["host"]]} for beat in beats(1)]
    seen = status(tmp_path / "b", asked, layout=JOINT, heartbeats=swapped)
    assert [component.nodes for component in seen.components] == [["big2", "big3"], ["big1"]]
    foreign = [{**beat, "host": "gateway"} for beat in beats(1)]
    assert status(tmp_path / "c", asked, layout=JOINT, heartbeats=foreign).components == planned.components


def test_a_node_that_is_shared_is_of_both_roles() -> None:
    shared = layout_of("ranks", role("big", 2, 3), role("big", 1, 2), shares_nodes=True, nodes=2)
    nodes = ["big1", "big2"]
    assert split(shared, 4, Role.TEACHER, nodes) == ["big1", "big2"]
    assert split(shared, 4, Role.STUDENT, nodes) == ["big2"]
    colocated = layout_of("ranks", role("big", 2, 4), role("big", 2, 4), placement="colocated", nodes=2)
    assert split(colocated, 4, Role.BOTH, nodes) == nodes


def test_without_slurm_the_ranks_hosts_are_what_is_known(tmp_path: Path) -> None:
    found = status(tmp_path, SILENT, heartbeats=beats(5))
    assert [component.nodes for component in found.components] == [["big1", "big2"], ["small1"]]
    assert [component.job_id for component in found.components] == ["30+0", "30+1"]

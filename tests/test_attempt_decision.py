"""What follows an attempt, by all that may be known of it."""

from dataclasses import replace
from typing import Any

import pytest

from kd_launch.attempt.decision import Ended, Policy, decide
from kd_launch.attempt.failures import FailureRecord, Kind
from kd_launch.attempt.history import AttemptRecord, Leave, Outcome

POLICY = Policy(max_requeues=None, max_failures_without_progress=3)
TAKEN_OUTSIDE: tuple[Kind, ...] = ("lost_peer", "killed", "silent", "stuck", "absent", "orphaned")


def failure(kind: Kind = "killed", time: float = 10.0) -> FailureRecord:
    return FailureRecord(attempt=1, kind=kind, role="student", rank=5, host="n2", error="why\nand more", time=time)


def ended(**changes: Any) -> Ended:
    """An attempt whose srun failed, and of which nothing else is known."""
    known: dict[str, Any] = dict.fromkeys(("done", "cancelled", "superseded"), False)
    known |= dict.fromkeys(("taken", "leave", "told_to_leave", "failure"))
    known |= {"number": 4, "srun_status": 137, "step": 0, "earlier": ()} | changes
    return Ended(**{"saved": known["step"], **known})


def attempt(number: int, outcome: Outcome | None, step: int = 0, **changes: Any) -> AttemptRecord:
    known = {"job_id": "12", "began": 1.0, "training_since": None, "ended": None, "next": None, "why": None}
    known |= {"leave": None, "failure": None, "done": False, "step": step, "saved": step}
    return AttemptRecord(**{"number": number, "outcome": outcome} | known | changes)


def word(e: Ended, policy: Policy = POLICY) -> tuple[str, str]:
    decision = decide(e, policy)
    return decision.next, decision.outcome


def test_a_done_run_is_done_whatever_else_is_known() -> None:
    assert word(ended(done=True, cancelled=True, taken="x", failure=failure("raised"))) == ("done", "done")


def test_what_was_cancelled_superseded_or_taken_is_never_requeued() -> None:
    assert word(ended(cancelled=True, failure=failure())) == ("fail", "cancelled")
    assert word(ended(superseded=True, failure=failure())) == ("fail", "taken")
    assert word(ended(taken="12+1 is CANCELLED", leave=Leave("TERM", 1))) == ("fail", "taken")
    assert "12+1 is CANCELLED" in decide(ended(taken="12+1 is CANCELLED"), POLICY).why


@pytest.mark.parametrize("kind", TAKEN_OUTSIDE)
def test_what_was_taken_from_outside_comes_back(kind: Kind) -> None:
    assert word(ended(failure=failure(kind))) == ("requeue", "failed")


@pytest.mark.parametrize("kind", ["raised", "exited"])
def test_what_the_next_attempt_would_do_again_stays(kind: Kind) -> None:
    assert word(ended(failure=failure(kind))) == ("fail", "failed")
    assert decide(ended(failure=failure(kind)), POLICY).why.startswith(f"student rank 5 on n2 ({kind}): why; the next")


def test_exit_0_without_the_done_record_is_a_failure() -> None:
    assert word(ended(srun_status=0)) == ("fail", "incomplete")
    assert "attempt 4 wrote no done.json" in decide(ended(srun_status=0), POLICY).why


@pytest.mark.parametrize(("signal", "outcome"), [("TERM", "preempted"), ("USR2", "time_limit")])
def test_ranks_that_were_told_to_leave_come_back(signal: str, outcome: str) -> None:
    leave = Leave(signal, time=5.0)
    assert word(ended(srun_status=0, leave=leave)) == ("requeue", outcome)
    assert word(ended(leave=leave)) == ("requeue", outcome)
    assert word(ended(told_to_leave=signal)) == ("requeue", outcome)
    assert word(ended(told_to_leave=signal, failure=failure("lost_peer"))) == ("requeue", outcome)


def test_a_failure_after_the_leave_only_follows_it() -> None:
    assert word(ended(leave=Leave("TERM", 5.0), failure=failure("raised", time=6.0))) == ("requeue", "preempted")
    assert word(ended(leave=Leave("TERM", 7.0), failure=failure("raised", time=6.0))) == ("fail", "failed")


@pytest.mark.parametrize(("kind", "next_"), [("killed", "requeue"), ("exited", "fail"), ("absent", "requeue")])
def test_a_rank_that_died_made_srun_tell_the_others_to_leave(kind: Kind, next_: str) -> None:
    """Its record may be younger: nobody wrote it until srun had ended."""
    assert word(ended(leave=Leave("TERM", 5.0), failure=failure(kind, time=6.0))) == (next_, "failed")


def test_failures_without_progress_end_it() -> None:
    failed = [attempt(1, "failed", step=10), attempt(2, "failed", step=10), attempt(3, "failed", step=9)]
    assert word(ended(failure=failure(), step=9, earlier=failed[:2])) == ("requeue", "failed")
    assert word(ended(failure=failure(), step=9, earlier=failed)) == ("fail", "failed")
    assert "failure 3 without progress" in decide(ended(failure=failure(), step=9, earlier=failed), POLICY).why
    assert word(ended(failure=failure(), step=11, earlier=failed)) == ("requeue", "failed")


def test_preemptions_neither_count_as_failures_nor_start_the_count_again() -> None:
    five_days = [attempt(n, "preempted", step=3) for n in range(1, 500)]
    assert word(ended(srun_status=0, leave=Leave("TERM", 1.0), step=3, earlier=five_days)) == ("requeue", "preempted")
    loop = [attempt(1, "failed"), attempt(2, "preempted"), attempt(3, "failed"), attempt(4, None)]
    assert word(ended(failure=failure(), earlier=loop)) == ("fail", "failed")


def test_an_attempt_that_its_batch_script_could_not_end_counts_by_its_record() -> None:
    lost = [attempt(n, None, failure=failure()) for n in (1, 2)]
    assert word(ended(failure=failure(), earlier=lost)) == ("fail", "failed")
    left = [replace(one, leave=Leave("TERM", 1.0)) for one in lost]
    assert word(ended(failure=failure(), earlier=left)) == ("requeue", "failed")


def test_requeues_are_counted_where_there_is_a_limit() -> None:
    before = [attempt(1, "preempted"), attempt(2, None)]
    leave = Leave("TERM", 1.0)
    assert word(ended(leave=leave, earlier=before), replace(POLICY, max_requeues=3)) == ("requeue", "preempted")
    assert word(ended(leave=leave, earlier=before), replace(POLICY, max_requeues=2)) == ("fail", "preempted")
    assert word(ended(leave=leave), replace(POLICY, max_requeues=0)) == ("fail", "preempted")


def test_steps_that_no_checkpoint_keeps_are_no_progress() -> None:
    failed = [attempt(n, "failed", step=40, saved=20) for n in (1, 2, 3)]
    assert word(ended(failure=failure(), step=60, saved=20, earlier=failed)) == ("fail", "failed")
    assert word(ended(failure=failure(), step=60, saved=40, earlier=failed)) == ("requeue", "failed")


def test_time_limits_bring_it_back_as_long_as_each_leaves_a_newer_checkpoint() -> None:
    five_days = [attempt(n, "time_limit", step=50 * n) for n in range(1, 40)]
    leave = Leave("USR2", 1.0)
    assert word(ended(srun_status=0, leave=leave, step=2000, earlier=five_days)) == ("requeue", "time_limit")
    stuck = ended(srun_status=0, leave=leave, step=2000, saved=1950, earlier=five_days)
    assert word(stuck) == ("fail", "time_limit")
    assert "after step 2000, and the newest checkpoint is of step 1950; the attempt before" in decide(stuck, POLICY).why


def test_a_second_time_limit_that_got_no_further_ends_it() -> None:
    first, leave = attempt(1, "time_limit", step=50), Leave("USR2", 1.0)
    again = ended(srun_status=0, leave=leave, step=50, earlier=[first, attempt(2, "preempted", step=9)])
    assert word(again) == ("fail", "time_limit")
    assert "raise time_limit" in decide(again, POLICY).why
    assert word(replace(again, step=51, saved=51)) == ("requeue", "time_limit")
    assert word(replace(again, earlier=[first, attempt(2, "failed", step=9)])) == ("requeue", "time_limit")

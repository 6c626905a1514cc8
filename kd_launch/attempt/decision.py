"""What follows an attempt: what is known when its srun has ended becomes done, requeue or fail, and the reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from kd_launch.attempt.failures import FailureRecord, Kind
from kd_launch.attempt.history import AttemptRecord, Leave, Next, Outcome

# No rank that leaves ends in such a way; srun, which sees it, tells the others to leave.
_ENDS_THE_OTHERS: tuple[Kind, ...] = ("killed", "exited", "absent")


@dataclass(frozen=True)
class Policy:
    """How often a run may come back."""

    max_requeues: int | None
    """None: no limit."""
    max_failures_without_progress: int


@dataclass(frozen=True)
class Ended:
    """All that is known of an attempt when its srun has ended."""

    number: int
    srun_status: int | None
    done: bool
    cancelled: bool
    """`cancel` was asked to end this job."""
    superseded: bool
    """A later attempt of the run has begun: this batch script is left over from before a requeue."""
    taken: str | None
    """What Slurm does with the job by itself; None: it calls every component RUNNING."""
    leave: Leave | None
    told_to_leave: str | None
    """The signal (TERM, USR2) that ended a rank before it could write that it leaves."""
    failure: FailureRecord | None
    step: int
    """The furthest that this attempt reached."""
    saved: int
    """The step of the run's newest checkpoint now: progress is that there is a newer one."""
    earlier: Sequence[AttemptRecord]
    """Attempts of the same job before this one, in order."""


@dataclass(frozen=True)
class Decision:
    """What the batch script does now."""

    next: Next
    outcome: Outcome
    why: str


def decide(ended: Ended, policy: Policy) -> Decision:
    """What follows."""
    if ended.done:
        return Decision("done", "done", "the run is done")
    if ended.cancelled:
        return Decision("fail", "cancelled", "the run was cancelled")
    if ended.superseded:
        return Decision("fail", "taken", "a later attempt of this run has begun: this one has no say any more")
    if ended.taken is not None:
        return Decision("fail", "taken", f"Slurm itself ends or requeues the job: {ended.taken}")
    outcome, words = _cause(ended)
    refusal = _refusal(ended, policy, outcome)
    if refusal is not None:
        return Decision("fail", outcome, f"{words}; {refusal}")
    return Decision("requeue", outcome, f"{words}; requeued")


def _cause(ended: Ended) -> tuple[Outcome, str]:
    """What ended the attempt, and in words."""
    left_by = _left_by(ended)
    if left_by == "USR2":
        return "time_limit", f"the time limit came near after step {ended.step}{_kept(ended)}"
    if left_by is not None:
        return "preempted", f"it was told to leave ({left_by}) after step {ended.step}{_kept(ended)}"
    if ended.failure is not None:
        return "failed", describe(ended.failure)
    if ended.srun_status == 0:
        return "incomplete", f"every rank left with exit code 0, but attempt {ended.number} wrote no done.json"
    return "failed", f"srun ended with status {ended.srun_status}, and no rank is known to have failed"


def _kept(ended: Ended) -> str:
    return f", and the newest checkpoint is of step {ended.saved}" if 0 < ended.saved < ended.step else ""


def _left_by(ended: Ended) -> str | None:
    """The signal by which the ranks were told to leave, where that ended the attempt.

    A rank that dies makes srun tell the others to leave, too: then its failure came first.
    """
    failure = ended.failure
    if ended.leave is None:
        return ended.told_to_leave if failure is None or not failure.explains else None
    if ended.srun_status == 0 or failure is None:
        return ended.leave.signal
    follows = failure.kind not in _ENDS_THE_OTHERS and failure.time >= ended.leave.time
    return ended.leave.signal if follows else None


def _refusal(ended: Ended, policy: Policy, outcome: Outcome) -> str | None:
    """Why the run does not come back; None when it does."""
    if outcome == "incomplete":
        return "the run is not done, and nothing says why"
    if outcome == "failed" and (ended.failure is None or not ended.failure.comes_back):
        return "the next attempt would fail in the same way"
    if outcome == "time_limit" and _reached_limit_before(ended):
        return (
            "the attempt before had no newer checkpoint either: no attempt gets on in this time; raise time_limit or "
            "signal_before_end_s and resume the run"
        )
    if policy.max_requeues is not None and len(ended.earlier) >= policy.max_requeues:
        return f"no requeue is left: max_requeues is {policy.max_requeues}"
    failures = failures_without_progress(ended) if outcome == "failed" else 0
    if failures >= policy.max_failures_without_progress:
        return (
            f"failure {failures} without progress, and max_failures_without_progress is "
            f"{policy.max_failures_without_progress}; see failures/ in the run folder"
        )
    return None


def failures_without_progress(ended: Ended) -> int:
    """How many attempts up to this one failed without leaving a newer checkpoint than those before; what was taken or
    told to leave in between neither counts nor starts the count again."""
    best, failures = 0, 0
    for saved, failed in [*((attempt.saved, _failed(attempt)) for attempt in ended.earlier), (ended.saved, True)]:
        if saved > best:
            best, failures = saved, 0
        elif failed:
            failures += 1
    return failures


def _failed(attempt: AttemptRecord) -> bool:
    """An attempt whose batch script could not say more counts by its failure record."""
    if attempt.outcome is not None:
        return attempt.outcome == "failed"
    return attempt.failure is not None and attempt.leave is None


def _reached_limit_before(ended: Ended) -> bool:
    """Whether the last attempt that had its time ended at the time limit too, and this one has left nothing newer."""
    had_time = [attempt for attempt in ended.earlier if attempt.outcome not in (None, "taken", "preempted")]
    best = max((attempt.saved for attempt in ended.earlier), default=0)
    return bool(had_time) and had_time[-1].outcome == "time_limit" and ended.saved <= best


def describe(failure: FailureRecord) -> str:
    """One line about a failure."""
    first_line = failure.error.splitlines()[0] if failure.error else ""
    return f"{failure.role} rank {failure.rank} on {failure.host} ({failure.kind}): {first_line}"

"""Watches an attempt while its srun runs, and ends a step that would hold its nodes for nothing."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kd_launch.attempt.endings import first_failure
from kd_launch.attempt.evidence import gather, heartbeats_of, is_cancelled, is_superseded, srun_words
from kd_launch.attempt.failures import FailureRecord, write_failure
from kd_launch.attempt.place import Seats
from kd_launch.attempt.say import say
from kd_launch.attempt.verdicts import Limits, Verdict, Watched, anew, judge, observe
from kd_launch.errors import SpecError
from kd_launch.local.processes import ProcessIdentity, identify, is_alive, send
from kd_launch.run_dir import RunDir, write_json, write_whole

# How often it is asked whether srun lives, and how often the heartbeats are read.
SRUN_S = 0.2
LOOK_S = 2.0
FILES_PER_S = 100  # of a file system that others use too
# TERM makes srun kill every rank at once. Then it waits up to KillWait for ranks that no slurmstepd can reach.
PATIENCE_S = 10.0
# As much as a sign of life: an empty file a full disk takes.
_PROBE = bytes(4096)
# As srun's --wait, for a step that goes on after another step of the attempt has ended well.
OTHER_STEP_S = 60.0


@dataclass(frozen=True)
class Subject:
    """What is watched."""

    run: RunDir
    attempt: int
    seats: Seats
    limits: Limits
    sruns: tuple[ProcessIdentity, ...]
    """One; or one of each step, all of which live when the watch begins."""
    all_began: bool = True
    """False: a step had ended before the watch began."""


@dataclass(frozen=True)
class Reason:
    """Why the step is ended."""

    words: str
    record: FailureRecord | None = None
    """What a rank could not write itself."""


def subject_of(run: RunDir, attempt: int, seats: Seats, limits: Limits, pids: Sequence[int]) -> Subject:
    """The sruns that still live. One that has ended already leaves the others to be ended."""
    living = [identity for identity in map(identify, pids) if identity is not None]
    return Subject(run, attempt, seats, limits, tuple(living), len(living) == len(pids))


def write_job_record(run: RunDir, attempt: int, seats: Seats, now: float) -> None:
    place = seats.place
    components = {str(offset): number for offset, number in enumerate(place.components)}
    write_json(run.job_record(attempt), {
        "job_id": place.job_id, "components": components, "restarts": place.restarts, "host": place.host, "time": now,
    })  # fmt: skip


def watch(
    subject: Subject,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Reason | None:
    """Returns when every srun has ended; the reason, where the watch has ended it."""
    look_s = min(max(LOOK_S, subject.seats.layout.world_size / FILES_PER_S), subject.limits.silent / 5)
    watched, last_look, alone_since = Watched(), clock(), None
    while living := [srun for srun in subject.sruns if is_alive(srun)]:
        now = clock()
        if now - last_look >= look_s:
            # What passed while this machine slept, or its file system, is not held against any rank.
            seconds = watched.seconds + min(now - last_look, 3 * look_s)
            last_look = now
            if alone_since is None and _is_alone(subject, living):
                alone_since = now
            watched, reason = _consider(subject, watched, seconds, None if alone_since is None else now - alone_since)
            if reason is not None:
                _end(subject, living, reason, clock, sleep)
                return reason
        sleep(SRUN_S)
    return None


def _consider(subject: Subject, before: Watched, seconds: float, alone: float | None) -> tuple[Watched, Reason | None]:
    """One look at the run folder. One that fails is no reason to end anything, and none to stop looking."""
    try:
        watched = _look(subject, before, seconds)
        reason = _why_end(subject, watched, alone)
    except OSError as error:
        say(f"cannot look at {subject.run.path}: {error.strerror or error}")
        return before, None
    if reason is not None and reason.record is not None and not can_write(subject.run, subject.attempt):
        return anew(watched), None
    return watched, reason


def _look(subject: Subject, before: Watched, seconds: float) -> Watched:
    beats = heartbeats_of(subject.run, subject.attempt)
    return observe(before, beats, subject.run.start_record(subject.attempt).exists(), seconds)


def _is_alone(subject: Subject, living: Sequence[ProcessIdentity]) -> bool:
    """Whether one of several steps has ended."""
    return not subject.all_began or len(living) < len(subject.sruns)


def _why_end(subject: Subject, watched: Watched, alone: float | None) -> Reason | None:
    """Why to end the step now; None: let it run.

    Args:
        alone: seconds since another step of the attempt has ended.
    """
    run, attempt = subject.run, subject.attempt
    if is_superseded(run, attempt):
        return Reason("a later attempt of this run has begun")
    if is_cancelled(run, subject.seats.place.job_id):
        return Reason("the run was cancelled")
    if alone is not None and (alone > OTHER_STEP_S or srun_words(run, attempt).errors):
        return Reason("the other role's step has ended")
    verdict = judge(watched, subject.limits, subject.seats.layout.world_size)
    if verdict is None:
        return None
    record = _record_of(subject, watched, verdict)
    return Reason(f"{record.role} rank {record.rank} on {record.host} ({record.kind}): {record.error}", record)


def _record_of(subject: Subject, watched: Watched, verdict: Verdict) -> FailureRecord:
    """What srun has said of the first death explains the silence that follows it."""
    now = time.time()
    explained = first_failure(gather(subject.run, subject.attempt, subject.seats, None, now))
    if explained is not None:
        return explained
    sighting = watched.ranks.get(verdict.rank)
    host = sighting.beat.host if sighting else subject.seats.host_of(verdict.rank)
    return FailureRecord(
        attempt=subject.attempt, kind=verdict.kind, role=str(subject.seats.role_of(verdict.rank)), rank=verdict.rank,
        host=host, error=verdict.error, time=now,
    )  # fmt: skip


def can_write(run: RunDir, attempt: int) -> bool:
    """A full disk silences every rank, and none of them is to blame."""
    probe = run.attempt(attempt) / ".probe"
    try:
        write_whole(probe, _PROBE)
        probe.unlink()
    except OSError as error:
        say(f"signs of life are not judged while {run.path} cannot be written: {error.strerror}")
        return False
    return True


def _end(
    subject: Subject,
    living: Sequence[ProcessIdentity],
    reason: Reason,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    """Records why, then ends every srun and with it the ranks."""
    say(f"ends the ranks of attempt {subject.attempt}: {reason.words}")
    if reason.record is not None:
        try:
            write_failure(subject.run, reason.record)
        except (OSError, SpecError) as error:
            say(f"the failure record cannot be written: {error}")
    # A step of a later attempt has this one's number: srun would have Slurm kill that one.
    superseded = is_superseded(subject.run, subject.attempt)
    for srun in living:
        send(srun, signal.SIGKILL if superseded else signal.SIGTERM)
    deadline = clock() + PATIENCE_S
    while clock() < deadline and any(map(is_alive, living)):
        sleep(SRUN_S)
    for srun in living:
        send(srun, signal.SIGKILL)

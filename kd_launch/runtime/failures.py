"""The record of an attempt's first failure, as a rank of it writes it: its own, or that of a rank it misses."""

import os
import time
import traceback
from dataclasses import dataclass
from typing import Literal

from kd_launch.plan import Role
from kd_launch.run_dir import RunDir, write_failure
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.heartbeat import STILL_SECONDS, Beat, read_beats
from kd_launch.secret_names import without_secrets

Kind = Literal["raised", "lost_peer", "killed", "silent", "stuck", "absent", "orphaned"]

PATIENCE_SECONDS = STILL_SECONDS + 1
"""For a better record than that a peer was lost; by then the heartbeats of a rank that ended stand still."""


@dataclass(frozen=True)
class Failure:
    """What failed first."""

    kind: Kind
    rank: int
    role: Role
    host: str
    """ "unknown" of a rank that nobody has seen."""
    error: str
    traceback: str | None = None


# How torch words a connection that another rank's end has broken.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "connect failure",
    "ncclremoteerror",
    "connection was likely closed",
    "timed out waiting",
)


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone: then that rank's own record comes first."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST_PEER)


def record(run_dir: RunDir, attempt: int, failure: Failure) -> bool:
    """Writes the attempt's failure record unless a better one is there. Returns whether it did.

    What an error quotes of the environment's secrets is left out: the run folder is for every reader of its disk.
    """
    trace = failure.traceback and without_secrets(failure.traceback, os.environ)
    return write_failure(run_dir.failure(attempt), {
        "attempt": attempt, "kind": failure.kind, "role": str(failure.role), "rank": failure.rank,
        "host": failure.host, "error": without_secrets(failure.error, os.environ), "time": time.time(),
        "traceback": trace,
    })  # fmt: skip


def record_error(run_dir: RunDir, place: Environment, role: Role, error: BaseException) -> None:
    """Records what this rank raised, or, where it only lost another one, what became of that one."""
    words = f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    if not lost_a_peer(error):
        record(run_dir, place.attempt, Failure("raised", place.rank, role, place.host, words, trace))
    elif not _explained(run_dir, place.attempt):
        record(run_dir, place.attempt, _of_lost_peer(run_dir, place, role, words, trace))


def _of_lost_peer(run_dir: RunDir, place: Environment, role: Role, words: str, trace: str) -> Failure:
    gone = _fallen_silent(run_dir, place.attempt)
    if gone is None:
        return Failure("lost_peer", place.rank, role, place.host, words, trace)
    said = f"ended without a word; rank {place.rank} on {place.host} lost its connection to it: {words}"
    return Failure("killed", gone.rank, gone.role, gone.host, said)


def _explained(run_dir: RunDir, attempt: int) -> bool:
    """Whether, within our patience, another record says why a peer is gone: it failed, or was told to leave."""
    reasons = (run_dir.failure(attempt), run_dir.leave_record(attempt))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if any(path.exists() for path in reasons):
            return True
        time.sleep(0.1)
    return False


def _fallen_silent(run_dir: RunDir, attempt: int) -> Beat | None:
    """The rank whose heartbeats have stood still longest, without a last word."""
    now = time.time()
    still = [beat for beat in read_beats(run_dir, attempt).values() if beat.stands_still(now)]
    return min(still, key=lambda beat: beat.time, default=None)

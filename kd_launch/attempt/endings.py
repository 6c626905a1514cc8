"""Which rank failed first, and how, where no rank could write it down: from srun's words and the last heartbeats."""

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kd_launch.attempt.failures import FailureRecord, Kind
from kd_launch.attempt.place import Seats
from kd_launch.attempt.srun_log import Death, SrunLog
from kd_launch.runs.records import Heartbeat

# What a rank is sent before its job is ended or preempted. One that dies of it was told to leave, and did not fail.
LEAVE_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)

# What srun says of a step that it will never start; whatever else it says may be otherwise at the next attempt.
_REFUSED = (
    "only allocated", "more processors requested", "not available", "not permitted", "not supported",
    "not currently supported", "invalid", "unrecognized",
)  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """All that is known of an attempt whose step ends or has ended."""

    attempt: int
    srun_status: int | None
    """None: srun still runs."""
    srun_log: SrunLog
    heartbeats: Mapping[int, Heartbeat]
    """The last of each rank in this attempt."""
    record: FailureRecord | None
    """What a rank, or the watch, has written."""
    seats: Seats
    last_words: Callable[[int], str]
    """The last line of a rank's log; "" where it said nothing."""
    now: float
    """Unix time."""


def told_to_leave(evidence: Evidence) -> signal.Signals | None:
    """The signal that ended a rank before it could say that it leaves; None where the first death is another."""
    death = evidence.srun_log.first_death
    if death is None or (evidence.record is not None and evidence.record.explains):
        return None
    return next((number for number in LEAVE_SIGNALS if _signal_of(death) == number), None)


def unheard_hosts(evidence: Evidence) -> list[str]:
    """Nodes of which neither srun nor a heartbeat has told the end of any rank, though the step has ended."""
    told = {death.host for death in evidence.srun_log.deaths}
    told |= {evidence.seats.host_of(rank) for rank, beat in evidence.heartbeats.items() if beat.ended}
    every = map(evidence.seats.host_of, range(evidence.seats.layout.world_size))
    return [host for host in dict.fromkeys(every) if host not in told]


def first_failure(evidence: Evidence) -> FailureRecord | None:
    """The record to write; None where there is one that explains the end, or nothing failed."""
    if (evidence.record is not None and evidence.record.explains) or evidence.srun_status == 0:
        return None
    if evidence.srun_log.lost_nodes:
        return _lost_node(evidence)
    death = evidence.srun_log.first_death
    if death is not None and _signal_of(death) in LEAVE_SIGNALS:
        return None
    died = _died(evidence, death) if death else None
    if died is not None or evidence.srun_status is None:
        return died
    return _vanished(evidence) or _unexplained(evidence)


def _lost_node(evidence: Evidence) -> FailureRecord:
    """Ranks of a node that srun lost count as silent; of one that it never reached, as absent."""
    lost = evidence.srun_log.lost_nodes[0]
    ranks = evidence.seats.ranks_on(lost.host)
    rank = ranks[0] if ranks else 0
    kind: Kind = "silent" if rank in evidence.heartbeats else "absent"
    return _record(evidence, kind, rank, f"srun lost its node: {lost.words}", host=lost.host)


def _died(evidence: Evidence, death: Death) -> FailureRecord | None:
    """The first rank that ended with something else than 0; None where it only followed another one."""
    rank = _first_to_die(evidence, death)
    beat = evidence.heartbeats.get(rank)
    last_word = beat.ended if beat else None
    if last_word == "lost_peer" or (evidence.record is not None and evidence.record.rank == rank):
        return None
    if last_word == "raised":
        return _record(evidence, "raised", rank, _with_last_words(evidence, rank, "an exception ended it"), death.host)
    if last_word == "orphaned":
        return _record(evidence, "orphaned", rank, "it lost its slurmstepd, and ended itself", death.host)
    if death.exit_code is not None and _signal_of(death) is None:
        words = f"ended by itself with exit code {death.exit_code}"
        return _record(evidence, "exited", rank, _with_last_words(evidence, rank, words), death.host)
    return _record(evidence, "killed", rank, _how_killed(death), death.host)


def _first_to_die(evidence: Evidence, death: Death) -> int:
    """Of several ranks that srun names together, one that had no time for a last word."""
    ranks = [evidence.seats.rank_of(death.host, task) for task in death.tasks]
    speechless = [rank for rank in ranks if rank in evidence.heartbeats and not evidence.heartbeats[rank].ended]
    return (speechless or ranks)[0]


def _vanished(evidence: Evidence) -> FailureRecord | None:
    """A rank that others lost and whose end nobody has seen: its node, or its slurmstepd, is gone."""
    followed = evidence.record is not None or any(beat.ended == "lost_peer" for beat in evidence.heartbeats.values())
    seen = {evidence.seats.rank_of(death.host, task) for death in evidence.srun_log.deaths for task in death.tasks}
    unseen = [beat for rank, beat in evidence.heartbeats.items() if not beat.ended and rank not in seen]
    if not followed or not unseen:
        return None
    beat = min(unseen, key=lambda beat: (beat.time, beat.rank))
    words = "no sign of life any more, and srun saw no end of it: its node or its slurmstepd is gone"
    return _record(evidence, "silent", beat.rank, words)


def _unexplained(evidence: Evidence) -> FailureRecord | None:
    """srun failed, but no rank is known to: it started none, or was itself killed."""
    if evidence.record is not None:
        return None
    status, errors = evidence.srun_status, evidence.srun_log.errors
    if errors and not evidence.heartbeats:
        kind: Kind = "exited" if any(words in errors[0].lower() for words in _REFUSED) else "absent"
        return _record(evidence, kind, 0, f"srun started no ranks: {errors[0]}", evidence.seats.place.host)
    how = f"srun ended with exit code {status}" + (f": {errors[-1]}" if errors else "")
    return _record(evidence, "killed" if (status or 0) >= 128 else "exited", 0, how, evidence.seats.place.host)


def _record(evidence: Evidence, kind: Kind, rank: int, error: str, host: str | None = None) -> FailureRecord:
    """The time is the rank's last sign of life, which no end of the others can precede."""
    beat, seats = evidence.heartbeats.get(rank), evidence.seats
    return FailureRecord(
        attempt=evidence.attempt, kind=kind, role=str(seats.role_of(rank)), rank=rank,
        host=host or (beat.host if beat else seats.host_of(rank)), error=error,
        time=beat.time if beat else evidence.now,
    )  # fmt: skip


def _signal_of(death: Death) -> int | None:
    """Shells and containers hand on the signal of what they ran as an exit code above 128."""
    if death.exit_code is not None and death.exit_code > 128:
        return death.exit_code - 128
    return death.signal


def _how_killed(death: Death) -> str:
    number = _signal_of(death)
    if number is None:
        return f"killed: {death.words}"
    name = f" ({signal.Signals(number).name})" if number in signal.valid_signals() else ""
    told_by = f", told by its exit code {death.exit_code}" if death.exit_code is not None else ""
    return f"killed by signal {number}{name}{told_by}"


def _with_last_words(evidence: Evidence, rank: int, words: str) -> str:
    said = evidence.last_words(rank)
    return f"{words}; its last line: {said}" if said else words

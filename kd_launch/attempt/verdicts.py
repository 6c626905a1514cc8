"""What a watcher makes of heartbeats: a rank that is silent, absent or stuck, or that stays where others have ended.

Pure. Time is the watcher's own: seconds that it has watched, in which no clock of another node plays a part.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kd_launch.attempt.failures import Kind
from kd_launch.cluster import Cluster
from kd_launch.plan import Layout
from kd_launch.runs.records import Heartbeat

# Loading a model, and exporting one, show no progress for long.
LOADING_S = 1800.0
# srun itself ends the ranks that stay: at once after a failure, 60 s (--wait) after one that left with 0.
AFTER_A_FAILURE_S: dict[Kind, float] = {"raised": 15.0, "lost_peer": 15.0, "orphaned": 0.0}  # an orphan's srun is blind
AFTER_A_LEAVE_S = 75.0
# The innermost frames of a rank that waits in a collective.
_INNERMOST = 3
_COLLECTIVE = re.compile(r"(^|/)torch/distributed/|distributed_c10d\.py")


@dataclass(frozen=True)
class Limits:
    """Seconds of patience."""

    silent: float
    """Without a sign of life of a rank."""
    absent: float
    """Until the first sign of life of the last rank, counted from that of the first."""
    stalled: float
    """Without progress of the run once training has begun."""


def limits_of(cluster: Cluster, layout: Layout) -> Limits:
    """As the cluster file says; what is auto there follows the prediction."""
    stalled = cluster.stall_timeout_s
    return Limits(
        silent=cluster.heartbeat_timeout_s,
        absent=5 * cluster.heartbeat_timeout_s,
        stalled=max(300.0, 10 * layout.step_seconds.p50) if stalled == "auto" else stalled,
    )


@dataclass(frozen=True)
class Sighting:
    """What was seen of one rank, and when."""

    beat: Heartbeat
    first: float
    """When it was first seen."""
    lived: float
    """When its heartbeat was last seen to be another one."""
    moved: float
    """When it was last seen to have done something."""
    stirred: float
    """When its main thread was last seen elsewhere, or to have done something."""

    @property
    def in_collective(self) -> bool:
        return any(_COLLECTIVE.search(line) for line in self.beat.where[:_INNERMOST])

    @property
    def waits(self) -> bool:
        return self.beat.waiting_for is not None or self.in_collective

    @property
    def at(self) -> str:
        return self.beat.where[0] if self.beat.where else "an unknown place"


@dataclass(frozen=True)
class Watched:
    """All that was seen up to now."""

    seconds: float = 0.0
    training_since: float | None = None
    ranks: Mapping[int, Sighting] = field(default_factory=dict)

    @property
    def staying(self) -> list[Sighting]:
        """Of ranks that have not said that they end."""
        return [sighting for sighting in self.ranks.values() if sighting.beat.ended is None]


@dataclass(frozen=True)
class Verdict:
    """Why the step must be ended."""

    kind: Kind
    rank: int
    error: str


def observe(before: Watched, beats: Iterable[Heartbeat], trains: bool, seconds: float) -> Watched:
    """What is known after another look, `seconds` after the first. A rank not seen this time stays as it was."""
    seen = {beat.rank: _sight(before.ranks.get(beat.rank), beat, seconds) for beat in beats}
    since = before.training_since if before.training_since is not None or not trains else seconds
    return Watched(seconds, since, {**before.ranks, **seen})


def anew(watched: Watched) -> Watched:
    """For a watch that begins again, of ranks that may train already."""
    return Watched(training_since=None if watched.training_since is None else 0.0)


def _sight(before: Sighting | None, beat: Heartbeat, seconds: float) -> Sighting:
    if before is None:
        return Sighting(beat, seconds, seconds, seconds, seconds)
    old = before.beat
    moved = _progress(beat) != _progress(old)
    return Sighting(
        beat=beat,
        first=before.first,
        lived=seconds if (beat.time, beat.ended) != (old.time, old.ended) else before.lived,
        moved=seconds if moved else before.moved,
        stirred=seconds if moved or beat.where != old.where else before.stirred,
    )


def _progress(beat: Heartbeat) -> tuple[object, ...]:
    return beat.done, beat.phase, beat.moved, beat.waiting_for, beat.since


def judge(watched: Watched, limits: Limits, world_size: int) -> Verdict | None:
    """The gravest thing that is wrong; None while nothing is."""
    return (
        _failed(watched)
        or _silent(watched, limits)
        or _absent(watched, limits, world_size)
        or _stuck(watched, limits)
        or _left_alone(watched)
    )


def _failed(watched: Watched) -> Verdict | None:
    """A rank that said that it failed, after which srun should have ended the others."""
    for kind, patience in AFTER_A_FAILURE_S.items():
        failed = [s for s in watched.ranks.values() if s.beat.ended == kind and watched.seconds - s.lived >= patience]
        if failed:
            first = min(failed, key=lambda s: (s.lived, s.beat.rank))
            return Verdict(kind, first.beat.rank, f"its last word was {kind}, and srun has not ended the others since")
    return None


def _silent(watched: Watched, limits: Limits) -> Verdict | None:
    silent = [s for s in watched.staying if watched.seconds - s.lived > limits.silent]
    first = min(silent, key=lambda s: (s.lived, s.beat.rank), default=None)
    if first is None:
        return None
    here = sum(s.beat.host == first.beat.host for s in silent) - 1
    others = f", nor of {here} more of {first.beat.host}" if here else ""
    words = f"no sign of life for {watched.seconds - first.lived:.0f} s{others}"
    return Verdict("silent", first.beat.rank, f"{words}: stopped, or its node or slurmstepd is gone")


def _absent(watched: Watched, limits: Limits, world_size: int) -> Verdict | None:
    missing = [rank for rank in range(world_size) if rank not in watched.ranks]
    if not missing:
        return None
    if not watched.ranks:
        late = watched.seconds > LOADING_S
        return Verdict("absent", 0, f"no rank has given a sign of life in {watched.seconds:.0f} s") if late else None
    waited = watched.seconds - min(s.first for s in watched.ranks.values())
    if waited <= limits.absent:
        return None
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return Verdict("absent", missing[0], f"has not joined{more} {waited:.0f} s after the first rank began")


def _stuck(watched: Watched, limits: Limits) -> Verdict | None:
    """Before training a rank may load for long, and shows only where it is; after it, it may export for long."""
    staying = watched.staying
    if not staying or len(staying) < len(watched.ranks):
        return None
    if watched.training_since is None:
        still = watched.seconds - max(s.stirred for s in staying)
        limit = LOADING_S
    else:
        still = watched.seconds - max(watched.training_since, *(s.moved for s in staying))
        finishing = any(s.beat.phase == "finishing" for s in staying)
        limit = max(limits.stalled, LOADING_S) if finishing else limits.stalled
    return _name_culprit(staying, still) if still > limit else None


def _name_culprit(staying: list[Sighting], still: float) -> Verdict:
    """The rank that does not wait for others; where all wait, or none, the one that came to a stop first."""
    working = [s for s in staying if not s.waits]
    waiting = [s for s in staying if s.waits]
    culprit = min(working or staying, key=lambda s: (s.moved, s.beat.rank))
    words = f"its main thread has not returned from {culprit.at} for {still:.0f} s"
    inside = [s for s in waiting if s.in_collective]
    if working and inside:
        others = _ranks(inside)
        words = (
            f"it never entered the collective that {others} wait in for {still:.0f} s ({inside[0].at}): "
            f"its main thread is at {culprit.at}"
        )
    elif working and waiting:
        words += f"; {_ranks(waiting[:1])} waits for {waiting[0].beat.waiting_for}"
    elif culprit.beat.waiting_for is not None:
        words += f", where it waits for {culprit.beat.waiting_for}"
    return Verdict("stuck", culprit.beat.rank, words)


def _ranks(sightings: list[Sighting]) -> str:
    numbers = [str(s.beat.rank) for s in sightings[:4]]
    more = f" and {len(sightings) - 4} more" if len(sightings) > 4 else ""
    return f"rank{'s' if len(sightings) > 1 else ''} {', '.join(numbers)}{more}"


def _left_alone(watched: Watched) -> Verdict | None:
    """A rank that stays although others have ended long ago."""
    ended = [s for s in watched.ranks.values() if s.beat.ended is not None]
    first = min(ended, key=lambda s: s.lived, default=None)
    stays = min(watched.staying, key=lambda s: (s.stirred, s.beat.rank), default=None)
    if first is None or stays is None or watched.seconds - first.lived <= AFTER_A_LEAVE_S:
        return None
    left = f"rank {first.beat.rank} ended ({first.beat.ended}) {watched.seconds - first.lived:.0f} s ago"
    return Verdict("stuck", stays.beat.rank, f"{left}, but this rank stays: its main thread is at {stays.at}")

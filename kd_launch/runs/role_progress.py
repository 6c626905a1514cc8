"""How far each role is, from its ranks' heartbeats: what tables and bars show."""

from collections.abc import Sequence
from dataclasses import dataclass

from kd_launch.plan import Layout, Role
from kd_launch.runs.records import Heartbeat


@dataclass(frozen=True)
class RoleProgress:
    """One role over all its ranks."""

    role: Role
    done: int
    total: int
    """0: not known yet."""
    unit: str
    ranks: int
    """That have given a sign of life."""
    oldest: float
    """Unix time of the oldest of their last signs."""
    waiting_for: str | None
    """What one of them has waited for longest."""


def ranks_of(role: Role, layout: Layout) -> int:
    """How many ranks the plan gives a role."""
    return layout.teacher.gpus if role is Role.TEACHER else layout.student.gpus


def role_progress(role: Role, heartbeats: Sequence[Heartbeat]) -> RoleProgress | None:
    """None before the first sign of life.

    The teacher's ranks share its micro-batches, so theirs add up; the student's take every step together, so the last
    one counts.
    """
    beats = [beat for beat in heartbeats if beat.role == role]
    if not beats:
        return None
    done, total = [beat.done for beat in beats], [beat.total for beat in beats]
    shared = role is Role.TEACHER
    waiting = sorted((beat for beat in beats if beat.waiting_for), key=lambda beat: beat.since)
    return RoleProgress(
        role=role,
        done=sum(done) if shared else min(done),
        total=sum(total) if shared else max(total),
        unit=beats[0].unit,
        ranks=len(beats),
        oldest=min(beat.time for beat in beats),
        waiting_for=waiting[0].waiting_for if waiting else None,
    )

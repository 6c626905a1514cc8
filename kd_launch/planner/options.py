"""Options: a layout of one role with its seconds and memory, and which of two is simpler or better."""

from collections.abc import Iterable
from typing import NamedTuple

from kd_launch.cost.setting import StudentDegrees, TeacherDegrees
from kd_launch.plan import Payload

SAME = 1.005
"""Times that differ by less count as equal: the model does not know better."""


class Unit(NamedTuple):
    """What passes from teacher to student: a micro-batch of `size` sequences as one kind of payload."""

    size: int
    payload: Payload


class TeacherOption(NamedTuple):
    """A layout of the teacher. Memory in GiB per GPU."""

    seconds: float
    """Of a step."""
    resident: float
    transient: float
    buffer: float
    """Per micro-batch of prefetch."""
    degrees: TeacherDegrees
    fill: float = 0.0
    """Of the seconds, those in which a pipeline's ranks wait for their first micro-batch, or have had their last."""

    @property
    def complexity(self) -> int:
        return complexity(self.degrees)


class StudentOption(NamedTuple):
    """A layout of the student. Memory in GiB per GPU."""

    seconds: float
    resident: float
    transient: float
    buffer: float
    degrees: StudentDegrees

    @property
    def complexity(self) -> int:
        return (self.degrees.fsdp > 1) + (self.degrees.head_shards > 1) + twice(self.degrees)


Family = tuple[bool, bool, bool]


def complexity(degrees: TeacherDegrees) -> int:
    """Whole copies before sharded weights, before split products, before a pipeline that has to stay full."""
    return (degrees.fsdp > 1) + 2 * (degrees.tp > 1) + 3 * (degrees.pp > 1)


def family(degrees: TeacherDegrees) -> Family:
    """Which axes split the teacher."""
    return degrees.fsdp > 1, degrees.tp > 1, degrees.pp > 1


def twice(degrees: StudentDegrees) -> int:
    """How many things the student does twice: compute activations, gather weights."""
    return degrees.recompute + bool(degrees.reshard)


class Held(NamedTuple):
    """What a layout of the teacher holds, GiB per GPU."""

    resident: float
    transient: float
    buffer: float
    """Per micro-batch of prefetch."""


def unbeaten(options: Iterable[StudentOption]) -> list[StudentOption]:
    """Fastest first, those that no faster one beats."""
    kept: list[StudentOption] = []
    for option in sorted(options, key=lambda option: (option[:3], option.complexity)):
        if not any(_beats(other, option) for other in kept):
            kept.append(option)
    return kept


def _beats(one: StudentOption, other: StudentOption) -> bool:
    """Nowhere worse; among equally fast ones the simpler one is not beaten."""
    return (
        one.resident <= other.resident
        and one.transient <= other.transient
        and (one.seconds * SAME < other.seconds or one.complexity <= other.complexity)
    )

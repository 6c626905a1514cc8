"""Turns: the order in which the ranks of a teacher work on micro-batches, in step where they share their weights.

Ranks that gather weights from each other must all take part in every forward, even one whose own micro-batch is empty
or not there. Turn t holds the micro-batches that the instances of such a group come to at the same place of their
lanes. Of all payloads not yet delivered, the one with the least (turn, number) can always be computed, sent and
received: so working in turns cannot deadlock, with buffers of any number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

from kd_launch.plan import RoleLayout
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.data import Item


@dataclass(frozen=True)
class Turn:
    """What one instance does while the others of its group do the same."""

    item: Item | None
    """None: nothing is left for this instance."""
    tokens: int
    """That the teacher is asked about, of this instance's item."""
    is_worked: bool
    """Whether any instance of the group has tokens, so that all run a forward."""


def group_of(teacher: RoleLayout, instance: int) -> range:
    """The instances that share their weights with this one, itself included."""
    first = instance // teacher.fsdp * teacher.fsdp
    return range(first, first + teacher.fsdp)


def turns_of_teacher(batches: Batches, teacher: RoleLayout, instance: int, begin: int = 0) -> Iterator[Turn]:
    """All turns of an instance, in order, from the moment when `begin` steps are done."""
    group = group_of(teacher, instance)
    for items in _in_step([batches.items_of_teacher(member, begin) for member in group], batches):
        tokens = [0 if item is None else batches.teacher_tokens(item) for item in items]
        own = instance - group.start
        yield Turn(items[own], tokens[own], any(tokens))


def _in_step(streams: Sequence[Iterator[Item]], batches: Batches) -> Iterator[list[Item | None]]:
    schedule = batches.schedule
    heads = [next(stream, None) for stream in streams]
    while any(heads):
        places = [None if item is None else _place(item, schedule.teachers, schedule.students) for item in heads]
        first = min(place for place in places if place is not None)
        yield [item if place == first else None for item, place in zip(heads, places, strict=True)]
        heads = [
            next(stream, None) if place == first else item
            for item, place, stream in zip(heads, places, streams, strict=True)
        ]


def _place(item: Item, teachers: int, students: int) -> int:
    """How many items of its lane each instance of the lane has served before this one."""
    lanes = gcd(teachers, students)
    turn, student = divmod(item.number, students)
    return (turn * (students // lanes) + student // lanes) // (teachers // lanes)

"""The search: every allocation and micro-batch, but for those that a bound shows to be the best of nothing.

The bounds are the compute alone of an undivided teacher and of a student that does nothing twice. They cost nothing to
look up, so whole ranges of teachers are left out unseen, and 1,024 nodes take no longer than a few.
"""

import bisect
import math
from collections.abc import Iterator
from typing import NamedTuple

from kd_launch.cluster import Cluster
from kd_launch.planner.allocations import Allocation, Split, colocations, splits
from kd_launch.planner.choices import Choice
from kd_launch.planner.options import SAME, Unit
from kd_launch.planner.pairing import (
    allocated_gpus,
    colocated_choices,
    coupling_seconds,
    disjoint_choices,
    units_of,
)
from kd_launch.planner.tables import Tables

BEATEN = "slower and dearer than another layout"
ENOUGH = "more teachers than the student needs"


class Front:
    """The fastest and the cheapest choices so far: step seconds rising, GPU seconds falling."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._gpu_seconds: list[float] = []

    def beats(self, seconds: float, gpu_seconds: float) -> bool:
        """Whether a known choice is both faster and cheaper, clearly, than one of at least so much can be."""
        place = bisect.bisect_right(self._seconds, seconds / SAME)
        return place > 0 and self._gpu_seconds[place - 1] <= gpu_seconds / SAME

    def add(self, seconds: float, gpu_seconds: float) -> None:
        place = bisect.bisect_right(self._seconds, seconds)
        if place > 0 and self._gpu_seconds[place - 1] <= gpu_seconds:
            return
        end = place
        while end < len(self._seconds) and self._gpu_seconds[end] >= gpu_seconds:
            end += 1
        self._seconds[place:end] = [seconds]
        self._gpu_seconds[place:end] = [gpu_seconds]


class _Bound(NamedTuple):
    """What no layout with these student GPUs and this micro-batch undercuts."""

    student: float
    """Seconds of a step."""
    teacher: float
    """GPU seconds of a step."""


def all_choices(tables: Tables, cluster: Cluster) -> Iterator[Choice]:
    """Every choice that may be the fastest, the cheapest or in between; each placement is searched by itself."""
    yield from _colocated(tables, cluster)
    yield from _disjoint(tables, cluster)


def _bound(tables: Tables, student_pool: str, gpus: int, teacher_pool: str, unit: Unit) -> _Bound:
    items = tables.items(unit)
    return _Bound(
        student=items // gpus * tables.least_student_seconds(student_pool, unit),
        teacher=items * tables.least_teacher_seconds(teacher_pool, unit),
    )


def _colocated(tables: Tables, cluster: Cluster) -> Iterator[Choice]:
    """The most promising first, so that the others need not be looked at."""
    rows: list[tuple[float, int, float, Allocation, Unit]] = []
    for allocation in colocations(tables.spec, cluster):
        share, allocated = allocation.student, allocated_gpus(cluster, allocation)
        for unit in units_of(tables, share.gpus):
            bound = _bound(tables, share.pool, share.gpus, share.pool, unit)
            if bound.student == math.inf:
                continue
            least = bound.student + bound.teacher / share.gpus
            rows.append((least * allocated, len(rows), least, allocation, unit))
    fronts: dict[str, Front] = {}
    for gpu_seconds, _, least, allocation, unit in sorted(rows):
        front = fronts.setdefault(allocation.student.pool, Front())
        if front.beats(least, gpu_seconds):
            tables.rejected[BEATEN] += 1
            continue
        for choice in colocated_choices(tables, cluster, allocation, unit):
            front.add(choice.seconds, choice.gpu_seconds)
            yield choice


def _disjoint(tables: Tables, cluster: Cluster) -> Iterator[Choice]:
    """The same for roles apart. Nodes with both roles come last, since what they promise has to be clearly better."""
    rows: list[tuple[bool, float, int, Split, Unit, _Bound]] = []
    for split in splits(tables.spec, cluster):
        gpus = split.student.gpus
        for unit in units_of(tables, gpus):
            bound = _bound(tables, split.student.pool, gpus, split.teacher_pool.name, unit)
            if max(bound) == math.inf:
                continue
            shares_nodes = split.shares_nodes and split.student.gpus >= split.teacher_pool.gpus_per_node
            rows.append((shares_nodes, bound.student * gpus + bound.teacher, len(rows), split, unit, bound))
    fronts: dict[tuple[str, str], Front] = {}
    for _, gpu_seconds, _, split, unit, bound in sorted(rows):
        front = fronts.setdefault((split.teacher_pool.name, split.student.pool), Front())
        if front.beats(bound.student, gpu_seconds):
            tables.rejected[BEATEN] += 1
        else:
            yield from _beside(tables, cluster, split, unit, bound, front)


def _beside(
    tables: Tables, cluster: Cluster, split: Split, unit: Unit, bound: _Bound, front: Front
) -> Iterator[Choice]:
    """With every number of teachers that may pay: from the first that might keep up with the student upwards while the
    student still waits, and downwards while a slower step may be cheaper."""
    students = tables.students_apart(split.student, unit)
    if not students:
        return
    fastest = students[0][0].seconds + coupling_seconds(tables, split.student, unit)
    first = bisect.bisect_left(split.counts, bound.teacher / fastest)
    for counts in (split.counts[first:], reversed(split.counts[:first])):
        for count in counts:
            least = max(fastest, bound.teacher / count)
            if front.beats(least, least * (count + split.student.gpus)):
                tables.rejected[BEATEN] += 1
                break
            enough = False
            for choice in disjoint_choices(tables, cluster, split.allocation(count), unit):
                enough |= max(choice.teacher.seconds, choice.transport) <= students[0][0].seconds
                front.add(choice.seconds, choice.gpu_seconds)
                yield choice
            if enough:
                tables.rejected[ENOUGH] += 1
                break

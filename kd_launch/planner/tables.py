"""Tables of one role at a time: every layout of its GPUs with seconds and memory, less what another one beats.

Teacher and student meet only in micro-batch, payload and memory, so two small tables give all pairs of layouts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import student_buffer_bytes, student_memory, teacher_buffer_bytes, teacher_memory
from kd_launch.cost.roles import TeacherSeconds, student_seconds, teacher_seconds
from kd_launch.cost.setting import Setting, Site, StudentDegrees, TeacherDegrees
from kd_launch.plan import Payload
from kd_launch.planner.layouts import Share, student_degrees, teacher_degrees
from kd_launch.spec import Spec

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
        return (self.degrees.fsdp > 1) + self.degrees.recompute + bool(self.degrees.reshard)


Option = TypeVar("Option", TeacherOption, StudentOption)

AHEAD = (2, 1)
"""Micro-batches of prefetch where nothing is asked for: as many as there is room for."""

Family = tuple[bool, bool, bool]


def complexity(degrees: TeacherDegrees) -> int:
    """Whole copies before sharded weights, before split products, before a pipeline that has to stay full."""
    return (degrees.fsdp > 1) + 2 * (degrees.tp > 1) + 3 * (degrees.pp > 1)


def family(degrees: TeacherDegrees) -> Family:
    """Which axes split the teacher."""
    return degrees.fsdp > 1, degrees.tp > 1, degrees.pp > 1


class _Sender(NamedTuple):
    """One split of the teacher at work, however many copies there are. Memory in GiB per GPU."""

    seconds: TeacherSeconds
    resident: float
    transient: float
    buffer: float


class Tables:
    """The tables of one search, filled as they are asked for. Options too large for a GPU are left out and counted.

    boundless: they are kept, to see by how much they miss.
    """

    def __init__(self, spec: Spec, setting: Setting, sites: dict[str, Site], *, boundless: bool = False) -> None:
        self.spec = spec
        self.setting = setting
        self.sites = sites
        self.boundless = boundless
        self.evaluated = 0
        self.rejected: Counter[str] = Counter()
        self._senders: dict[tuple[str, int, TeacherDegrees, Unit], _Sender] = {}
        self._teachers: dict[tuple[Share, Unit], list[TeacherOption]] = {}
        self._students: dict[tuple[Share, Unit, bool], list[StudentOption]] = {}
        self._teachers_apart: dict[tuple[Share, Unit], list[tuple[TeacherOption, int]]] = {}
        self._students_apart: dict[tuple[Share, Unit], list[tuple[StudentOption, int]]] = {}

    def items(self, unit: Unit) -> int:
        """Micro-batches of a step, over all student ranks."""
        return self.spec.training.global_batch_size // unit.size

    def tokens(self, unit: Unit) -> int:
        return unit.size * self.setting.sequence_length

    @property
    def prefetches(self) -> tuple[int, ...]:
        """Micro-batches that the teacher may work ahead, best first."""
        asked = self.spec.distillation.prefetch
        return AHEAD if asked == "auto" else (asked,)

    def teachers(self, share: Share, unit: Unit) -> list[TeacherOption]:
        """Colocated layouts of the teacher, by family, without those that another of the family beats everywhere."""
        key = (share, unit)
        if key not in self._teachers:
            by_family: dict[Family, list[TeacherOption]] = {}
            for degrees in self._splits(share):
                option = self._teacher(share, degrees, unit, colocated=True)
                if self._has_room(option, share):
                    by_family.setdefault(family(degrees), []).append(option)
            self._teachers[key] = [option for found in by_family.values() for option in _unbeaten(sorted(found))]
        return self._teachers[key]

    def students(self, share: Share, unit: Unit, *, holds_head: bool) -> list[StudentOption]:
        """Layouts of the student on a share, without those that another beats everywhere."""
        key = (share, unit, holds_head)
        if key not in self._students:
            found = self._student_options(share, unit, holds_head)
            self._students[key] = _unbeaten(sorted(found, key=lambda option: (option[:3], option.complexity)))
        return self._students[key]

    def teachers_apart(self, share: Share, unit: Unit) -> list[tuple[TeacherOption, int]]:
        """Each family's fastest on GPUs of its own, with the prefetch for which it has room."""
        key = (share, unit)
        if key not in self._teachers_apart:
            best: dict[Family, tuple[TeacherOption, int]] = {}
            for option, depth in self._with_prefetch(self._least_sharded(share, unit), share):
                known = best.get(family(option.degrees))
                if known is None or option < known[0]:
                    best[family(option.degrees)] = option, depth
            self._teachers_apart[key] = list(best.values())
        return self._teachers_apart[key]

    def _least_sharded(self, share: Share, unit: Unit) -> Iterator[TeacherOption]:
        """Of each tp and pp the option without fsdp, and the one with the least that fits: more only adds traffic."""
        found: set[tuple[int, int]] = set()
        for degrees in self._splits(share):
            if degrees.fsdp > 1 and degrees[1:] in found:
                continue
            option = self._teacher(share, degrees, unit, colocated=False)
            if self._has_room(option, share):
                yield option
                if degrees.fsdp > 1 and not self.boundless:
                    found.add(degrees[1:])

    def whole_teacher_seconds(self, share: Share, unit: Unit) -> float:
        """GPU seconds of one micro-batch on an undivided teacher: no split needs less, whether it fits or not."""
        if self.sites[share.pool].teacher_device is None:
            return math.inf
        return self._sender(share, TeacherDegrees(1, 1, 1), unit).seconds.each

    def _splits(self, share: Share) -> tuple[TeacherDegrees, ...]:
        if self.sites[share.pool].teacher_device is None:
            return ()
        return teacher_degrees(self.spec, self.setting.teacher, share)

    def students_apart(self, share: Share, unit: Unit) -> list[tuple[StudentOption, int]]:
        """Fastest first, on GPUs of its own, with the prefetch for which there is room."""
        key = (share, unit)
        if key not in self._students_apart:
            options = self.students(share, unit, holds_head=True)
            self._students_apart[key] = list(self._with_prefetch(options, share))
        return self._students_apart[key]

    def _with_prefetch(self, options: Iterable[Option], share: Share) -> Iterator[tuple[Option, int]]:
        room = self.room(share)
        for option in options:
            used = option.resident + option.transient
            depth = next(
                (depth for depth in self.prefetches if self.boundless or used + depth * option.buffer <= room), None
            )
            if depth is None:
                self.rejected["no memory for a payload ahead"] += 1
            else:
                yield option, depth

    def _teacher(self, share: Share, degrees: TeacherDegrees, unit: Unit, *, colocated: bool) -> TeacherOption:
        """Apart, the stream of micro-batches never stops; colocated, it drains before each turn of the student."""
        seconds, resident, transient, buffer = self._sender(share, degrees, unit)
        items = self.items(unit)
        if colocated:
            step = items // share.gpus * (degrees.sender_gpus * seconds.each + seconds.fill)
        else:
            step = math.ceil(items / (share.gpus // degrees.sender_gpus)) * seconds.each
        return TeacherOption(step, resident, transient, buffer, degrees)

    def _sender(self, share: Share, degrees: TeacherDegrees, unit: Unit) -> _Sender:
        key = (share.pool, share.block, degrees, unit)
        found = self._senders.get(key)
        if found is None:
            self.evaluated += 1
            site, tokens = self.sites[share.pool], self.tokens(unit)
            memory = teacher_memory(self.setting, degrees, tokens)
            found = self._senders[key] = _Sender(
                seconds=teacher_seconds(self.setting, site, degrees, share.block, tokens, unit.payload),
                resident=sum(memory.resident.values()) / GIB,
                transient=sum(memory.transient.values()) / GIB,
                buffer=teacher_buffer_bytes(self.setting, degrees, tokens, unit.payload) / GIB,
            )
        return found

    def _student_options(self, share: Share, unit: Unit, holds_head: bool) -> list[StudentOption]:
        site = self.sites[share.pool]
        if site.student_device is None:
            return []
        tokens, accumulation = self.tokens(unit), self.items(unit) // share.gpus
        buffer = student_buffer_bytes(self.setting, tokens, unit.payload) / GIB
        options = []
        for degrees in student_degrees(self.spec, share):
            self.evaluated += 1
            memory = student_memory(self.setting, site, degrees, tokens, unit.payload, holds_head=holds_head)
            seconds = student_seconds(self.setting, site, degrees, share.block, tokens, accumulation, unit.payload)
            resident, transient = sum(memory.resident.values()) / GIB, sum(memory.transient.values()) / GIB
            option = StudentOption(seconds.total, resident, transient, buffer, degrees)
            if self._has_room(option, share):
                options.append(option)
        return options

    def room(self, share: Share) -> float:
        """GiB of a GPU for tensors."""
        site = self.sites[share.pool]
        return site.memory_limit_gib - site.context_gib

    def fullness(self, share: Share, option: TeacherOption | StudentOption, prefetch: int) -> float:
        """Share of the memory limit that an option on GPUs of its own needs."""
        site = self.sites[share.pool]
        used = option.resident + option.transient + prefetch * option.buffer + site.context_gib
        return used / site.memory_limit_gib

    def _has_room(self, option: TeacherOption | StudentOption, share: Share) -> bool:
        if self.boundless or option.resident + option.transient <= self.room(share):
            return True
        role = "teacher" if isinstance(option, TeacherOption) else "student"
        self.rejected[f"the {role} alone exceeds a GPU's memory"] += 1
        return False


def _unbeaten(rising: list[Option]) -> list[Option]:
    """Of options by rising time, those that no faster one beats."""
    kept: list[Option] = []
    for option in rising:
        if not any(_beats(other, option) for other in kept):
            kept.append(option)
    return kept


def _beats(one: TeacherOption | StudentOption, other: TeacherOption | StudentOption) -> bool:
    """Nowhere worse; among equally fast ones the simpler one is not beaten."""
    return (
        one.resident <= other.resident
        and one.transient <= other.transient
        and one.buffer <= other.buffer
        and (one.seconds * SAME < other.seconds or one.complexity <= other.complexity)
    )

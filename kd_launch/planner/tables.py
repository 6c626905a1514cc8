"""Tables of one role at a time: every layout of its GPUs with seconds and memory, less what another one beats.

Teacher and student meet only in micro-batch, payload and memory, so two small tables give all pairs of layouts.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator

from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import student_buffer_bytes, student_memory, teacher_buffer_bytes, teacher_memory
from kd_launch.cost.roles import (
    TeacherSeconds,
    columns_seconds,
    student_fault_seconds,
    student_seconds,
    teacher_seconds,
)
from kd_launch.cost.setting import Setting, Site, StudentDegrees, TeacherDegrees
from kd_launch.plan import Payload
from kd_launch.planner.layouts import Share, Stages, student_degrees, teacher_stages
from kd_launch.planner.options import Family, Held, StudentOption, TeacherOption, Unit, family, twice, unbeaten
from kd_launch.spec import Spec

AHEAD = (2, 1)
"""Micro-batches of prefetch where nothing is asked for: as many as there is room for."""


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
        self._held: dict[tuple[TeacherDegrees, Unit], Held] = {}
        self._sender_seconds: dict[tuple[str, int, TeacherDegrees, Unit], TeacherSeconds] = {}
        self._least: dict[tuple[str, Unit], float] = {}
        self._student_memory: dict[tuple[str, tuple[object, ...], Unit], Held] = {}
        self._heads: dict[Payload, float] = {}
        self._students: dict[tuple[Share, Unit], list[StudentOption]] = {}
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

    # Bounds: what no layout undercuts

    def least_teacher_seconds(self, pool: str, unit: Unit) -> float:
        """GPU seconds of one micro-batch on an undivided teacher: no split needs less, whether it fits or not."""
        if self.sites[pool].teacher_device is None:
            return math.inf
        return self._seconds_each(pool, 1, TeacherDegrees(1, 1, 1), unit).each

    def least_student_seconds(self, pool: str, unit: Unit) -> float:
        """GPU seconds of one micro-batch of the student: its compute alone. Activations are computed twice only where
        even as many shards as the pool has GPUs leave no room for them; infinite where nothing has room."""
        key = (pool, unit)
        if key not in self._least:
            site, tokens = self.sites[pool], self.tokens(unit)
            self._least[key] = math.inf
            for recompute in (False, True) if site.student_device is not None else ():
                thin = StudentDegrees(1, site.pool.nodes * site.pool.gpus_per_node, recompute, True)
                if self.boundless or sum(self.student_held(pool, thin, unit)[:2]) <= self.room(pool):
                    whole = StudentDegrees(1, 1, recompute, None)
                    found = student_seconds(self.setting, site, whole, 1, tokens, 1, unit.payload)
                    self._least[key] = found.forward + found.backward + found.loss
                    break
        return self._least[key]

    # The teacher

    def stages(self, share: Share) -> tuple[Stages, ...]:
        """Splits of the teacher, by tp and pp."""
        if self.sites[share.pool].teacher_device is None:
            return ()
        return teacher_stages(self.spec, self.setting.teacher, share)

    def held(self, degrees: TeacherDegrees, unit: Unit) -> Held:
        """Memory of a split."""
        found = self._held.get((degrees, unit))
        if found is None:
            tokens = self.tokens(unit)
            memory = teacher_memory(self.setting, degrees, tokens)
            found = self._held[degrees, unit] = Held(
                resident=sum(memory.resident.values()) / GIB,
                transient=sum(memory.transient.values()) / GIB,
                buffer=teacher_buffer_bytes(self.setting, degrees, tokens, unit.payload) / GIB,
            )
        return found

    def teacher(self, share: Share, degrees: TeacherDegrees, unit: Unit, *, colocated: bool) -> TeacherOption:
        """Apart, the stream of micro-batches never stops, and goes to one sender after the other whatever step they are
        of; colocated, it drains before each turn of the student."""
        seconds = self._seconds_each(share.pool, share.block, degrees, unit)
        items = self.items(unit)
        if colocated:
            site, tokens = self.sites[share.pool], self.tokens(unit)
            each = seconds.each + columns_seconds(self.setting, site, degrees, share.block, tokens, unit.payload)
            beside = student_fault_seconds(self.setting, site, degrees, tokens)
            turns = items // share.gpus
            step = turns * (degrees.sender_gpus * each + seconds.fill + beside)
            return TeacherOption(step, *self.held(degrees, unit), degrees, turns * seconds.fill)
        step = items / (share.gpus // degrees.sender_gpus) * seconds.each
        return TeacherOption(step, *self.held(degrees, unit), degrees)

    def teachers(self, share: Share, unit: Unit) -> list[TeacherOption]:
        """Every colocated layout of the teacher that fits."""
        return [
            self.teacher(share, degrees, unit, colocated=True)
            for stages in self.stages(share)
            for degrees in stages.degrees()
            if self.has_room("teacher", self.held(degrees, unit), share.pool)
        ]

    def teachers_apart(self, share: Share, unit: Unit) -> list[tuple[TeacherOption, int]]:
        """Each family's fastest on GPUs of its own, with the prefetch for which it has room."""
        key = (share, unit)
        if key not in self._teachers_apart:
            best: dict[Family, tuple[TeacherOption, int]] = {}
            for degrees, depth in self._least_sharded(share, unit):
                option = self.teacher(share, degrees, unit, colocated=False)
                known = best.get(family(degrees))
                if known is None or option < known[0]:
                    best[family(degrees)] = option, depth
            self._teachers_apart[key] = list(best.values())
        return self._teachers_apart[key]

    def _least_sharded(self, share: Share, unit: Unit) -> Iterator[tuple[TeacherDegrees, int]]:
        """Of each tp and pp the split without fsdp, and the one with the least that fits: more only adds traffic."""
        for stages in self.stages(share):
            for degrees in stages.degrees():
                held = self.held(degrees, unit)
                depth = self._prefetch(held, share.pool) if self.has_room("teacher", held, share.pool) else None
                if depth is not None:
                    yield degrees, depth
                    if degrees.fsdp > 1 and not self.boundless:
                        break

    def _seconds_each(self, pool: str, block: int, degrees: TeacherDegrees, unit: Unit) -> TeacherSeconds:
        key = (pool, block, degrees, unit)
        found = self._sender_seconds.get(key)
        if found is None:
            self.evaluated += 1
            site, tokens = self.sites[pool], self.tokens(unit)
            found = teacher_seconds(self.setting, site, degrees, block, tokens, unit.payload)
            self._sender_seconds[key] = found
        return found

    # The student

    def students(self, share: Share, unit: Unit) -> list[StudentOption]:
        """Layouts of the student on a share, without those that another beats everywhere; without a teacher's head."""
        key = (share, unit)
        if key not in self._students:
            found = (self.student(share, degrees, unit) for degrees in self._ways(share))
            self._students[key] = unbeaten(option for option in found if option is not None)
        return self._students[key]

    def students_apart(self, share: Share, unit: Unit) -> list[tuple[StudentOption, int]]:
        """Fastest first, on GPUs of its own, with the prefetch for which there is room.

        What computes or gathers twice is slower, so it counts only where the same shards do not fit without; nor does a
        head that is spread over ranks where there is room for all of it.
        """
        key = (share, unit)
        if key not in self._students_apart:
            depths: dict[StudentDegrees, int] = {}
            found: list[StudentOption] = []
            for _, ways in itertools.groupby(self._ways(share), key=lambda degrees: degrees.fsdp):
                least = math.inf
                for degrees in ways:
                    if twice(degrees) > least:
                        continue
                    for option, depth in self._with_head(share, degrees, unit):
                        found.append(option)
                        depths[option.degrees] = depth
                        if option.degrees.head_shards == 1 and depth == self.prefetches[0] and not self.boundless:
                            least = min(least, twice(degrees))
            self._students_apart[key] = [(option, depths[option.degrees]) for option in unbeaten(found)]
        return self._students_apart[key]

    def _with_head(self, share: Share, degrees: StudentDegrees, unit: Unit) -> Iterator[tuple[StudentOption, int]]:
        """With the teacher's head whole, and spread over the shards unless that leaves all the room one could wish."""
        head = self.head_gib(unit)
        for shards in (1, degrees.fsdp) if head and degrees.fsdp > 1 else (1,):
            option = self.student(share, degrees._replace(head_shards=shards), unit, head=head / shards)
            depth = None if option is None else self._prefetch(option, share.pool)
            if option is not None and depth is not None:
                yield option, depth
                if depth == self.prefetches[0] and not self.boundless:
                    return

    def _ways(self, share: Share) -> tuple[StudentDegrees, ...]:
        if self.sites[share.pool].student_device is None:
            return ()
        return student_degrees(self.spec, share)

    def student(self, share: Share, degrees: StudentDegrees, unit: Unit, head: float = 0.0) -> StudentOption | None:
        """None where it does not fit. head: GiB of the teacher's head, where the student holds it."""
        resident, transient, buffer = self.student_held(share.pool, degrees, unit)
        held = Held(resident + head, transient, buffer)
        if not self.has_room("student", held, share.pool):
            return None
        self.evaluated += 1
        site, turns = self.sites[share.pool], self.items(unit) // share.gpus
        seconds = student_seconds(self.setting, site, degrees, share.block, self.tokens(unit), turns, unit.payload)
        return StudentOption(seconds.total, *held, degrees)

    def student_held(self, pool: str, degrees: StudentDegrees, unit: Unit) -> Held:
        """Without the teacher's head; copies of the student need as much each."""
        key = (pool, degrees[1:], unit)
        found = self._student_memory.get(key)
        if found is None:
            tokens = self.tokens(unit)
            memory = student_memory(self.setting, self.sites[pool], degrees, tokens, unit.payload, holds_head=False)
            found = self._student_memory[key] = Held(
                resident=sum(memory.resident.values()) / GIB,
                transient=sum(memory.transient.values()) / GIB,
                buffer=student_buffer_bytes(self.setting, tokens, unit.payload) / GIB,
            )
        return found

    def head_gib(self, unit: Unit) -> float:
        """Of the teacher's head beside a student that gets hidden states and has no whole teacher at hand."""
        if unit.payload not in self._heads:
            site, whole = next(iter(self.sites.values())), StudentDegrees(1, 1, False, None)
            with_head, without = (
                sum(student_memory(self.setting, site, whole, 1, unit.payload, holds_head=holds).resident.values())
                for holds in (True, False)
            )
            self._heads[unit.payload] = (with_head - without) / GIB
        return self._heads[unit.payload]

    # Memory

    def room(self, pool: str) -> float:
        """GiB of a GPU for tensors."""
        site = self.sites[pool]
        return site.memory_limit_gib - site.context_gib

    def fullness(self, share: Share, option: TeacherOption | StudentOption, prefetch: int) -> float:
        """Share of the memory limit that an option on GPUs of its own needs."""
        site = self.sites[share.pool]
        used = option.resident + option.transient + prefetch * option.buffer + site.context_gib
        return used / site.memory_limit_gib

    def has_room(self, role: str, held: Held, pool: str) -> bool:
        """Whether it fits alone; counts it where not."""
        if self.boundless or held.resident + held.transient <= self.room(pool):
            return True
        self.rejected[f"the {role} alone exceeds a GPU's memory"] += 1
        return False

    def _prefetch(self, held: Held | StudentOption, pool: str) -> int | None:
        """The most micro-batches ahead for which there is room; None, counted, where there is none for any."""
        room = self.room(pool) - held.resident - held.transient
        fitting = (depth for depth in self.prefetches if self.boundless or depth * held.buffer <= room)
        depth = next(fitting, None)
        if depth is None:
            self.rejected["no memory for a payload ahead"] += 1
        return depth

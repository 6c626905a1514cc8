"""Pairs of a teacher's and a student's layout on every allocation: what a step of both takes, and what does not pay."""

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence

from kd_launch.cluster import Cluster, Pool
from kd_launch.cost.constants import GB, MICRO
from kd_launch.cost.transport import Route, transport_seconds
from kd_launch.plan import Payload
from kd_launch.planner.choices import Choice
from kd_launch.planner.layouts import Allocation, Share, allocations, micro_batches
from kd_launch.planner.tables import SAME, StudentOption, Tables, TeacherOption, Unit, family
from kd_launch.spec import Spec


def payloads(spec: Spec, *, head_is_known: bool) -> tuple[Payload, ...]:
    """What may travel: as pinned, else both exact ones."""
    if spec.distillation.payload != "auto":
        return (spec.distillation.payload,)
    return ("hidden_states", "logits") if head_is_known else ("logits",)


def units_of(tables: Tables, allocation: Allocation) -> list[Unit]:
    """Every micro-batch and payload that the allocation allows."""
    kinds = payloads(tables.spec, head_is_known=tables.setting.teacher.head_is_known)
    return [Unit(size, kind) for size in micro_batches(tables.spec, allocation.student.gpus) for kind in kinds]


def all_choices(tables: Tables, cluster: Cluster) -> Iterator[Choice]:
    """Of every allocation and unit, but those that cannot be the best of anything."""
    enough: set[tuple[Share, str, bool, Unit]] = set()
    fronts: dict[tuple[str, str], Front] = {}
    for allocation in allocations(tables.spec, cluster):
        front = fronts.setdefault((allocation.teacher.pool, allocation.student.pool), Front())
        allocated = allocated_gpus(cluster, allocation)
        for unit in units_of(tables, allocation):
            if allocation.placement == "colocated":
                yield from _colocated(tables, cluster, allocation, unit)
                continue
            key = (allocation.student, allocation.teacher.pool, allocation.shares_nodes, unit)
            if key in enough:
                tables.rejected["more teachers than the student needs"] += 1
            elif front.beats(_least_seconds(tables, allocation, unit), allocated):
                tables.rejected["slower and dearer than another split"] += 1
            else:
                for choice in _disjoint(tables, cluster, allocation, unit):
                    if max(choice.teacher.seconds, choice.transport) <= choice.student.seconds:
                        enough.add(key)  # allocations of one student come with ever more teachers
                    front.add(choice.seconds, choice.gpu_seconds)
                    yield choice


class Front:
    """The fastest and the cheapest choices so far: step seconds rising, GPU seconds falling."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._gpu_seconds: list[float] = []

    def beats(self, seconds: float, gpus: int) -> bool:
        """Whether a known choice is both faster and cheaper, clearly, than one of at least `seconds` can be."""
        place = bisect.bisect_right(self._seconds, seconds / SAME)
        return place > 0 and self._gpu_seconds[place - 1] <= seconds * gpus / SAME

    def add(self, seconds: float, gpu_seconds: float) -> None:
        place = bisect.bisect_right(self._seconds, seconds)
        if place > 0 and self._gpu_seconds[place - 1] <= gpu_seconds:
            return
        end = place
        while end < len(self._seconds) and self._gpu_seconds[end] >= gpu_seconds:
            end += 1
        self._seconds[place:end] = [seconds]
        self._gpu_seconds[place:end] = [gpu_seconds]


def _least_seconds(tables: Tables, allocation: Allocation, unit: Unit) -> float:
    """What no layout of the allocation undercuts: the student's fastest, and whole teachers that never wait."""
    students = tables.students_apart(allocation.student, unit)
    if not students:
        return math.inf
    whole = tables.whole_teacher_seconds(allocation.teacher, unit)
    return max(students[0][0].seconds, whole * tables.items(unit) / allocation.teacher.gpus)


def choices_on(tables: Tables, cluster: Cluster, allocation: Allocation) -> Iterator[Choice]:
    """Every micro-batch and payload with the fastest student and each family's fastest teacher that fit."""
    pair = _colocated if allocation.placement == "colocated" else _disjoint
    for unit in units_of(tables, allocation):
        yield from pair(tables, cluster, allocation, unit)


def _colocated(tables: Tables, cluster: Cluster, allocation: Allocation, unit: Unit) -> Iterator[Choice]:
    """The roles take turns: times add up, residents too, and of the transients the larger counts."""
    share = allocation.student
    allocated = allocated_gpus(cluster, allocation)
    site = tables.sites[share.pool]
    teachers = tables.teachers(share, unit)
    for _, of_family in itertools.groupby(teachers, key=lambda option: family(option.degrees)):
        pairs = [
            pair for teacher in of_family if (pair := _fastest_beside(tables, teacher, allocation, unit)) is not None
        ]
        if pairs:
            teacher, student = min(pairs, key=lambda pair: pair[0].seconds + pair[1].seconds)
            seconds = teacher.seconds + student.seconds
            fullness = (colocated_gib(teacher, student) + site.context_gib) / site.memory_limit_gib
            yield Choice(seconds, allocation, unit, teacher, student, 0.0, 0, allocated, fullness)


def _fastest_beside(
    tables: Tables, teacher: TeacherOption, allocation: Allocation, unit: Unit
) -> tuple[TeacherOption, StudentOption] | None:
    """The fastest student that fits on the same GPUs."""
    split = any(family(teacher.degrees))  # a whole teacher has its head at hand
    room = tables.room(allocation.student)
    for student in tables.students(allocation.student, unit, holds_head=split):
        if colocated_gib(teacher, student) <= room:
            return teacher, student
        tables.rejected["both roles together exceed a GPU's memory"] += 1
    return None


def colocated_gib(teacher: TeacherOption, student: StudentOption) -> float:
    """Of both roles on one GPU, with the payload that passes between them."""
    transient = max(teacher.transient, student.transient)
    return teacher.resident + student.resident + transient + student.buffer


def _disjoint(tables: Tables, cluster: Cluster, allocation: Allocation, unit: Unit) -> Iterator[Choice]:
    """The roles work at the same time, the teacher ahead: the slowest of them and the transport sets the pace."""
    students = tables.students_apart(allocation.student, unit)
    if not students:
        return
    allocated = allocated_gpus(cluster, allocation)
    turns = tables.items(unit) // allocation.student.gpus
    coupling = MICRO * tables.setting.constants.time.coupling_us * turns
    for teacher, ahead in tables.teachers_apart(allocation.teacher, unit):
        transport = _transport(tables, cluster, allocation, unit, teacher)
        pace = max(teacher.seconds, transport, students[0][0].seconds)
        student, room = _simplest(students, pace * SAME)
        seconds = max(teacher.seconds, transport, student.seconds) + coupling
        depth = min(ahead, room)
        fullness = max(
            tables.fullness(allocation.teacher, teacher, depth), tables.fullness(allocation.student, student, depth)
        )
        yield Choice(seconds, allocation, unit, teacher, student, transport, depth, allocated, fullness)


def _simplest(students: Sequence[tuple[StudentOption, int]], pace: float) -> tuple[StudentOption, int]:
    """Of the students that keep up, since another part may set the pace. The first one does."""
    return min(
        (found for found in students if found[0].seconds <= pace),
        key=lambda found: (found[0].complexity, found[0].seconds),
    )


def _transport(tables: Tables, cluster: Cluster, allocation: Allocation, unit: Unit, teacher: TeacherOption) -> float:
    setting, items = tables.setting, tables.items(unit)
    senders = allocation.teacher.gpus // teacher.degrees.sender_gpus
    one_pool = allocation.teacher.pool == allocation.student.pool
    route = Route(
        teacher=tables.sites[allocation.teacher.pool].fabric,
        student=tables.sites[allocation.student.pool].fabric,
        teacher_nodes=max(1.0, allocation.teacher.nodes / teacher.degrees.pp),
        student_nodes=allocation.student.nodes,
        pairs=min(senders, allocation.student.gpus),
        same_node=allocation.nodes == 1,
        foreign=None if one_pool or cluster.same_fabric else GB * setting.constants.links.foreign_gb_per_s,
    )
    tokens = tables.spec.training.global_batch_size * setting.sequence_length
    messages = max(math.ceil(items / senders), items // allocation.student.gpus)
    return transport_seconds(route, tokens * setting.payload_bytes_per_token(unit.payload), messages)


def allocated_gpus(cluster: Cluster, allocation: Allocation) -> int:
    """GPUs that the job holds, those without a rank too: whole nodes where the site gives no less."""
    if cluster.scheduler == "local":
        return allocation.gpus
    teacher, student = allocation.teacher, allocation.student
    if allocation.placement == "colocated":
        return _held(cluster.pool(student.pool), student.nodes, student.per_node)
    if allocation.shares_nodes:
        size = cluster.pool(student.pool).gpus_per_node
        return _held(cluster.pool(student.pool), allocation.nodes, min(size, allocation.gpus))
    return sum(_held(cluster.pool(share.pool), share.nodes, share.per_node) for share in (teacher, student))


def _held(pool: Pool, nodes: int, per_node: int) -> int:
    whole = pool.gpu_directive is None or any(line.startswith("--exclusive") for line in pool.sbatch)
    return nodes * (pool.gpus_per_node if whole else per_node)

"""Pairs of a teacher's and a student's layout on one allocation: what a step of both takes."""

import math
from collections.abc import Iterator, Sequence

from kd_launch.cluster import Cluster, Pool
from kd_launch.cost.constants import GB, MICRO
from kd_launch.cost.transport import Route, transport_seconds
from kd_launch.plan import Payload
from kd_launch.planner.allocations import Allocation
from kd_launch.planner.choices import Choice
from kd_launch.planner.crowding import crowded_seconds
from kd_launch.planner.layouts import Share, Stages, micro_batches
from kd_launch.planner.options import SAME, Family, Held, StudentOption, TeacherOption, Unit, family
from kd_launch.planner.tables import Tables
from kd_launch.spec import Spec


def payloads(spec: Spec, *, head_is_known: bool) -> tuple[Payload, ...]:
    """What may travel: as pinned, else both exact ones."""
    if spec.distillation.payload != "auto":
        return (spec.distillation.payload,)
    return ("hidden_states", "logits") if head_is_known else ("logits",)


def units_of(tables: Tables, student_gpus: int) -> list[Unit]:
    """Every micro-batch and payload that so many GPUs of the student allow."""
    kinds = payloads(tables.spec, head_is_known=tables.setting.teacher.head_is_known)
    return [Unit(size, kind) for size in micro_batches(tables.spec, student_gpus) for kind in kinds]


def choices_on(tables: Tables, cluster: Cluster, allocation: Allocation) -> Iterator[Choice]:
    """Every micro-batch and payload, with each family's fastest pair that fits."""
    pair = colocated_choices if allocation.placement == "colocated" else disjoint_choices
    for unit in units_of(tables, allocation.student.gpus):
        yield from pair(tables, cluster, allocation, unit)


def colocated_choices(tables: Tables, cluster: Cluster, allocation: Allocation, unit: Unit) -> Iterator[Choice]:
    """Each family's fastest pair. The roles take turns: times add up, residents too, and of the transients the larger
    counts."""
    share = allocation.student
    allocated = allocated_gpus(cluster, allocation)
    site = tables.sites[share.pool]
    best: dict[Family, tuple[TeacherOption, StudentOption]] = {}
    for stages in tables.stages(share):
        for pair in _fastest_beside(tables, share, stages, unit):
            known = best.get(family(pair[0].degrees))
            if known is None or pair[0].seconds + pair[1].seconds < known[0].seconds + known[1].seconds:
                best[family(pair[0].degrees)] = pair
    for teacher, student in best.values():
        works = teacher.seconds - teacher.fill
        crowded = crowded_seconds(tables.sites, allocation, works, student.seconds, 0.0)
        seconds = max(teacher.seconds + student.seconds, crowded)
        head = tables.head_gib(unit) if any(family(teacher.degrees)) else 0.0
        fullness = (colocated_gib(teacher, student) + head + site.context_gib) / site.memory_limit_gib
        yield Choice(seconds, allocation, unit, teacher, student, 0.0, 0, allocated, fullness)


def _fastest_beside(
    tables: Tables, share: Share, stages: Stages, unit: Unit
) -> Iterator[tuple[TeacherOption, StudentOption]]:
    """Pairs that fit on the same GPUs: ever more shards of the teacher, which only slow it, while they make room for a
    faster student."""
    students = tables.students(share, unit)
    fastest: int | None = None
    for degrees in stages.degrees():
        held = tables.held(degrees, unit)
        if not students or not tables.has_room("teacher", held, share.pool):
            continue
        # a whole teacher has its head at hand
        room = tables.room(share.pool) - (tables.head_gib(unit) if any(family(degrees)) else 0.0)
        place = next((i for i, student in enumerate(students) if colocated_gib(held, student) <= room), None)
        if place is None:
            tables.rejected["both roles together exceed a GPU's memory"] += 1
        elif degrees.fsdp == 1 or fastest is None or place < fastest:
            yield tables.teacher(share, degrees, unit, colocated=True), students[place]
            fastest = place if degrees.fsdp > 1 else None
        if place == 0 and degrees.fsdp > 1:
            return


def colocated_gib(teacher: Held | TeacherOption, student: StudentOption) -> float:
    """Of both roles on one GPU, with the payload that passes between them; without a copy of the teacher's head."""
    transient = max(teacher.transient, student.transient)
    return teacher.resident + student.resident + transient + student.buffer


def disjoint_choices(tables: Tables, cluster: Cluster, allocation: Allocation, unit: Unit) -> Iterator[Choice]:
    """Each family's fastest. The roles work at the same time, the teacher ahead: the slowest of them and the transport
    sets the pace."""
    students = tables.students_apart(allocation.student, unit)
    if not students:
        return
    allocated = allocated_gpus(cluster, allocation)
    for teacher, ahead in tables.teachers_apart(allocation.teacher, unit):
        transport = transport_of(tables, cluster, allocation, unit, teacher)
        pace = max(teacher.seconds, transport, students[0][0].seconds)
        student, room = _simplest(students, pace * SAME)
        crowded = crowded_seconds(tables.sites, allocation, teacher.seconds, student.seconds, transport)
        seconds = max(teacher.seconds, transport, student.seconds, crowded)
        seconds += coupling_seconds(tables, allocation.student, unit)
        depth = min(ahead, room)
        fullness = max(
            tables.fullness(allocation.teacher, teacher, depth), tables.fullness(allocation.student, student, depth)
        )
        yield Choice(seconds, allocation, unit, teacher, student, transport, depth, allocated, fullness)


def coupling_seconds(tables: Tables, student: Share, unit: Unit) -> float:
    """What asking and waiting for payloads costs a step."""
    turns = tables.items(unit) // student.gpus
    return MICRO * tables.setting.constants.time.coupling_us * turns


def _simplest(students: Sequence[tuple[StudentOption, int]], pace: float) -> tuple[StudentOption, int]:
    """Of the students that keep up, since another part may set the pace. The first one does."""
    return min(
        (found for found in students if found[0].seconds <= pace),
        key=lambda found: (found[0].complexity, found[0].seconds),
    )


def transport_of(tables: Tables, cluster: Cluster, allocation: Allocation, unit: Unit, teacher: TeacherOption) -> float:
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

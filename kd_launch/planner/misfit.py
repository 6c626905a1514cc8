"""Why nothing fits, by how much, and what would help: the message of DoesNotFitError."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from kd_launch.cluster import Cluster
from kd_launch.plan import Layout, RoleLayout, describe_role
from kd_launch.planner.allocations import Allocation, colocations, splits
from kd_launch.planner.choices import Choice
from kd_launch.planner.layouts import pinned_gpus
from kd_launch.planner.options import StudentOption, TeacherOption, Unit
from kd_launch.planner.pairing import choices_on, colocated_gib, units_of
from kd_launch.planner.prediction import layout_of
from kd_launch.planner.reasons import figure
from kd_launch.planner.tables import Tables
from kd_launch.spec import Spec, StudentParallelism, TeacherParallelism

MOST_NODES = 1024
"""Of a pool, when asking how many would do."""

SHORTEST = 128
"""Tokens of a sequence, when asking how many would do."""

PINS = (
    ("training", "micro_batch_size"),
    ("student", "activation_recompute"),
    ("student", "reshard_after_forward"),
    ("student", "parallelism"),
    ("teacher", "parallelism"),
    ("student", "gpus"),
    ("teacher", "gpus"),
    ("student", "pool"),
    ("teacher", "pool"),
    ("distillation", "prefetch"),
    ("distillation", "payload"),
)
"""Fields that narrow the search, in the order in which one would give them up."""


class _Miss(NamedTuple):
    """A layout that does not fit, and the role that misses most."""

    role: RoleLayout
    words: str

    @property
    def excess(self) -> float:
        return self.role.memory_gib - self.role.memory_limit_gib


def explain_misfit(tables: Tables, cluster: Cluster) -> str:
    """One line: the closest layout, by how much it misses, its largest part, and a way out."""
    unable = _unable(tables)
    if unable is not None:
        return unable
    closest = _closest(tables, cluster)
    if closest is None:
        return f"{_nothing_to_try(tables.spec, cluster)}{_way_out(tables, cluster)}"
    role = closest.role
    part, size = max(role.memory_parts_gib.items(), key=lambda item: item[1])
    return (
        f"nothing fits: the closest layout ({closest.words}) needs {figure(role.memory_gib)} GiB per GPU in "
        f"pool {role.pool}, {figure(closest.excess)} GiB more than the {figure(role.memory_limit_gib)} that may be "
        f"used; its largest part is {part}, {figure(size)} GiB{_way_out(tables, cluster)}"
    )


def _unable(tables: Tables) -> str | None:
    """Hardware without the dtype."""
    for word, dtype in (("teacher", tables.spec.teacher.dtype), ("student", tables.spec.student.dtype)):
        sites = list(tables.sites.values())
        if all((site.teacher_device if word == "teacher" else site.student_device) is None for site in sites):
            gpus = ", ".join(sorted({site.gpu.id for site in sites}))
            return f"{word}.dtype: {gpus} cannot compute in {dtype}; set {word}.dtype to float16 or float32"
    return None


def _nothing_to_try(spec: Spec, cluster: Cluster) -> str:
    """No way to give both roles their GPUs, whatever the memory."""
    apart = "auto" not in (spec.teacher.pool, spec.student.pool) and spec.teacher.pool != spec.student.pool
    if cluster.scheduler == "slurm" and apart and not cluster.hetjobs:
        return (
            f"no layout is possible: teacher.pool {spec.teacher.pool} and student.pool {spec.student.pool} need a het "
            "job, which the cluster refuses (hetjobs: false); put both roles in one pool"
        )
    kept = [f"{field} {value}" for field, value in _narrowing(spec)]
    pools = ", ".join(f"pool {pool.name} with {pool.nodes} x {pool.gpus_per_node} GPUs" for pool in cluster.pools)
    return f"no layout is possible: {', '.join(kept)} leave no GPUs for both roles in {pools}"


def _narrowing(spec: Spec) -> Iterator[tuple[str, object]]:
    """What keeps the roles from having any GPUs."""
    for word, count in zip(("teacher", "student"), pinned_gpus(spec), strict=True):
        if count is not None:
            yield f"{word} GPUs", count
    for field in ("placement", "launch"):
        if getattr(spec, field) != "auto":
            yield field, getattr(spec, field)
    if spec.max_nodes is not None:
        yield "max_nodes", spec.max_nodes
    yield "a global batch of", _batch(spec)


def _batch(spec: Spec) -> str:
    size = spec.training.micro_batch_size
    return f"{spec.training.global_batch_size}{'' if size == 'auto' else f' in micro-batches of {size}'}"


def _closest(tables: Tables, cluster: Cluster) -> _Miss | None:
    """Of the largest allocations of each kind, the layout that exceeds the limit by least."""
    boundless = Tables(tables.spec, tables.setting, tables.sites, boundless=True)
    choices = (
        choice
        for allocation in _largest(tables.spec, cluster)
        for unit in units_of(boundless, allocation.student.gpus)
        if (choice := _least_memory(boundless, allocation, unit)) is not None
    )
    return min((_miss(layout_of(boundless, choice)) for choice in choices), key=lambda miss: miss.excess, default=None)


def _largest(spec: Spec, cluster: Cluster) -> list[Allocation]:
    """More GPUs of a kind never need more memory each."""
    found: dict[tuple[str, str, str, bool], list[Allocation]] = {}
    apart = (split.allocation(split.counts[-1]) for split in splits(spec, cluster))
    for allocation in itertools.chain(colocations(spec, cluster), apart):
        key = (allocation.placement, allocation.teacher.pool, allocation.student.pool, allocation.shares_nodes)
        kept = found.setdefault(key, [])
        if not kept or allocation.gpus >= kept[0].gpus:
            found[key] = [*(other for other in kept if other.gpus == allocation.gpus), allocation]
    return [allocation for kept in found.values() for allocation in kept]


def _least_memory(boundless: Tables, allocation: Allocation, unit: Unit) -> Choice | None:
    colocated = allocation.placement == "colocated"
    teachers = boundless.teachers(allocation.teacher, unit)
    if colocated:
        students = boundless.students(allocation.student, unit)
    else:
        students = [student for student, _ in boundless.students_apart(allocation.student, unit)]
    if not teachers or not students:
        return None
    if colocated:
        pairs = [(teacher, student) for teacher in teachers for student in students]
        teacher, student = min(pairs, key=lambda pair: colocated_gib(*pair))
    else:
        teacher, student = min(teachers, key=_gib), min(students, key=_gib)
    return Choice(
        seconds=teacher.seconds + student.seconds,
        allocation=allocation,
        unit=unit,
        teacher=teacher,
        student=student,
        transport=0.0,
        prefetch=0 if colocated else boundless.prefetches[-1],
        allocated=allocation.gpus,
        fullness=0.0,
    )


def _gib(option: TeacherOption | StudentOption) -> float:
    return option.resident + option.transient + option.buffer


def _miss(layout: Layout) -> _Miss:
    """The role that misses most, or the GPUs of both when colocated."""
    student, teacher = layout.student, layout.teacher
    axes = f"teacher {describe_role(teacher)}, student {describe_role(student)}, micro-batch {student.micro_batch_size}"
    if layout.colocated:
        return _Miss(student, f"colocated on {_gpus(student.gpus)}, {axes}")
    where = f"{_gpus(teacher.gpus)} for the teacher and {_gpus(student.gpus)} for the student"
    role = max((teacher, student), key=lambda role: role.memory_gib - role.memory_limit_gib)
    word = "teacher" if role is teacher else "student"
    return _Miss(role, f"{where}, {axes}; the {word} misses")


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count != 1 else ''}"


def _way_out(tables: Tables, cluster: Cluster) -> str:
    """A clause with the first change that makes something fit: more nodes, a pin less, shorter sequences."""
    spec = tables.spec
    nodes = _enough_nodes(tables, cluster)
    if nodes is not None:
        return f"; {nodes} nodes would do"
    freed = next((field for field, free in _without_each_pin(spec) if _fits(tables, free, cluster)), None)
    if freed is not None:
        return f"; it would fit without {freed}"
    length = spec.data.sequence_length // 2
    while length >= SHORTEST:
        shorter = spec.model_copy(update={"data": spec.data.model_copy(update={"sequence_length": length})})
        if _fits(tables, shorter, cluster):
            return f"; data.sequence_length {length} would fit"
        length //= 2
    return "; take a smaller teacher or student, or more memory per GPU"


def _fits(tables: Tables, spec: Spec, cluster: Cluster) -> bool:
    changed = Tables(spec, replace(tables.setting, sequence_length=spec.data.sequence_length), tables.sites)
    return any(True for allocation in _largest(spec, cluster) for _ in choices_on(changed, cluster, allocation))


def _enough_nodes(tables: Tables, cluster: Cluster) -> int | None:
    """The fewest nodes per pool, doubled from what there is; None: no number helps, or the scheduler has one node."""
    if cluster.scheduler == "local":
        return None
    spec = tables.spec.model_copy(update={"max_nodes": None})
    most = min(tables.spec.max_nodes or MOST_NODES, max(pool.nodes for pool in cluster.pools))
    for nodes in itertools.takewhile(lambda nodes: nodes <= MOST_NODES, (most << i for i in range(1, 12))):
        pools = tuple(pool.model_copy(update={"nodes": nodes}) for pool in cluster.pools)
        if _fits(tables, spec.model_copy(update={"max_nodes": nodes}), cluster.model_copy(update={"pools": pools})):
            return nodes
    return None


def _without_each_pin(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """The spec with one pin less, and how to name what was left out."""
    for section, field in PINS:
        part = getattr(spec, section)
        if getattr(part, field) != "auto":
            free = spec.model_copy(update={section: part.model_copy(update={field: "auto"})})
            yield f"{section}.{field}: {_value(getattr(part, field))}", free
    if spec.placement != "auto":
        yield f"placement: {spec.placement}", spec.model_copy(update={"placement": "auto"})
    if spec.launch != "auto":
        yield f"launch: {spec.launch}", spec.model_copy(update={"launch": "auto"})
    if spec.max_nodes is not None:
        yield f"max_nodes: {spec.max_nodes}", spec.model_copy(update={"max_nodes": None})


def _value(pin: object) -> str:
    """As YAML has it."""
    if isinstance(pin, TeacherParallelism | StudentParallelism):
        return "{" + ", ".join(f"{axis}: {degree}" for axis, degree in pin.model_dump().items()) + "}"
    return str(pin).lower() if isinstance(pin, bool) else str(pin)

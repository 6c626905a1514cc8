"""Enumeration: which GPUs each role may have (Allocation), how a role may lie on them, which micro-batches."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from kd_launch.architecture import Architecture
from kd_launch.cluster import Cluster, Pool
from kd_launch.cost.setting import StudentDegrees, TeacherDegrees
from kd_launch.plan import Launch
from kd_launch.spec import Spec

LARGEST_MICRO_BATCH = 64


class Share(NamedTuple):
    """The GPUs of one role, in rank order."""

    pool: str
    nodes: int
    """That hold ranks of the role."""
    per_node: int
    """On the fullest of them."""
    gpus: int
    block: int
    """Every run of so many ranks, counted from the first, lies inside one node."""


def whole_share(pool: str, nodes: int, per_node: int) -> Share:
    """As many GPUs on each node."""
    return Share(pool, nodes, per_node, nodes * per_node, per_node)


def filled_shares(pool: Pool, teacher_gpus: int, student_gpus: int) -> tuple[Share, Share]:
    """The shares of ranks that fill node after node, the teacher's first, as one job step with both roles does."""
    size = pool.gpus_per_node
    start, end = teacher_gpus % size, teacher_gpus % size + student_gpus
    on_nodes = [min(size, end - node * size) - (start if node == 0 else 0) for node in range(-(-end // size))]
    block = student_gpus if len(on_nodes) == 1 else math.gcd(start, size)
    return (
        Share(pool.name, -(-teacher_gpus // size), min(teacher_gpus, size), teacher_gpus, min(teacher_gpus, size)),
        Share(pool.name, len(on_nodes), max(on_nodes), student_gpus, block),
    )


class Allocation(NamedTuple):
    """The GPUs of both roles; colocated roles have the same."""

    placement: Literal["disjoint", "colocated"]
    teacher: Share
    student: Share
    shares_nodes: bool
    launch: Launch | None

    @property
    def nodes(self) -> int:
        if self.placement == "colocated":
            return self.student.nodes
        return self.teacher.nodes + self.student.nodes - self.shares_nodes

    @property
    def gpus(self) -> int:
        return self.student.gpus if self.placement == "colocated" else self.teacher.gpus + self.student.gpus


@functools.cache
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, rising.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    large = [number // d for d in reversed(small) if d * d != number]
    return (*small, *large)


def pinned_gpus(spec: Spec) -> tuple[int | None, int | None]:
    """GPUs that the spec fixes for teacher and student, by `gpus` or by `parallelism`; None: free."""
    counts: list[int | None] = []
    for role in (spec.teacher, spec.student):
        if role.parallelism != "auto":
            counts.append(role.parallelism.gpus)
        else:
            counts.append(None if role.gpus == "auto" else role.gpus)
    return counts[0], counts[1]


def pinned_tp(spec: Spec) -> int:
    """Ranks of the teacher that must share a node, as far as the spec fixes them."""
    return 1 if spec.teacher.parallelism == "auto" else spec.teacher.parallelism.tp


def micro_batches(spec: Spec, student_gpus: int) -> tuple[int, ...]:
    """Sequences per micro-batch that divide the student's part of the global batch, rising."""
    share = spec.training.global_batch_size // student_gpus
    pinned = spec.training.micro_batch_size
    if pinned != "auto":
        return (pinned,) if share % pinned == 0 else ()
    return tuple(size for size in divisors(share) if size <= LARGEST_MICRO_BATCH)


def teacher_degrees(spec: Spec, teacher: Architecture, share: Share) -> tuple[TeacherDegrees, ...]:
    """Every legal split of one copy over GPUs of the share, fsdp rising last; the rest of the share are replicas."""
    pinned = spec.teacher.parallelism
    if pinned != "auto":
        return (TeacherDegrees(pinned.fsdp, pinned.tp, pinned.pp),)
    legal = tuple(tp for tp in divisors(share.block) if share.gpus % tp == 0 and teacher.legal_tp(tp))
    return _teacher_degrees(share.gpus, share.block, legal, teacher.layers)


@functools.lru_cache(maxsize=4096)
def _teacher_degrees(gpus: int, block: int, legal_tp: tuple[int, ...], layers: int) -> tuple[TeacherDegrees, ...]:
    return tuple(
        TeacherDegrees(fsdp, tp, pp)
        for tp in legal_tp
        for pp in divisors(gpus // tp)
        if pp <= layers
        for fsdp in divisors(gpus // tp // pp)
        if _packs(tp * fsdp, gpus, block)
    )


def student_degrees(spec: Spec, share: Share) -> tuple[StudentDegrees, ...]:
    """Every legal way to lay the training state over the share, with what may be computed or gathered twice."""
    pinned = spec.student.parallelism
    if pinned != "auto":
        shards: tuple[int, ...] = (pinned.fsdp,)
    else:
        shards = tuple(fsdp for fsdp in divisors(share.gpus) if _packs(fsdp, share.gpus, share.block))
    wanted = spec.student.activation_recompute
    recomputes = (False, True) if wanted == "auto" else (wanted == "full",)
    reshard = spec.student.reshard_after_forward
    reshards: tuple[bool, ...] = (False, True) if reshard == "auto" else (reshard,)
    return tuple(
        StudentDegrees(share.gpus // fsdp, fsdp, recompute, freed)
        for fsdp in shards
        for recompute in recomputes
        for freed in (reshards if fsdp > 1 else (None,))
    )


def _packs(group: int, gpus: int, block: int) -> bool:
    """Whether groups of neighbouring ranks fill nodes without one that begins in the middle of a node and leaves it."""
    return block % group == 0 or group % block == 0 or group == gpus


def allocations(spec: Spec, cluster: Cluster) -> Iterator[Allocation]:
    """Every way to give both roles their GPUs that the spec's pins and the site's launch rules allow."""
    teacher_pools, student_pools = allowed_pools(spec, cluster)
    if spec.placement != "disjoint":
        for pool in student_pools:
            if pool in teacher_pools:
                yield from _launchable(spec, cluster, _colocated(spec, pool))
    if spec.placement != "colocated":
        for student_pool in student_pools:
            if student_pool in teacher_pools:
                yield from _launchable(spec, cluster, _shared(spec, student_pool))
            for teacher_pool in teacher_pools:
                yield from _launchable(spec, cluster, _apart(spec, cluster, teacher_pool, student_pool))


def allowed_pools(spec: Spec, cluster: Cluster) -> tuple[list[Pool], list[Pool]]:
    """Pools that teacher and student may use."""
    return (
        [pool for pool in cluster.pools if spec.teacher.pool in ("auto", pool.name)],
        [pool for pool in cluster.pools if spec.student.pool in ("auto", pool.name)],
    )


def most_nodes(spec: Spec, pool: Pool) -> int:
    """Of one pool, for both roles."""
    return min(pool.nodes, spec.max_nodes or pool.nodes)


def _launchable(spec: Spec, cluster: Cluster, found: Iterator[Allocation]) -> Iterator[Allocation]:
    for allocation in found:
        launch = launch_of(spec, cluster, allocation)
        if launch != "refused":
            yield allocation._replace(launch=launch)


def launch_of(spec: Spec, cluster: Cluster, allocation: Allocation) -> Launch | Literal["refused"] | None:
    """How Slurm starts both roles: the spec's wish, else ranks where they share a node, since components never do;
    else a het job, its two parts as two steps where a step may not span them; else one job with two parts."""
    if cluster.scheduler == "local":
        return None
    legal = _legal_launches(cluster, allocation)
    if spec.launch != "auto":
        return spec.launch if spec.launch in legal else "refused"
    return legal[0] if legal else "refused"


def _legal_launches(cluster: Cluster, allocation: Allocation) -> list[Launch]:
    """Best first."""
    if allocation.shares_nodes:
        return ["ranks"]
    legal: list[Launch] = []
    if cluster.hetjobs:
        legal += ["hetjob", "two_steps"] if cluster.hetjob_steps else ["two_steps"]
    if allocation.teacher.pool == allocation.student.pool:
        legal += ["hetstep"] if cluster.hetjob_steps else []
        legal += ["ranks"] if _fills_in_order(allocation) else []
    return legal


def _fills_in_order(allocation: Allocation) -> bool:
    """Whether one step that fills node after node, all but the last to the same number, makes these shares."""
    teacher, student = allocation.teacher, allocation.student
    return teacher.per_node == student.per_node or (student.nodes == 1 and student.per_node < teacher.per_node)


def _colocated(spec: Spec, pool: Pool) -> Iterator[Allocation]:
    pins = set(pinned_gpus(spec)) - {None}
    if len(pins) < 2:
        pin = next(iter(pins), None)
        for share in _shares(spec, pool, pin, together=pinned_tp(spec), whole=False, divides=True):
            yield Allocation("colocated", share, share, shares_nodes=True, launch=None)


def _shared(spec: Spec, pool: Pool) -> Iterator[Allocation]:
    """One allocation whose nodes are filled one after the other, so that a node in the middle holds both roles."""
    teacher_pin, student_pin = pinned_gpus(spec)
    size, batch, most = pool.gpus_per_node, spec.training.global_batch_size, most_nodes(spec, pool)
    students = [student_pin] if student_pin is not None else [n for n in divisors(batch) if n < most * size]
    for student in students:
        teachers = [teacher_pin] if teacher_pin is not None else _teachers_beside(student, size, most)
        for teacher in teachers:
            shares = filled_shares(pool, teacher, student)
            is_shared = teacher + student <= most * size and teacher % size
            if is_shared and shares[0].block % pinned_tp(spec) == 0:
                yield Allocation("disjoint", *shares, shares_nodes=True, launch=None)


def _teachers_beside(student: int, size: int, most: int) -> Iterator[int]:
    """Teacher GPUs that fill up the nodes with the student's: any number on one node; on several the rest of the last
    node or the most of it that 2, 4 or another part of a node's GPUs divide."""
    if student < size:
        yield from range(1, size - student + 1)
    for nodes in range(max(2, -(-(student + 1) // size)), most + 1):
        left = nodes * size - student
        yield from sorted({left - left % part for part in divisors(size) if left - left % part > left - size} - {0})


def _apart(spec: Spec, cluster: Cluster, teacher_pool: Pool, student_pool: Pool) -> Iterator[Allocation]:
    """Whole nodes for each role."""
    if cluster.scheduler == "local":
        return
    pins = pinned_gpus(spec)
    one_pool = teacher_pool == student_pool
    most = min(spec.max_nodes or student_pool.nodes + teacher_pool.nodes, teacher_pool.nodes + student_pool.nodes)
    if one_pool:
        most = min(most, student_pool.nodes)
    teachers = list(_shares(spec, teacher_pool, pins[0], together=pinned_tp(spec), whole=True, divides=False))
    for student in _shares(spec, student_pool, pins[1], together=1, whole=True, divides=True):
        for teacher in teachers:
            if teacher.nodes + student.nodes <= most:
                yield Allocation("disjoint", teacher, student, shares_nodes=False, launch=None)


def _shares(
    spec: Spec, pool: Pool, pinned: int | None, *, together: int, whole: bool, divides: bool
) -> Iterator[Share]:
    """Shares of a pool, with as many GPUs on each node; a pinned number lies on as few nodes as it can.

    together: ranks in order that must share a node. whole: one node is not divided. divides: the GPUs must divide the
    global batch, so that where whole nodes do not, the most GPUs of each that do are taken and the rest stays idle.
    """
    size, nodes = pool.gpus_per_node, range(1, most_nodes(spec, pool) + 1)
    if pinned is not None:
        packed = (n for n in nodes if pinned % n == 0 and pinned // n <= size and pinned // n % together == 0)
        yield from (whole_share(pool.name, n, pinned // n) for n in itertools.islice(packed, 1))
        return
    batch = spec.training.global_batch_size
    for count in nodes:
        fitting = [n for n in range(size, 0, -1) if not divides or batch % (count * n) == 0]
        several = count == 1 and not whole
        for per_node in fitting if several else fitting[:1]:
            yield whole_share(pool.name, count, per_node)

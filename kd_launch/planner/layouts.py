"""Enumeration of one role: the GPUs that it has (Share), how it may lie on them, which micro-batches."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

from kd_launch.architecture import Architecture
from kd_launch.cluster import Pool
from kd_launch.cost.setting import StudentDegrees, TeacherDegrees
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


class Stages(NamedTuple):
    """Legal splits of one copy of the teacher that differ in fsdp alone."""

    tp: int
    pp: int
    fsdps: tuple[int, ...]
    """Rising."""

    def degrees(self) -> Iterator[TeacherDegrees]:
        return (TeacherDegrees(fsdp, self.tp, self.pp) for fsdp in self.fsdps)


def teacher_stages(spec: Spec, teacher: Architecture, share: Share) -> tuple[Stages, ...]:
    """Every legal split of one copy over GPUs of the share; the rest of the share are replicas."""
    pinned = spec.teacher.parallelism
    if pinned != "auto":
        return (Stages(pinned.tp, pinned.pp, (pinned.fsdp,)),)
    if not teacher.can_be_split:
        return (Stages(1, 1, (1,)),)
    legal = tuple(tp for tp in divisors(share.block) if share.gpus % tp == 0 and teacher.legal_tp(tp))
    return _teacher_stages(share.gpus, share.block, legal, teacher.layers)


@functools.lru_cache(maxsize=4096)
def _teacher_stages(gpus: int, block: int, legal_tp: tuple[int, ...], layers: int) -> tuple[Stages, ...]:
    return tuple(
        Stages(tp, pp, tuple(n for n in divisors(gpus // tp // pp) if _packs(tp * n, gpus, block)))
        for tp in legal_tp
        for pp in divisors(gpus // tp)
        if pp <= layers
    )


def teacher_degrees(spec: Spec, teacher: Architecture, share: Share) -> tuple[TeacherDegrees, ...]:
    """The same, one by one."""
    return tuple(degrees for stages in teacher_stages(spec, teacher, share) for degrees in stages.degrees())


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

"""Which ranks of a layout exchange data, and in which order each of these links is tried before the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Literal

from kd_launch.plan import Layout, RoleLayout


@dataclass(frozen=True)
class Check:
    """One thing that some ranks do together for the first time."""

    kind: Literal["meeting", "groups", "tp", "fsdp", "students", "shard", "replicate", "chain", "delivery", "lane"]
    members: tuple[int, ...]
    """Global ranks; of a message the sender's, then the receiver's."""

    @property
    def is_message(self) -> bool:
        return self.kind in ("chain", "delivery", "lane")

    @property
    def what(self) -> str:
        match self.kind:
            case "meeting":
                return "the meeting of all ranks"
            case "groups":
                return "making the groups of all ranks"
            case "chain" | "delivery" | "lane":
                return f"the first message from rank {self.members[0]} to rank {self.members[1]}"
            case _:
                return f"the first sum over {rank_list(self.members)}"


def checks_of(layout: Layout) -> tuple[Check, ...]:
    """Every check, in the order in which each rank comes to its own. All ranks share the first two.

    The order cannot deadlock: of all checks not yet done, the first one has no member that is busy with another.
    """
    everybody = tuple(range(layout.world_size))
    sums = [Check("tp", group) for group in tp_groups(layout)]
    sums += [Check("fsdp", group) for group in fsdp_groups(layout)]
    sums += [Check("students", tuple(layout.student_ranks))]
    sums += [Check("shard", group) for group in shard_groups(layout)]
    sums += [Check("replicate", group) for group in replicate_groups(layout)]
    messages = [Check("lane", (t, s)) for teachers, students in lanes(layout) for t in teachers for s in students]
    for chain in chains(layout):
        messages += [Check("chain", pair) for pair in pairwise(chain)]
        messages += [Check("delivery", (chain[-1], earlier)) for earlier in chain[:-1] if layout.colocated]
    return (
        Check("meeting", everybody),
        Check("groups", everybody),
        *(check for check in sums if len(check.members) > 1),
        *sorted(messages, key=lambda check: check.members),
    )


@dataclass(frozen=True)
class TeacherPlace:
    """Where a rank stands in the teacher. Tensor-parallel ranks are neighbours, then come shards, then stages.

    An instance is what computes a micro-batch together: ranks of all stages with one replica and one shard.
    """

    replica: int
    stage: int
    shard: int
    tp_rank: int
    instance: int

    @classmethod
    def of(cls, teacher: RoleLayout, rank: int) -> "TeacherPlace":
        """Of a rank within the role."""
        outer, tp_rank = divmod(rank, teacher.tp)
        outer, shard = divmod(outer, teacher.fsdp)
        replica, stage = divmod(outer, teacher.pp)
        return cls(replica, stage, shard, tp_rank, replica * teacher.fsdp + shard)


def rank_of(teacher: RoleLayout, instance: int, stage: int, tp_rank: int) -> int:
    """The rank within the role; the reverse of `TeacherPlace.of`."""
    replica, shard = divmod(instance, teacher.fsdp)
    return ((replica * teacher.pp + stage) * teacher.fsdp + shard) * teacher.tp + tp_rank


def senders(teacher: RoleLayout, instance: int) -> tuple[int, ...]:
    """The ranks that hold an instance's payloads: the last stage's, one for each stripe."""
    return tuple(rank_of(teacher, instance, teacher.pp - 1, tp_rank) for tp_rank in range(teacher.tp))


def tp_groups(layout: Layout) -> list[tuple[int, ...]]:
    """Teacher ranks that share the layers' matrices; none without tensor parallelism."""
    ranks, size = layout.teacher_ranks, layout.teacher.tp
    return [tuple(ranks[start : start + size]) for start in range(0, len(ranks), size)] if size > 1 else []


def fsdp_groups(layout: Layout) -> list[tuple[int, ...]]:
    """Teacher ranks that each hold a shard of the same weights; none without fsdp."""
    ranks, teacher = layout.teacher_ranks, layout.teacher
    if teacher.fsdp == 1:
        return []
    block = teacher.fsdp * teacher.tp
    return [
        tuple(ranks[start + tp_rank : start + block : teacher.tp])
        for start in range(0, len(ranks), block)
        for tp_rank in range(teacher.tp)
    ]


def chains(layout: Layout) -> list[tuple[int, ...]]:
    """Teacher ranks that pass activations on, stage after stage; none without pipeline stages."""
    teacher = layout.teacher
    if teacher.pp == 1:
        return []
    return [
        tuple(rank_of(teacher, instance, stage, tp_rank) for stage in range(teacher.pp))
        for instance in range(teacher.data_parallel)
        for tp_rank in range(teacher.tp)
    ]


def lanes(layout: Layout) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The global ranks of each lane: teachers, and students, that exchange payloads only among themselves.

    There are gcd(teacher instances, student ranks) lanes, as many as keep every instance equally busy; in the course of
    a run each instance of a lane serves each of its students.
    """
    if layout.colocated:
        return []
    students, instances = layout.student_ranks, range(layout.teacher.data_parallel)
    count = gcd(len(instances), len(students))
    return [
        (
            tuple(rank for instance in instances[lane::count] for rank in senders(layout.teacher, instance)),
            tuple(students[lane::count]),
        )
        for lane in range(count)
    ]


def shard_groups(layout: Layout) -> list[tuple[int, ...]]:
    """Student ranks that together hold one replica: neighbours, so that they lie on as few nodes as possible."""
    ranks, size = layout.student_ranks, layout.student.fsdp
    return [tuple(ranks[start : start + size]) for start in range(0, len(ranks), size)]


def replicate_groups(layout: Layout) -> list[tuple[int, ...]]:
    """Student ranks that hold the same shard."""
    return [tuple(layout.student_ranks[shard :: layout.student.fsdp]) for shard in range(layout.student.fsdp)]


def rank_list(ranks: Sequence[int]) -> str:
    """Ranks in words, neighbours together.

    >>> rank_list([0, 1, 2, 5]), rank_list([3])
    ('ranks 0-2, 5', 'rank 3')
    """
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"

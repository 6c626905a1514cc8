"""Which ranks of a layout exchange data, and in which order each of these links is tried before the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal

from kd_launch.plan import Layout


@dataclass(frozen=True)
class Check:
    """One thing that some ranks do together for the first time."""

    kind: Literal["meeting", "groups", "students", "shard", "replicate", "lane"]
    members: tuple[int, ...]
    """Global ranks; of a lane the teacher's, then the student's."""

    @property
    def what(self) -> str:
        match self.kind:
            case "meeting":
                return "the meeting of all ranks"
            case "groups":
                return "making the groups of all ranks"
            case "lane":
                return f"the first message from rank {self.members[0]} to rank {self.members[1]}"
            case _:
                return f"the first sum over {rank_list(self.members)}"


def checks_of(layout: Layout) -> tuple[Check, ...]:
    """Every check, in the order in which each rank comes to its own. All ranks share the first two.

    The order cannot deadlock: of all checks not yet done, the first one has no member that is busy with another.
    """
    everybody = tuple(range(layout.world_size))
    sums = [Check("students", tuple(layout.student_ranks))]
    sums += [Check("shard", group) for group in shard_groups(layout)]
    sums += [Check("replicate", group) for group in replicate_groups(layout)]
    messages = [Check("lane", (t, s)) for teachers, students in lanes(layout) for t in teachers for s in students]
    return (
        Check("meeting", everybody),
        Check("groups", everybody),
        *(check for check in sums if len(check.members) > 1),
        *sorted(messages, key=lambda check: check.members),
    )


def lanes(layout: Layout) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The global ranks of each lane: teachers, and students, that exchange payloads only among themselves.

    There are gcd(teacher replicas, student ranks) lanes, as many as keep every replica equally busy; in the course of a
    run each teacher of a lane serves each of its students.
    """
    if layout.colocated:
        return []
    teachers, students = layout.teacher_ranks, layout.student_ranks
    count = gcd(len(teachers), len(students))
    return [(tuple(teachers[lane::count]), tuple(students[lane::count])) for lane in range(count)]


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

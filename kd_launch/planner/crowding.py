"""Ranks on CPU cores that they share: all work is done in turns, and whoever has most of it is kept waiting least."""

from kd_launch.cost.setting import Site
from kd_launch.planner.allocations import Allocation


def crowded_seconds(
    sites: dict[str, Site], allocation: Allocation, teacher: float, student: float, transport: float
) -> float:
    """What no step undercuts, given the seconds of each role on cores of its own.

    A rank that waits leaves its cores to others, and to the threads that copy a message at both of its ends.
    """
    of_teacher, of_student = (sites[share.pool] for share in (allocation.teacher, allocation.student))
    teachers, students = allocation.teacher.per_node, allocation.student.per_node
    if allocation.placement == "colocated":
        return shared_seconds(of_student.crowding, (students, teacher + student))
    if not allocation.shares_nodes:
        alone = shared_seconds(of_teacher.crowding, (teachers, teacher))
        return max(alone, shared_seconds(of_student.crowding, (students, student)))
    copies = 2 * min(teachers, students), transport
    return shared_seconds(of_student.crowding, (teachers, teacher), (students, student), copies)


def shared_seconds(crowding: float, *works: tuple[int, float]) -> float:
    """Until all of a node are through, each kind given as (ranks, seconds of work of each).

    crowding: share of the node's cores that one uses. Ranks that never wait stay on their cores: those that have waited
    are woken where there is room, beside each other rather than beside them. So three teachers with little to do slow
    no student on the other of two cores, as measured (benchmarks.calibrated).

    >>> shared_seconds(0.5, (1, 4.0), (2, 1.0))  # three on two cores: 6 s of work
    4.0
    >>> shared_seconds(0.5, (2, 4.0), (2, 1.0))
    5.0
    """
    longest = max(work for _, work in works)
    return max(longest, crowding * sum(ranks * work for ranks, work in works))

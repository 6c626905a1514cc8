"""Ranks on CPU cores that they share: all that have work at a time get alike of them."""

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
        return fair_seconds(of_student.crowding, (students, teacher + student))
    if not allocation.shares_nodes:
        alone = fair_seconds(of_teacher.crowding, (teachers, teacher))
        return max(alone, fair_seconds(of_student.crowding, (students, student)))
    works = (teachers, teacher), (students, student)
    copies = 2 * min(teachers, students) * transport
    all_work = sum(ranks * seconds for ranks, seconds in works) + copies
    return max(fair_seconds(of_student.crowding, *works), of_student.crowding * all_work)


def fair_seconds(crowding: float, *works: tuple[int, float]) -> float:
    """Until all of a node are through, each kind given as (ranks, seconds of work of each).

    crowding: share of the node's cores that one uses. While those that still work would use more than there are, all
    are slowed alike, as Linux's scheduler does: the one with the most work gets no more of them than others.

    >>> fair_seconds(0.5, (1, 4.0), (2, 1.0))  # three on two cores for 1.5 s, and then one on its own
    4.5
    """
    longer, done, left = 0.0, 0.0, sum(ranks for ranks, _ in works)
    for ranks, work in sorted(works, key=lambda kind: kind[1]):
        longer += (work - done) * max(0.0, crowding * left - 1.0)
        done, left = work, left - ranks
    return done + longer  # the longest to the last digit where nothing is shared: layouts are compared by it

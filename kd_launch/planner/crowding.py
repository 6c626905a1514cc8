"""Ranks on CPU cores that they share: a step takes as long as the cores of a node have work to do."""

from kd_launch.cost.setting import Site
from kd_launch.planner.allocations import Allocation


def crowded_seconds(
    sites: dict[str, Site], allocation: Allocation, teacher: float, student: float, transport: float
) -> float:
    """What no step undercuts, given the seconds of each role on cores of its own; 0 where every rank has its own.

    A rank that waits leaves its cores to others: only the sum of the work counts. Both ends of a message copy it.
    """
    of_teacher, of_student = (sites[share.pool] for share in (allocation.teacher, allocation.student))
    per_node = allocation.teacher.per_node, allocation.student.per_node
    if allocation.placement == "colocated":
        return of_student.crowding * per_node[1] * (teacher + student)
    if allocation.shares_nodes:
        return of_student.crowding * (per_node[0] * teacher + per_node[1] * student + 2 * transport)
    return max(of_teacher.crowding * per_node[0] * teacher, of_student.crowding * per_node[1] * student)

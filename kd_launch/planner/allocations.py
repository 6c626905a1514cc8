"""Enumeration of both roles: which GPUs each may have, as the spec's pins and the site's launch rules allow.

Disjoint roles come as Splits, one share of the student with every number of teachers beside it, so that a search need
not look at each of them.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kd_launch.cluster import Cluster, Pool
from kd_launch.plan import Launch, Layout
from kd_launch.planner.layouts import Share, divisors, filled_shares, pinned_gpus, pinned_tp, whole_share
from kd_launch.spec import Spec


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


@dataclass(frozen=True)
class Split:
    """One share of the student, and the teachers that may stand beside it."""

    teacher_pool: Pool
    student: Share
    counts: Sequence[int]
    """GPUs of the teacher, rising."""
    shares_nodes: bool
    teacher_nodes: int | None = None
    """Where the number of teachers is pinned: the nodes that they lie on."""
    launch: Launch | None = None

    def allocation(self, count: int) -> Allocation:
        """With `count` GPUs for the teacher."""
        if self.shares_nodes:
            teacher, student = filled_shares(self.teacher_pool, count, self.student.gpus)
        else:
            nodes = self.teacher_nodes or count // self.teacher_pool.gpus_per_node
            teacher, student = whole_share(self.teacher_pool.name, nodes, count // nodes), self.student
        return Allocation("disjoint", teacher, student, shares_nodes=self.shares_nodes, launch=self.launch)


def allocations(spec: Spec, cluster: Cluster) -> Iterator[Allocation]:
    """Every way to give both roles their GPUs that the spec's pins and the site's launch rules allow."""
    yield from colocations(spec, cluster)
    for split in splits(spec, cluster):
        for count in split.counts:
            yield split.allocation(count)


def colocations(spec: Spec, cluster: Cluster) -> Iterator[Allocation]:
    """Those with both roles on the same GPUs."""
    if spec.placement == "disjoint":
        return
    teacher_pools, student_pools = allowed_pools(spec, cluster)
    for pool in student_pools:
        for allocation in _colocated(spec, pool) if pool in teacher_pools else ():
            launch = launch_of(spec, cluster, allocation)
            if launch != "refused":
                yield allocation._replace(launch=launch)


def splits(spec: Spec, cluster: Cluster) -> Iterator[Split]:
    """Those with GPUs for each role. A launch rule that holds for one count of a split holds for all."""
    if spec.placement == "colocated":
        return
    teacher_pools, student_pools = allowed_pools(spec, cluster)
    for student_pool in student_pools:
        shared = _shared(spec, student_pool) if student_pool in teacher_pools else iter(())
        apart = (_apart(spec, cluster, teacher_pool, student_pool) for teacher_pool in teacher_pools)
        for split in itertools.chain(shared, *apart):
            launch = launch_of(spec, cluster, split.allocation(split.counts[0]))
            if launch != "refused":
                yield Split(
                    split.teacher_pool, split.student, split.counts, split.shares_nodes, split.teacher_nodes, launch
                )


def allowed_pools(spec: Spec, cluster: Cluster) -> tuple[list[Pool], list[Pool]]:
    """Pools that teacher and student may use."""
    return (
        [pool for pool in cluster.pools if spec.teacher.pool in ("auto", pool.name)],
        [pool for pool in cluster.pools if spec.student.pool in ("auto", pool.name)],
    )


def most_nodes(spec: Spec, pool: Pool) -> int:
    """Of one pool, for both roles."""
    return min(pool.nodes, spec.max_nodes or pool.nodes)


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


def _shared(spec: Spec, pool: Pool) -> Iterator[Split]:
    """One allocation whose nodes are filled one after the other, so that a node in the middle holds both roles."""
    teacher_pin, student_pin = pinned_gpus(spec)
    size, most = pool.gpus_per_node, most_nodes(spec, pool) * pool.gpus_per_node
    students = divisors(spec.training.global_batch_size) if student_pin is None else (student_pin,)
    for student in students:
        found = _teachers_beside(student, size, most) if teacher_pin is None else [range(teacher_pin, teacher_pin + 1)]
        for counts in found:
            if not counts or counts[0] + student > most or counts[0] % size == 0:
                continue
            teacher, share = filled_shares(pool, counts[0], student)
            if teacher.block % pinned_tp(spec) == 0:
                yield Split(pool, share, counts, shares_nodes=True)


def _teachers_beside(student: int, size: int, most: int) -> Iterator[range]:
    """Teacher GPUs that fill up nodes with the student's: any number on one node; on several the rest of the last node
    or the most of it that 2, 4 or another part of a node's GPUs divide. As many GPUs on the last node each time."""
    left = -student % size
    lasts = {left - left % part for part in divisors(size)} - {0}
    one_node = range(1, size - student + 1)
    for last in sorted({*lasts, *one_node}):
        stop = most - student + 1 if last in lasts else last + 1
        yield range(last, stop, size)


def _apart(spec: Spec, cluster: Cluster, teacher_pool: Pool, student_pool: Pool) -> Iterator[Split]:
    """Whole nodes for each role."""
    if cluster.scheduler == "local":
        return
    pins = pinned_gpus(spec)
    both = {pool.name: pool.nodes for pool in (teacher_pool, student_pool)}
    most = min(spec.max_nodes or sum(both.values()), sum(both.values()))
    for student in _shares(spec, student_pool, pins[1], together=1, whole=True, divides=True):
        room = min(most - student.nodes, most_nodes(spec, teacher_pool))
        if pins[0] is None:
            size = teacher_pool.gpus_per_node
            counts, nodes = range(size, room * size + 1, size), None
        else:
            pinned = _packed(teacher_pool, pins[0], range(1, room + 1), pinned_tp(spec))
            counts, nodes = range(pins[0], pins[0] + (pinned is not None)), pinned and pinned.nodes
        if counts:
            yield Split(teacher_pool, student, counts, shares_nodes=False, teacher_nodes=nodes)


def _shares(
    spec: Spec, pool: Pool, pinned: int | None, *, together: int, whole: bool, divides: bool
) -> Iterator[Share]:
    """Shares of a pool, with as many GPUs on each node; a pinned number lies on as few nodes as it can.

    together: ranks in order that must share a node. whole: one node is not divided. divides: the GPUs must divide the
    global batch, so that where whole nodes do not, the most GPUs of each that do are taken and the rest stays idle.
    """
    size, nodes = pool.gpus_per_node, range(1, most_nodes(spec, pool) + 1)
    if pinned is not None:
        packed = _packed(pool, pinned, nodes, together)
        if packed is not None:
            yield packed
        return
    batch = spec.training.global_batch_size
    for count in nodes:
        fitting = [n for n in range(size, 0, -1) if not divides or batch % (count * n) == 0]
        several = count == 1 and not whole
        for per_node in fitting if several else fitting[:1]:
            yield whole_share(pool.name, count, per_node)


def _packed(pool: Pool, gpus: int, nodes: range, together: int) -> Share | None:
    """A pinned number of GPUs on as few nodes as it can, as many on each; None where that is impossible."""
    size = pool.gpus_per_node
    fitting = (n for n in nodes if gpus % n == 0 and gpus // n <= size and gpus // n % together == 0)
    return next((whole_share(pool.name, n, gpus // n) for n in fitting), None)


def allocation_of(layout: Layout, cluster: Cluster) -> Allocation:
    """The GPUs that a layout was made for."""
    teacher, student = layout.teacher, layout.student
    shares = [whole_share(role.pool, role.nodes, role.gpus // role.nodes) for role in (teacher, student)]
    if layout.shares_nodes and not layout.colocated:
        shares = list(filled_shares(cluster.pool(teacher.pool), teacher.gpus, student.gpus))
    return Allocation(layout.placement, shares[0], shares[1], layout.shares_nodes, layout.launch)

"""On which nodes each role is: by what Slurm says of its component, by its ranks' signs of life, else by the plan."""

from collections.abc import Sequence

from kd_launch.plan import Layout, Role
from kd_launch.runs.facts import Facts
from kd_launch.slurm.job_text import JobAnswer


def is_het_job(layout: Layout) -> bool:
    """Whether each role is a component of its own."""
    return layout.launch in ("hetjob", "two_steps") and not layout.colocated


def nodes_of(role: Role, facts: Facts, answer: JobAnswer | None) -> list[str]:
    """The nodes of a role's ranks, in Slurm's names where it gives them."""
    seen = list(dict.fromkeys(beat.host for beat in facts.heartbeats if beat.role == role))
    if answer is None:
        return seen
    layout = facts.plan.layout
    if is_het_job(layout):
        offset = 0 if role is Role.TEACHER else 1
        return [node for component in answer.components if component.offset == offset for node in component.nodes]
    nodes = [node for component in answer.components for node in component.nodes]
    ranks = layout.teacher.gpus if role is Role.TEACHER else layout.student.gpus
    heard_of = {node for node in nodes if node.partition(".")[0] in {host.partition(".")[0] for host in seen}}
    if len(heard_of) == len(seen) and sum(beat.role == role for beat in facts.heartbeats) == ranks:
        return [node for node in nodes if node in heard_of]
    return split(layout, facts.plan.cluster.pool(layout.student.pool).gpus_per_node, role, nodes)


def split(layout: Layout, gpus_per_node: int, role: Role, nodes: Sequence[str]) -> list[str]:
    """A role's part of one allocation's nodes, which are filled one after the other, the teacher's ranks first."""
    if layout.colocated or len(nodes) != layout.nodes:
        return list(nodes)
    if not layout.shares_nodes:
        first = layout.teacher.nodes
        return list(nodes[:first] if role is Role.TEACHER else nodes[first:])
    per_node = min(layout.world_size, gpus_per_node)
    ranks = layout.teacher_ranks if role is Role.TEACHER else layout.student_ranks
    return list(dict.fromkeys(nodes[rank // per_node] for rank in ranks if rank // per_node < len(nodes)))

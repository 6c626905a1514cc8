"""The knee of step time against GPU-hours, and the settings that take it."""

from collections.abc import Iterator, Sequence

from kd_launch.cluster import Cluster
from kd_launch.plan import Knee, Layout
from kd_launch.planner.choices import Choice
from kd_launch.planner.options import SAME
from kd_launch.spec import Spec


def bend(front: Sequence[Choice]) -> Choice:
    """Where a percent of step time is worth a percent of GPU-hours: the least product of the two, and of those that
    come to the same the fastest. Faster layouts pay more for time than that, cheaper ones get less for it."""
    least = min(choice.seconds * choice.gpu_seconds for choice in front)
    return next(choice for choice in front if choice.seconds * choice.gpu_seconds <= SAME * least)


def knee_of(spec: Spec, cluster: Cluster, chosen: Layout, layout: Layout) -> Knee:
    """The layout at the bend of the front with its settings."""
    same = layout.placement == chosen.placement and all(
        abs(one - other) <= (SAME - 1) * other
        for one, other in ((layout.step_seconds.p50, chosen.step_seconds.p50), (layout.gpu_hours, chosen.gpu_hours))
    )
    return Knee(layout=layout, settings=[] if same else list(_settings(spec, cluster, layout)))


def _settings(spec: Spec, cluster: Cluster, layout: Layout) -> Iterator[str]:
    """max_nodes where the layout fills its nodes, since nothing on fewer is faster then; else its GPUs one by one."""
    if spec.objective != "throughput":
        yield "objective=throughput"
    sizes = {pool.gpus_per_node for pool in cluster.pools}
    if len(sizes) == 1 and layout.gpus + layout.gpus_idle == layout.nodes * max(sizes):
        yield f"max_nodes={layout.nodes}"
        return
    if spec.placement == "auto":
        yield f"placement={layout.placement}"
    for word, role, asked in (("teacher", layout.teacher, spec.teacher), ("student", layout.student, spec.student)):
        if len(cluster.pools) > 1 and asked.pool == "auto":
            yield f"{word}.pool={role.pool}"
        if asked.gpus == "auto" and asked.parallelism == "auto" and not (layout.colocated and word == "teacher"):
            yield f"{word}.gpus={role.gpus}"

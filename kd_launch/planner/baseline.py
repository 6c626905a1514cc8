"""The baseline: TRL's layout on our engine, so that what the planner gains is seen apart from what the engine gains."""

from typing import NamedTuple

from kd_launch.cluster import Cluster, Pool
from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import Parts, student_memory, teacher_memory
from kd_launch.cost.roles import student_seconds, teacher_seconds
from kd_launch.cost.setting import StudentDegrees, TeacherDegrees
from kd_launch.plan import Launch, Layout
from kd_launch.planner.allocations import Allocation, most_nodes
from kd_launch.planner.choices import Choice
from kd_launch.planner.layouts import Share, divisors, micro_batches, whole_share
from kd_launch.planner.options import StudentOption, TeacherOption, Unit
from kd_launch.planner.pairing import allocated_gpus
from kd_launch.planner.prediction import context_part, layout_of
from kd_launch.planner.tables import Tables


class _Candidate(NamedTuple):
    choice: Choice
    parts: Parts
    excess: float
    """Bytes beyond the limit; negative where it fits."""


def baseline_of(tables: Tables, cluster: Cluster) -> Layout:
    """Teacher and student on all the same GPUs, the teacher sharded as the student's ZeRO stage says, with a float32
    copy of its weights and whole logits in the loss; the largest micro-batch that fits, of the fastest stage.

    Where nothing fits, the layout that misses by least, so that its memory shows by how much.
    """
    found = [candidate for share in _shares(tables, cluster) for candidate in _of_share(tables, cluster, share)]
    fitting = [candidate for candidate in found if candidate.excess <= 0]
    if fitting:
        best = min(fitting, key=lambda candidate: candidate.choice.seconds)
    else:
        best = min(found, key=lambda candidate: candidate.excess)
    return layout_of(tables, best.choice, parts=best.parts)


def _shares(tables: Tables, cluster: Cluster) -> list[Share]:
    """All GPUs of each pool, or as many of each node as divide the global batch."""
    pools = [pool for pool in cluster.pools if tables.sites[pool.name].can_compute]
    return [share for pool in pools if (share := _largest_share(tables, pool)) is not None]


def _largest_share(tables: Tables, pool: Pool) -> Share:
    batch = tables.spec.training.global_batch_size
    shares = [
        whole_share(pool.name, nodes, per_node)
        for nodes in range(1, most_nodes(tables.spec, pool) + 1)
        for per_node in divisors(batch // nodes)
        if batch % nodes == 0 and per_node <= pool.gpus_per_node
    ]
    return max(shares, key=lambda share: share.gpus)


def _of_share(tables: Tables, cluster: Cluster, share: Share) -> list[_Candidate]:
    """Per ZeRO stage and recompute, the largest micro-batch that fits, else the smallest."""
    found: list[_Candidate] = []
    sizes = micro_batches(tables.spec, share.gpus) or (1,)
    for shards_weights in (False, True) if share.gpus > 1 else (False,):
        for recompute in (False, True):
            student = StudentDegrees(1, share.gpus, recompute, shards_weights if share.gpus > 1 else None)
            teacher = TeacherDegrees(share.gpus if shards_weights else 1, 1, 1)
            rising = [_candidate(tables, cluster, share, teacher, student, size) for size in sizes]
            found.append(next((it for it in reversed(rising) if it.excess <= 0), rising[0]))
    return found


def _candidate(
    tables: Tables, cluster: Cluster, share: Share, teacher: TeacherDegrees, student: StudentDegrees, size: int
) -> _Candidate:
    unit = Unit(size, "logits")
    site, tokens, turns = tables.sites[share.pool], tables.tokens(unit), tables.items(unit) // share.gpus
    parts = trl_parts(tables, share, teacher, student, unit)
    forward = teacher_seconds(tables.setting, site, teacher, share.block, tokens, unit.payload)
    step = student_seconds(tables.setting, site, student, share.block, tokens, turns, unit.payload)
    launch: Launch | None = None if cluster.scheduler == "local" else "ranks"
    allocation = Allocation("colocated", share, share, shares_nodes=True, launch=launch)
    choice = Choice(
        seconds=turns * forward.each + step.total,
        allocation=allocation,
        unit=unit,
        teacher=TeacherOption(turns * forward.each, 0.0, 0.0, 0.0, teacher),
        student=StudentOption(step.total, 0.0, 0.0, 0.0, student),
        transport=0.0,
        prefetch=0,
        allocated=allocated_gpus(cluster, allocation),
        fullness=0.0,
    )
    return _Candidate(choice, parts, sum(parts.values()) - site.memory_limit_gib * GIB)


def trl_parts(
    tables: Tables,
    share: Share,
    teacher: TeacherDegrees,
    student: StudentDegrees,
    unit: Unit,
    *,
    has_copy: bool = True,
) -> Parts:
    """Bytes of a rank under TRL, whose loss holds whole logits. The float32 copy is sharded as the weights are;
    gradients are reduced every micro-batch."""
    setting, constants, tokens = tables.setting, tables.setting.constants.baseline, tables.tokens(unit)
    frozen = teacher_memory(setting, teacher, tokens)
    trained = student_memory(setting, tables.sites[share.pool], student, tokens, unit.payload, holds_head=False)
    del trained.resident["head gradient"]
    del trained.transient["loss buffers"]
    trained.transient["loss"] = constants.loss_bytes * tokens * setting.vocabulary
    larger = max(frozen.transient, trained.transient, key=lambda parts: sum(parts.values()))
    copy = {"teacher float32 copy": constants.master_bytes * setting.teacher.parameters / teacher.fsdp}
    return {
        "teacher weights": frozen.resident["weights"],
        **(copy if has_copy else {}),
        **trained.resident,
        **larger,
        **context_part(tables, share),
    }

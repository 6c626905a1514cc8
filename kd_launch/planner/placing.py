"""Why both roles on the same GPUs win or lose against roles apart: the ideal split of the work, and what it costs."""

from kd_launch.cluster import Cluster
from kd_launch.plan import Layout, Plan
from kd_launch.planner.options import SAME
from kd_launch.planner.reasons import figure
from kd_launch.planner.tables import Tables
from kd_launch.planner.terms import case_of
from kd_launch.spec import Spec


def placement_in_words(tables: Tables, spec: Spec, cluster: Cluster, plan: Plan, layout: Layout) -> str:
    """The layout against the best of the other placement."""
    others = [it for it in plan.candidates if it.placement != layout.placement]
    if spec.placement != "auto":
        return f"{spec.placement} is pinned, so nothing else was looked at"
    if not others:
        return _only(tables, spec, layout)
    colocated, apart = (layout, others[0]) if layout.colocated else (others[0], layout)
    time, hours = apart.step_seconds.p50 / colocated.step_seconds.p50, apart.gpu_hours / colocated.gpu_hours
    ratio, noun = (hours, "GPU-hours") if spec.objective == "gpu_hours" else (time, "time")
    split = _split_in_words(tables, cluster, apart)
    if 1 / SAME <= ratio <= SAME:
        return f"colocated and apart need as much {noun}: {split}"
    if ratio > 1:
        return f"colocating wins, {100 * (ratio - 1):.1f} % more {noun} apart: apart saves no work, and {split}"
    loses = f"apart wins, {100 * (1 / ratio - 1):.1f} % more {noun} colocated"
    if colocated.gpus != apart.gpus:
        return (
            f"{loses}, which uses {colocated.gpus} GPUs instead of {apart.gpus} and {1 / hours:.2f}x the GPU-hours; "
            f"{split}"
        )
    return f"{loses}: {_price(tables, cluster, colocated, apart)}"


def _only(tables: Tables, spec: Spec, layout: Layout) -> str:
    if layout.colocated:
        return "no layout with roles apart is possible here"
    if "auto" not in (spec.teacher.pool, spec.student.pool) and spec.teacher.pool != spec.student.pool:
        return "teacher.pool and student.pool differ, so that the roles are apart"
    least = tables.setting.teacher_sizes.all * tables.setting.teacher_width
    return (
        f"no colocated layout fits: the teacher's weights, {figure(least / 2**30)} GiB over its shards, leave no room "
        "on the same GPUs for the student's state and activations"
    )


def _split_in_words(tables: Tables, cluster: Cluster, apart: Layout) -> str:
    """The GPUs that the work asks for, against those that the layout gives, and who is left idle."""
    case = case_of(tables, cluster, apart)
    items = tables.items(case.unit)
    teacher = items * tables.least_teacher_seconds(apart.teacher.pool, case.unit)
    student = items * tables.least_student_seconds(apart.student.pool, case.unit)
    gpus = apart.teacher.gpus + apart.student.gpus
    ideal = gpus * teacher / (teacher + student)
    step = apart.step_seconds.p50
    role, busy = min(
        (("teacher", apart.teacher_seconds), ("student", apart.student_seconds)), key=lambda found: found[1]
    )
    return (
        f"the work would divide {gpus} GPUs into {figure(ideal)} + {figure(gpus - ideal)}, the best split gives "
        f"{apart.teacher.gpus} + {apart.student.gpus}, whose {role} is idle {100 * (1 - busy / step):.0f} % of the time"
    )


def _price(tables: Tables, cluster: Cluster, colocated: Layout, apart: Layout) -> str:
    """What taking turns costs: smaller micro-batches, more shards, another GPU type."""
    reasons = []
    if apart.teacher.pool != apart.student.pool:
        reasons.append("each role has the GPU type that suits it, and all of both pools work")
    if colocated.student.micro_batch_size < apart.student.micro_batch_size:
        sizes = colocated.student.micro_batch_size, apart.student.micro_batch_size
        reasons.append(f"both models in one memory leave room for micro-batch {sizes[0]} instead of {sizes[1]}")
    if colocated.teacher.fsdp * colocated.teacher.tp > apart.teacher.fsdp * apart.teacher.tp:
        reasons.append("the teacher has to be split further")
    if colocated.student.activation_recompute == "full" != apart.student.activation_recompute:
        reasons.append("the student has to compute its activations twice")
    if colocated.student.gpus > apart.student.gpus and not reasons:
        reasons.append(f"its gradients are reduced over {colocated.student.gpus} GPUs instead of {apart.student.gpus}")
    why = " and ".join(reasons) or "the turns add up to more"
    return f"colocated, {why}; {_split_in_words(tables, cluster, apart)}"

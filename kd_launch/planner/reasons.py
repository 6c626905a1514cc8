"""What a plan says in words: why this layout, and what to know about it."""

from collections.abc import Iterator, Sequence

from kd_launch.cluster import Cluster, Pool
from kd_launch.plan import Layout, unsupported_by_runtime
from kd_launch.planner.tables import Tables
from kd_launch.spec import Spec


def reason_for(spec: Spec, cluster: Cluster, chosen: Layout, candidates: Sequence[Layout], baseline: Layout) -> str:
    """A few sentences: what sets the pace, what it was compared with, how it is launched."""
    sentences = [_pace(cluster, chosen)]
    if spec.placement == "auto":
        other = next((layout for layout in candidates if layout.placement != chosen.placement), None)
        sentences.append(_against_other(spec, chosen, other))
    sentences.append(_against_baseline(spec, chosen, baseline))
    if cluster.scheduler == "slurm":
        sentences.append(_launch(spec, cluster, chosen))
    return " ".join(sentences)


def seconds_text(seconds: float) -> str:
    """With the unit that suits.

    >>> [seconds_text(t) for t in (0.00002, 0.0123, 0.85, 2.134, 33.0, 4321.0)]
    ['20.0 us', '12.3 ms', '850 ms', '2.13 s', '33.0 s', '4321 s']
    """
    if seconds >= 0.9995 or seconds == 0:
        return f"{figure(seconds)} s"
    return f"{figure(1e3 * seconds)} ms" if seconds >= 0.0001 else f"{figure(1e6 * seconds)} us"


def figure(value: float) -> str:
    """Three digits, whole above them.

    >>> [figure(x) for x in (0.01234, 0.2, 3.14159, 31.0, 481.4, 12345.0)]
    ['0.012', '0.200', '3.14', '31.0', '481', '12345']
    """
    for above, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if value >= above:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"


def _pace(cluster: Cluster, chosen: Layout) -> str:
    teacher, student = seconds_text(chosen.teacher_seconds), seconds_text(chosen.student_seconds)
    if chosen.colocated:
        where = "processes" if cluster.pool(chosen.student.pool).is_cpu else "GPUs"
        return f"Both roles take turns on the same {where}: teacher {teacher} + student {student} a step."
    times = {"teacher": teacher, "student": student, "transport": seconds_text(chosen.transport_seconds)}
    pace = times.pop(chosen.limited_by)
    hidden = " and ".join(f"the {part}'s {seconds}" for part, seconds in times.items())
    return f"The {chosen.limited_by} sets the pace with {pace} a step, which hides {hidden}."


def _against_other(spec: Spec, chosen: Layout, other: Layout | None) -> str:
    """The best of the other placement, as a ratio, and what holds it up."""
    if other is None:
        return f"No {'disjoint' if chosen.colocated else 'colocated'} layout is possible."
    if not chosen.colocated:
        return f"The best colocated layout {_ratio(spec, other, chosen)}."
    held_up = {
        "transport": "its payloads travel too slowly",
        "teacher": f"a split saves no work, and its students are busy {_busy(other.student_seconds, other)}",
        "student": f"a split saves no work, and its teachers are busy {_busy(other.teacher_seconds, other)}",
    }
    return f"The best disjoint layout {_ratio(spec, other, chosen)}: {held_up[other.limited_by]}."


def _busy(seconds: float, layout: Layout) -> str:
    return f"{100 * seconds / layout.step_seconds.p50:.0f} % of the time"


def _against_baseline(spec: Spec, chosen: Layout, baseline: Layout) -> str:
    role = baseline.student
    gpus = "" if baseline.gpus == chosen.gpus else f" on {baseline.gpus} GPUs"
    if role.memory_gib > role.memory_limit_gib:
        return f"TRL's layout{gpus} does not fit ({role.memory_gib:.0f} of {role.memory_limit_gib:.0f} GiB)."
    return f"TRL's layout{gpus} {_ratio(spec, baseline, chosen)} on the same engine."


def _ratio(spec: Spec, layout: Layout, chosen: Layout) -> str:
    """In what the spec wants least of: step time, or GPU-hours."""
    if spec.objective == "gpu_hours":
        return f"costs {layout.gpu_hours / chosen.gpu_hours:.2f}x"
    return f"takes {layout.step_seconds.p50 / chosen.step_seconds.p50:.2f}x"


def _launch(spec: Spec, cluster: Cluster, chosen: Layout) -> str:
    """The rule that chose how Slurm starts it."""
    if spec.launch != "auto":
        return f"Launch: {chosen.launch}, as the spec asks."
    if chosen.colocated:
        return "Launch: ranks, one step with both roles on every rank."
    if chosen.shares_nodes:
        return "Launch: ranks, since the roles share a node, which het components cannot."
    one_pool = chosen.teacher.pool == chosen.student.pool
    rules = {
        "hetjob": f"hetjob, one component per role{'; hetstep often starts sooner' if one_pool else ''}",
        "two_steps": "two_steps, since a step may not span het components here",
        "hetstep": f"hetstep, one job with a part per role{'' if cluster.hetjobs else ', since het jobs are refused'}",
        "ranks": "ranks, one job step whose first ranks are the teacher's, since het jobs and het steps are refused",
    }
    return f"Launch: {rules[chosen.launch or 'ranks']}."


def warnings_for(tables: Tables, cluster: Cluster, chosen: Layout, best: Layout, runnable: Layout | None) -> list[str]:
    """What cannot run yet, what the prediction assumed, and what the layout leaves unused; the gravest first.

    best, runnable: the best layout of all, and of those that this version's runtime runs.
    """
    return [
        *_runtime_warnings(chosen, best, runnable),
        *_payload_warnings(tables),
        *_batch_warnings(tables.spec, cluster, chosen),
        *_site_warnings(tables, cluster, chosen),
        *_pin_warnings(tables.spec, cluster, chosen),
    ]


def _runtime_warnings(chosen: Layout, best: Layout, runnable: Layout | None) -> Iterator[str]:
    if unsupported_by_runtime(chosen) is not None:
        instead = f"the best layout that it runs takes {_step(runnable)}" if runnable else "no layout that it runs fits"
        yield f"this version's runtime does not run {unsupported_by_runtime(chosen)} yet; {instead}"
    elif unsupported_by_runtime(best) is not None:
        yield (
            f"{unsupported_by_runtime(best)} ({best.placement}) would take {_step(best)} instead of "
            f"{seconds_text(chosen.step_seconds.p50)}, but this version's runtime does not run it yet"
        )


def _step(layout: Layout) -> str:
    return f"{seconds_text(layout.step_seconds.p50)} a step"


def _payload_warnings(tables: Tables) -> Iterator[str]:
    teacher = tables.setting.teacher
    if not teacher.head_is_known and tables.spec.distillation.payload == "auto":
        yield f"the head of a '{teacher.model_type}' is not known, so logits travel instead of hidden states"


def _batch_warnings(spec: Spec, cluster: Cluster, chosen: Layout) -> Iterator[str]:
    role, batch = chosen.student, spec.training.global_batch_size
    size = cluster.pool(role.pool).gpus_per_node
    whole = role.nodes * size
    if role.gpus < whole and batch % whole and not (chosen.shares_nodes and not chosen.colocated):
        yield (
            f"{role.nodes} x {size} GPUs do not divide the global batch of {batch}, so that the student uses "
            f"{role.gpus_per_node} of {size} GPUs per node; a multiple of {whole} would use all"
        )
    if chosen.gpus_idle:
        yield f"{chosen.gpus_idle} allocated GPUs have no rank"


def _site_warnings(tables: Tables, cluster: Cluster, chosen: Layout) -> Iterator[str]:
    """Assumptions about the pools that are used."""
    links = tables.setting.constants.links
    pools = {role.pool: cluster.pool(role.pool) for role in (chosen.teacher, chosen.student)}
    for pool in pools.values():
        if chosen.nodes > 1 and pool.inter_node_gb_per_s is None:
            yield f"pool {pool.name}: inter_node_gb_per_s is missing, {links.network_gb_per_s:g} GB/s per node assumed"
        yield from _node_warnings(tables, pool)
    if len(pools) > 1 and not cluster.same_fabric:
        yield f"the pools share no fabric: {links.foreign_gb_per_s:g} GB/s per node assumed between them"


def _node_warnings(tables: Tables, pool: Pool) -> Iterator[str]:
    gpu = tables.sites[pool.name].gpu
    if pool.is_cpu:
        if pool.memory_gib is None:
            gib = tables.setting.constants.memory.cpu_gib
            yield f"pool {pool.name}: memory_gib is missing, {gib:g} GiB per process assumed"
        if pool.cpus_per_node is None:
            yield f"pool {pool.name}: cpus_per_node is missing, one core per process assumed"
        if pool.calibration is None:
            yield "speeds of CPU cores are an order of magnitude: times are good for comparison only"
    elif gpu.assumed:
        yield f"figures of {gpu.id} that are estimates: {', '.join(gpu.assumed)}"


def _pin_warnings(spec: Spec, cluster: Cluster, chosen: Layout) -> Iterator[str]:
    if chosen.colocated and spec.distillation.prefetch != "auto":
        yield f"distillation.prefetch: {spec.distillation.prefetch} has no effect on a colocated teacher"
    if cluster.scheduler == "local" and spec.launch != "auto":
        yield f"launch: {spec.launch} has no effect on a local cluster"

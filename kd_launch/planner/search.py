"""The planner: every layout of two models on a cluster, the best of them, and why."""

import time
from collections.abc import Callable

from kd_launch.architecture import Architecture
from kd_launch.catalog import find_engine, find_gpu
from kd_launch.cluster import Cluster
from kd_launch.cost.constants import load_constants
from kd_launch.cost.setting import Setting, Site, site_of
from kd_launch.errors import DoesNotFitError, UnknownNameError
from kd_launch.plan import Layout, Plan, Search, unsupported_by_runtime
from kd_launch.planner.baseline import baseline_of
from kd_launch.planner.choices import Choice, pareto, ranked, varied
from kd_launch.planner.inflections import inflections_of
from kd_launch.planner.knee import bend, knee_of
from kd_launch.planner.misfit import explain_misfit
from kd_launch.planner.pins import check_pins
from kd_launch.planner.prediction import layout_of
from kd_launch.planner.pruning import all_choices
from kd_launch.planner.reasons import reason_for, warnings_for
from kd_launch.planner.tables import Tables
from kd_launch.spec import Spec

ENGINE = "kd-launch"


def make_plan(
    spec: Spec,
    cluster: Cluster,
    teacher: Architecture,
    student: Architecture,
    *,
    top: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> Plan:
    """The best layout for the spec's objective, `top` candidates, and what they were compared with.

    cluster: resolved, that is without `auto` in hetjobs and hetjob_steps.

    Raises:
        SpecError: a pin that no layout can keep, one message a line.
        UnknownNameError: a pool or GPU that does not exist.
        DoesNotFitError: nothing fits; says by how much and what would help.
    """
    start = clock()
    check_pins(spec, cluster, teacher, student)
    tables = Tables(spec, setting_of(spec, teacher, student), sites_of(spec, cluster))
    found = _all_that_fits(tables, cluster)
    order = ranked(found, spec.objective)
    taken, runnable = _taken(tables, cluster, order)
    chosen, first = layout_of(tables, taken), layout_of(tables, order[0])
    runs = None if runnable is None else layout_of(tables, runnable)
    candidates = [layout_of(tables, choice) for choice in varied(order, top, taken)]
    front = pareto(found)
    baseline = baseline_of(tables, cluster)
    return Plan(
        name=spec.name or "plan",
        chosen=chosen,
        candidates=candidates,
        baseline=baseline,
        baseline_engine_factor=find_engine(tables.setting.constants.baseline.engine).compute_factor,
        pareto=[layout_of(tables, choice) for choice in front],
        knee=knee_of(spec, cluster, chosen, layout_of(tables, bend(front))),
        inflections=inflections_of(tables, chosen),
        why=reason_for(spec, cluster, chosen, candidates, baseline),
        warnings=warnings_for(tables, cluster, chosen, first, runs),
        search=Search(evaluated=tables.evaluated + len(found), rejected=dict(tables.rejected), seconds=clock() - start),
    )


def best_layout(spec: Spec, cluster: Cluster, teacher: Architecture, student: Architecture) -> Layout:
    """The choice alone. Raises as make_plan does."""
    check_pins(spec, cluster, teacher, student)
    tables = Tables(spec, setting_of(spec, teacher, student), sites_of(spec, cluster))
    taken, _ = _taken(tables, cluster, ranked(_all_that_fits(tables, cluster), spec.objective))
    return layout_of(tables, taken)


def _all_that_fits(tables: Tables, cluster: Cluster) -> list[Choice]:
    found = list(all_choices(tables, cluster))
    if not found:
        raise DoesNotFitError(explain_misfit(tables, cluster))
    return found


def _taken(tables: Tables, cluster: Cluster, order: list[Choice]) -> tuple[Choice, Choice | None]:
    """The choice, and the best that this version's runtime runs: on this machine the same."""
    runnable = _first_runnable(tables, order)
    if cluster.scheduler != "local":
        return order[0], runnable
    if runnable is None:
        raise DoesNotFitError(_nothing_runs(layout_of(tables, order[0])))
    return runnable, runnable


def setting_of(spec: Spec, teacher: Architecture, student: Architecture) -> Setting:
    """What all layouts of the spec share."""
    return Setting(
        teacher=teacher,
        student=student,
        sequence_length=spec.data.sequence_length,
        teacher_dtype=spec.teacher.dtype,
        student_dtype=spec.student.dtype,
        top_k=spec.distillation.top_k,
        compiled=False,  # of the layers; what a spec has compiled is the loss alone
        fused_loss=spec.training.compile is not False,
        engine=find_engine(ENGINE),
        constants=load_constants(),
    )


def sites_of(spec: Spec, cluster: Cluster) -> dict[str, Site]:
    """The hardware of every pool, by its name."""
    sites: dict[str, Site] = {}
    for pool in cluster.pools:
        try:
            gpu = find_gpu(pool.gpu)
        except UnknownNameError as error:
            raise UnknownNameError(f"pool {pool.name}: gpu: {error}") from error
        sites[pool.name] = site_of(pool, gpu, spec.teacher.dtype, spec.student.dtype, load_constants())
    return sites


def _first_runnable(tables: Tables, order: list[Choice]) -> Choice | None:
    """The best choice that this version's runtime runs. Choices with the same axes are asked about once."""
    refused: set[tuple[object, ...]] = set()
    for choice in order:
        student = choice.student.degrees
        axes = (choice.kind, choice.teacher.degrees, student.fsdp > 1, student[2:], choice.unit.payload)
        if axes not in refused:
            if unsupported_by_runtime(layout_of(tables, choice)) is None:
                return choice
            refused.add(axes)
    return None


def _nothing_runs(best: Layout) -> str:
    return (
        f"only layouts fit that this version's runtime does not run yet, such as {unsupported_by_runtime(best)}; "
        "leave teacher.parallelism out, give each process more memory, or take a smaller teacher"
    )

"""One candidate explained: what binds it, who waits for whom, why it lost or what lost to it, what would change it."""

from collections.abc import Sequence

from kd_launch.architecture import Architecture
from kd_launch.cluster import Cluster
from kd_launch.errors import SpecError
from kd_launch.plan import Explanation, Layout, PaperLayout, Plan, unsupported_by_runtime
from kd_launch.planner.distances import distances_of
from kd_launch.planner.inflections import inflections_of
from kd_launch.planner.layouts import whole_share
from kd_launch.planner.options import SAME
from kd_launch.planner.paper_case import DEEPSPEED, OURS, paper_case
from kd_launch.planner.placing import placement_in_words
from kd_launch.planner.reasons import figure, seconds_text
from kd_launch.planner.search import setting_of, sites_of
from kd_launch.planner.tables import Tables
from kd_launch.planner.terms import TRANSPORT, case_of, terms_of
from kd_launch.spec import Spec


def explain(
    spec: Spec, cluster: Cluster, teacher: Architecture, student: Architecture, plan: Plan, number: int | None = None
) -> Explanation:
    """Of candidate `number`, from 1; None: of the choice.

    Raises:
        SpecError: there is no such candidate.
    """
    if number is not None and not 1 <= number <= len(plan.candidates):
        raise SpecError(f"--explain: {number} is no candidate; legal: 1 to {len(plan.candidates)}, more with --top")
    layout = plan.chosen if number is None else plan.candidates[number - 1]
    tables = Tables(spec, setting_of(spec, teacher, student), sites_of(spec, cluster))
    terms = terms_of(case_of(tables, cluster, layout))
    return Explanation(
        number=plan.candidates.index(layout) + 1,
        layout=layout,
        terms=terms,
        binding=_binding(layout, terms),
        waits=_waits(layout),
        against=_against(tables, cluster, spec, plan, layout),
        placement=placement_in_words(tables, spec, cluster, plan, layout),
        distances=distances_of(case_of(tables, cluster, layout), inflections_of(tables, layout)),
        paper=_paper(tables, plan) if layout == plan.chosen else [],
    )


def _paper(tables: Tables, plan: Plan) -> list[PaperLayout]:
    """On the baseline's GPUs, both engines."""
    role = plan.baseline.student
    share = whole_share(role.pool, role.nodes, role.gpus_per_node)
    return [case for engine in (OURS, DEEPSPEED) for case in paper_case(tables, share, engine)]


def _binding(layout: Layout, terms: dict[str, float]) -> str:
    """The largest term of the role that sets the pace; of roles that take turns, of both."""
    if not layout.colocated and layout.limited_by == "transport":
        return TRANSPORT
    roles = ("teacher", "student") if layout.colocated else (layout.limited_by,)
    return max((name for name in terms if name.split(":")[0] in roles), key=lambda name: terms[name])


def _waits(layout: Layout) -> dict[str, float]:
    """Colocated roles wait for each other's turn; apart, the faster one waits for the step's end."""
    if layout.colocated:
        return {"teacher": layout.student_seconds, "student": layout.teacher_seconds}
    step = layout.step_seconds.p50
    return {
        "teacher": max(0.0, step - layout.teacher_seconds),
        "student": max(0.0, step - layout.student_seconds),
    }


def _against(tables: Tables, cluster: Cluster, spec: Spec, plan: Plan, layout: Layout) -> str:
    """A candidate against the choice; the choice against the next best."""
    chosen = plan.chosen
    if layout != chosen:
        lost = _loses(tables, cluster, spec, layout, chosen)
        return f"against the choice, {plan.candidates.index(chosen) + 1}, it {lost}"
    others = [other for other in plan.candidates if other != chosen]
    if not others:
        return "no other layout was kept to compare with"
    return f"the next best, {plan.candidates.index(others[0]) + 1}, {_loses(tables, cluster, spec, others[0], chosen)}"


def _loses(tables: Tables, cluster: Cluster, spec: Spec, layout: Layout, chosen: Layout) -> str:
    missing = unsupported_by_runtime(layout)
    if (
        missing is not None
        and unsupported_by_runtime(chosen) is None
        and layout.step_seconds.p50 < chosen.step_seconds.p50
    ):
        return f"is faster, but this version's runtime does not run {missing} yet"
    if spec.objective == "throughput":
        value, best, unit = layout.step_seconds.p50, chosen.step_seconds.p50, "time"
    else:
        value, best, unit = layout.gpu_hours, chosen.gpu_hours, "GPU-hours"
    if value <= SAME * best:
        return f"needs as much {unit} within {100 * (SAME - 1):.1f} %, but {_tie(layout, chosen)}"
    return f"needs {100 * (value / best - 1):.1f} % more {unit}{_where(tables, cluster, layout, chosen)}"


def _tie(layout: Layout, chosen: Layout) -> str:
    """What decides between layouts that the model cannot tell apart."""
    if layout.gpus + layout.gpus_idle != chosen.gpus + chosen.gpus_idle:
        return f"on {layout.gpus + layout.gpus_idle} GPUs instead of {chosen.gpus + chosen.gpus_idle}"
    if _parts(layout) > _parts(chosen):
        return "its models are split in more ways"
    if layout.payload != chosen.payload:
        return f"with {layout.payload} as payload"
    return f"with {figure(_fullness(layout))} of its memory in use instead of {figure(_fullness(chosen))}"


def _parts(layout: Layout) -> int:
    teacher, student = layout.teacher, layout.student
    split = (teacher.fsdp > 1) + 2 * (teacher.tp > 1) + 3 * (teacher.pp > 1) + (student.fsdp > 1)
    split += student.head_shards > 1
    return split + (student.activation_recompute == "full") + bool(student.reshard_after_forward)


def _fullness(layout: Layout) -> float:
    return max(role.memory_gib / role.memory_limit_gib for role in (layout.teacher, layout.student))


def _where(tables: Tables, cluster: Cluster, layout: Layout, chosen: Layout) -> str:
    """The terms that grew most in GPU time, so that layouts on other numbers of GPUs compare too; idle GPUs last."""
    grown = {
        name: seconds - _gpu_terms(tables, cluster, chosen).get(name, 0.0)
        for name, seconds in _gpu_terms(tables, cluster, layout).items()
    }
    most = sorted((name for name in grown if grown[name] > 0), key=lambda name: -grown[name])[:2]
    total = sum(seconds for seconds in grown.values() if seconds > 0)
    if not most or total <= 0:
        return ""
    words = [f"{name} (+{seconds_text(grown[name] / layout.gpus)} on each GPU)" for name in most]
    return f", most of it for {_and(words)}"


def _gpu_terms(tables: Tables, cluster: Cluster, layout: Layout) -> dict[str, float]:
    """GPU seconds by term, with what waiting costs those that are apart."""
    gpus = {"teacher": layout.teacher.gpus, "student": layout.student.gpus, "transport": 0}
    found = {
        name: seconds * gpus[name.split(":")[0]] for name, seconds in terms_of(case_of(tables, cluster, layout)).items()
    }
    if not layout.colocated:
        found |= {f"{role}: waiting": seconds * gpus[role] for role, seconds in _waits(layout).items()}
    return found


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)

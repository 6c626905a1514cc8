"""How far a layout is from the next change of regime: a larger micro-batch, another split, more teachers."""

import math
from collections.abc import Iterator

from kd_launch.plan import Inflection, Layout
from kd_launch.planner.layouts import LARGEST_MICRO_BATCH, divisors
from kd_launch.planner.reasons import figure, seconds_text
from kd_launch.planner.terms import TEACHER_COMPUTE, Case, split_term, student_step, teacher_terms

FREE = 0.05
"""Share of a role's time below which what its split costs is called free: hidden traffic still slows compute."""


def distances_of(case: Case, changes: list[Inflection]) -> list[str]:
    """In words. changes: where another split of the teacher takes over, in tokens of its micro-batch."""
    return [*_teacher_is_free(case), *_student_is_free(case), *_other_split(case, changes), *_balance(case.layout)]


def _larger(case: Case) -> Iterator[Case]:
    """With every larger micro-batch that divides the batch."""
    share = case.layout.global_batch_size // case.layout.student.gpus
    for size in divisors(share):
        if case.unit.size < size <= LARGEST_MICRO_BATCH:
            yield case.with_size(size)


def _teacher_is_free(case: Case) -> Iterator[str]:
    """From which micro-batch on the teacher's split costs nothing."""
    if case.teacher.gpus == 1:
        return
    now = _teacher_cost(case)
    words = _axes(case)
    if now < FREE:
        yield f"the teacher's {words} is free: {100 * now:.1f} % of its time"
        return
    enough = next((other for other in _larger(case) if _teacher_cost(other) < FREE), None)
    yield _instead(case, enough, f"the teacher's {words}", now, enough and _teacher_cost(enough))


def _axes(case: Case) -> str:
    return " x ".join(axis.upper() for axis, degree in case.teacher._asdict().items() if degree > 1)


def _teacher_cost(case: Case) -> float:
    """Share of the teacher's time that its split adds."""
    terms = teacher_terms(case)
    return terms[split_term(case.teacher)] / (terms[split_term(case.teacher)] + terms[TEACHER_COMPUTE])


def _student_is_free(case: Case) -> Iterator[str]:
    """The same of the student's communication."""
    now = _student_cost(case)
    if now >= FREE:
        enough = next((other for other in _larger(case) if _student_cost(other) < FREE), None)
        yield _instead(case, enough, "the student's communication", now, enough and _student_cost(enough))


def _student_cost(case: Case) -> float:
    step = student_step(case)
    return step.communication / step.total


def _instead(case: Case, enough: Case | None, what: str, now: float, then: float | None) -> str:
    costs = f"{what} costs {100 * now:.0f} % of its time"
    if enough is None:
        return f"{costs}; no larger micro-batch that divides the batch makes it free"
    fits = _fits(enough)
    room = "" if fits is None else f", but {fits}"
    left = f" ({100 * (then or 0.0):.0f} %)"
    return f"{costs}; micro-batch {enough.unit.size} instead of {case.unit.size} makes it free{left}{room}"


def _fits(case: Case) -> str | None:
    """What a layout with another micro-batch misses, in words; None where it fits."""
    tables = case.tables
    held = tables.held(case.teacher, case.unit)
    head = tables.head_gib(case.unit) if not case.layout.colocated or case.teacher.gpus > 1 else 0.0
    head /= case.student.head_shards
    trained = tables.student_held(case.allocation.student.pool, case.student, case.unit)
    ahead = 0 if case.layout.colocated else min(tables.prefetches)
    student = trained.resident + head + trained.transient + max(1, ahead) * trained.buffer
    teacher = held.resident + held.transient + ahead * held.buffer
    if case.layout.colocated:
        student += held.resident + max(0.0, held.transient - trained.transient)
    rooms = {"student": (student, case.allocation.student.pool), "teacher": (teacher, case.allocation.teacher.pool)}
    for word, (used, pool) in rooms.items():
        if used > tables.room(pool):
            limit, context = tables.sites[pool].memory_limit_gib, tables.sites[pool].context_gib
            holder = "a GPU" if case.layout.colocated else f"the {word}"
            return f"then {holder} needs {figure(used + context)} of {figure(limit)} GiB"
    return None


def _other_split(case: Case, changes: list[Inflection]) -> Iterator[str]:
    """The next inflections of the teacher on both sides."""
    tokens = case.tables.tokens(case.unit)
    below = [change for change in changes if change.value <= tokens]
    above = [change for change in changes if change.value > tokens]
    for change, side, better in ((below[-1:], "below", "below"), (above[:1], "from", "above")):
        for one in change:
            yield (
                f"{side} {one.value:.0f} tokens in a teacher micro-batch (now {tokens}) {getattr(one, better)} "
                "is the faster split"
            )


def _balance(layout: Layout) -> Iterator[str]:
    """Roles apart: how many GPUs more of the one that sets the pace would end the other's wait."""
    if layout.colocated or layout.limited_by == "transport":
        return
    slow, fast = layout.teacher_seconds, layout.student_seconds
    role, other = layout.teacher, "student"
    if layout.limited_by == "student":
        slow, fast, role, other = fast, slow, layout.student, "teacher"
    gpus = math.ceil(role.gpus * slow / max(fast, 1e-12))
    if gpus > role.gpus:
        yield (
            f"the {layout.limited_by} sets the pace; with about {gpus} GPUs instead of {role.gpus} it would keep up "
            f"with the {other}'s {seconds_text(fast)}"
        )

"""A Plan as plain text for a terminal: the table of layouts, the choice and the reason."""

import textwrap
from collections.abc import Iterator, Sequence

from kd_launch.cli.explain_text import figures, format_explanation, format_paper, gpus_text, in_words
from kd_launch.cli.wrapping import WIDTH, aligned, wrapped
from kd_launch.plan import Explanation, Layout, Plan, RoleLayout
from kd_launch.planner.options import SAME
from kd_launch.planner.reasons import figure, seconds_text

MOST_LINES = 14
"""Of the short form with the default number of layouts."""
MOST_WARNINGS = 2
"""Lines for warnings in the short form."""

HEADINGS = ("", "#", "placement", "teacher", "student", "batch", "payload", "step", "tok/s", "GiB", "GPU-h")
RIGHT = {"#", "step", "tok/s", "GiB", "GPU-h"}
PAYLOADS = {"hidden_states": "hidden", "logits": "logits", "top_k": "top-k"}

Row = tuple[str, ...]


def format_plan(plan: Plan, *, top: int = 4) -> str:
    """The plan in lines of at most 100 columns, with `top` layouts that differ in kind.

    Where the plan has an explanation, that too: of the choice with all that the short form leaves out, of another
    candidate beside the choice alone.
    """
    found = plan.explanation
    if found is None:
        lines = _short(plan, shown_layouts(plan, top))
    elif found.layout == plan.chosen:
        lines = _long(plan, shown_layouts(plan, top), found)
    else:
        pair = sorted((plan.chosen, found.layout), key=plan.candidates.index)
        lines = [_header(plan), *_table(plan, pair), "", *format_explanation(found)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _short(plan: Plan, shown: Sequence[Layout]) -> list[str]:
    lines = [_header(plan), *_table(plan, shown)]
    lines += textwrap.wrap(plan.why, WIDTH, max_lines=3, placeholder=" ...", break_on_hyphens=False)
    knee = _knee(plan)
    return [*lines, *_short_warnings(plan, MOST_LINES - len(lines) - len(knee)), *knee]


def _long(plan: Plan, shown: Sequence[Layout], found: Explanation) -> list[str]:
    lines = [_header(plan), *_table(plan, shown), *wrapped(plan.why), *_all_warnings(plan)]
    lines += ["", *format_explanation(found), "", *_baseline(plan), *format_paper(found, plan.baseline)]
    return [*lines, *_inflections(plan), *_front(plan), *_search(plan), *_calibrated(plan), "", *_knee(plan)]


def shown_layouts(plan: Plan, top: int) -> list[Layout]:
    """The chosen one, the best of the other placement, then the best of each other kind; in the candidates' order."""
    kinds: dict[tuple[object, ...], Layout] = {_kind(plan.chosen): plan.chosen}
    by_placement = {layout.placement: layout for layout in reversed(plan.candidates)}
    for layout in (*by_placement.values(), *plan.candidates):
        if len(kinds) < top:
            kinds.setdefault(_kind(layout), layout)
    order = [plan.chosen, *plan.candidates]
    places = {id(layout): i for i, layout in enumerate(plan.candidates)}
    chosen_place = next((i for i, layout in enumerate(plan.candidates) if layout == plan.chosen), len(order))
    return sorted(kinds.values(), key=lambda layout: places.get(id(layout), chosen_place))


def _kind(layout: Layout) -> tuple[object, ...]:
    """Layouts of one kind differ in degrees only."""
    teacher = layout.teacher
    axes = teacher.fsdp > 1, teacher.tp > 1, teacher.pp > 1
    return layout.placement, axes, teacher.pool, layout.student.pool


def _header(plan: Plan) -> str:
    chosen = plan.chosen
    length = round(chosen.tokens_per_second / chosen.samples_per_second)
    return (
        f"{plan.name}: {chosen.global_batch_size} x {length} tokens a step; best of {plan.search.evaluated} layouts: "
        f"{_many(chosen.nodes, 'node')}, {_many(chosen.gpus, 'rank')}{', calibrated' if plan.calibrated else ''}"
    )


def _many(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("h") else "s"
    return f"{count} {noun}{plural if count != 1 else ''}"


def _table(plan: Plan, shown: Sequence[Layout]) -> list[str]:
    pools = len({role.pool for layout in (*shown, plan.baseline) for role in (layout.teacher, layout.student)})
    for short in (False, True):
        rows = [HEADINGS, *(_row(plan, layout, pools > 1, short) for layout in shown)]
        rows.append(_row(plan, plan.baseline, pools > 1, short, "TRL"))
        lines = aligned(rows, [heading in RIGHT for heading in HEADINGS])
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def _row(plan: Plan, layout: Layout, with_pool: bool, short: bool, name: str | None = None) -> Row:
    mark = ">" if name is None and layout == plan.chosen else ""
    number = "" if name else str(plan.candidates.index(layout) + 1)
    return (
        mark,
        number,
        name or layout.placement,
        _teacher_cell(layout.teacher, with_pool, short),
        _student_cell(layout.student, with_pool, short),
        f"{layout.student.micro_batch_size} x {layout.grad_accumulation_steps}",
        PAYLOADS[layout.payload],
        seconds_text(layout.step_seconds.p50),
        _count(layout.tokens_per_second),
        _memory(layout),
        figure(layout.gpu_hours),
    )


def _teacher_cell(role: RoleLayout, with_pool: bool, short: bool) -> str:
    axes = (("fsdp", role.fsdp), ("tp", role.tp), ("pp", role.pp))
    words = [f"{name[0]}{degree}" if short else f"{name} {degree}" for name, degree in axes if degree > 1]
    return f"{_gpus(role, with_pool)} {' '.join(words) or 'replicate'}"


def _student_cell(role: RoleLayout, with_pool: bool, short: bool) -> str:
    word = "replicate" if role.fsdp == 1 else f"{'f' if short else 'fsdp '}{role.fsdp}"
    recompute = "" if role.activation_recompute != "full" else " rc" if short else " recompute"
    return f"{_gpus(role, with_pool)} {word}{recompute}"


def _gpus(role: RoleLayout, with_pool: bool) -> str:
    return f"{role.pool} {gpus_text(role)}" if with_pool else gpus_text(role)


def _memory(layout: Layout) -> str:
    """Used of the limit: of the shared GPUs, or of teacher and student."""
    roles = (layout.student,) if layout.colocated else (layout.teacher, layout.student)
    words = [f"{_gib(role.memory_gib)}/{_gib(role.memory_limit_gib)}" for role in roles]
    return " ".join(words)


def _gib(gib: float) -> str:
    return f"{gib:.1f}" if gib < 9.95 else f"{gib:.0f}"


def _count(value: float) -> str:
    """Three digits and a unit: 1.18M, 512k, 970."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{figure(value / size)}{unit}"
    return figure(value)


def _short_warnings(plan: Plan, room: int) -> list[str]:
    """Whole warnings while there is room, and how many are left out."""
    lines: list[str] = []
    for i, warning in enumerate(plan.warnings):
        more = _warning(warning)
        left = len(plan.warnings) - i
        if len(lines) + len(more) + (left > 1) > min(room, MOST_WARNINGS + 1):
            return [*lines, f"({left} {'warnings' if left > 1 else 'warning'}: --explain)"]
        lines += more
    return lines


def _warning(text: str) -> list[str]:
    return wrapped(f"warning: {text}", "  ")


def _all_warnings(plan: Plan) -> list[str]:
    return [line for warning in plan.warnings for line in _warning(warning)]


def _baseline(plan: Plan) -> Iterator[str]:
    """TRL's layout, as the explained one."""
    yield from wrapped(f"TRL's layout, {in_words(plan.baseline)}", "   ")
    yield f"  its own engine takes {plan.baseline_engine_factor:g} times as long as ours, which no figure here contains"
    yield from figures(plan.baseline)


def _inflections(plan: Plan) -> Iterator[str]:
    if plan.inflections:
        yield ""
    for change in plan.inflections:
        where = f"from {change.value:.0f} {change.quantity} on"
        yield from wrapped(f"{where} {change.above} is faster than {change.below}", "  ")


def _front(plan: Plan) -> Iterator[str]:
    """Step time against GPU-hours."""
    yield ""
    yield "no layout is both faster and cheaper than one of these:"
    for layout in plan.pareto:
        costs = f"{seconds_text(layout.step_seconds.p50):>8} {figure(layout.gpu_hours):>6} GPU-h"
        roles = f"{_teacher_cell(layout.teacher, True, False)}, {_student_cell(layout.student, True, False)}"
        yield f"{'*' if layout == plan.knee.layout else ' '} {costs}  {layout.placement:<9} {roles}"
    yield "* the knee: beyond it 1 % of time costs more than 1 % of GPU-hours"


def _knee(plan: Plan) -> list[str]:
    """The other end of a trade of time for GPU-hours, and what takes it."""
    chosen, knee = plan.chosen, plan.knee
    if knee.settings:
        settings = " ".join(f"--set {setting}" for setting in knee.settings)
        return wrapped(f"knee of time and GPU-hours: {_against(knee.layout, chosen)}: {settings}", "  ")
    cheaper = next((it for it in plan.pareto if it.gpu_hours < chosen.gpu_hours / SAME), None)
    if cheaper is None:
        return ["knee of time and GPU-hours: this layout, the fastest and the cheapest"]
    return wrapped(f"knee of time and GPU-hours: this layout; {_against(cheaper, chosen)}", "  ")


def _against(layout: Layout, chosen: Layout) -> str:
    """Such as "32 GPUs take 1.48x the time for 0.49x the GPU-hours"."""
    time, hours = layout.step_seconds.p50 / chosen.step_seconds.p50, layout.gpu_hours / chosen.gpu_hours
    takes = "takes" if layout.gpus == 1 else "take"
    return f"{_many(layout.gpus, 'GPU')} {takes} {time:.2f}x the time for {hours:.2f}x the GPU-hours"


def _calibrated(plan: Plan) -> Iterator[str]:
    """Where the factors come from, and each that is not 1."""
    found = plan.calibrated
    if found is None:
        return
    yield ""
    yield f"calibrated by {found.file} of {found.date} UTC" if found.file else "calibrated by the cluster file"
    for pool, factors in found.pools.items():
        words = [f"{name.replace('_', '-')} x{value:.2f}" for name, value in factors.model_dump().items()]
        yield from wrapped(f"  {pool}: {', '.join(words)}", "    ")


def _search(plan: Plan) -> Iterator[str]:
    yield ""
    yield f"searched {plan.search.evaluated} layouts in {seconds_text(plan.search.seconds)}; left out:"
    for reason, count in sorted(plan.search.rejected.items(), key=lambda item: -item[1]):
        yield f"  {count:>7}  {reason}"

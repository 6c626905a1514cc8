"""A Sweep as plain text: a row with a bar for every value, and where the best regime changes."""

from collections.abc import Iterator

from kd_launch.cli.wrapping import aligned, wrapped
from kd_launch.plan import Layout
from kd_launch.planner.reasons import figure, seconds_text
from kd_launch.planner.sweep import Point, Sweep, regime

BAR = 24
"""Columns of the longest bar."""
EIGHTHS = " ▏▎▍▌▋▊▉"
RIGHT = (True, True, True, False, True, False)
COLUMNS = (False, True, False)


def format_sweep(found: Sweep) -> str:
    """Lines of at most 100 columns."""
    lines = [f"{found.name}: the best layout by {found.quantity} ({found.unit}); bars show tokens/s"]
    lines += _table(found)
    lines += [*_regimes(found), *_closed_form(found)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _table(found: Sweep) -> list[str]:
    fastest = max((point.layout.tokens_per_second for point in found.points if point.layout), default=1.0)
    head = (found.quantity, "step", "GPU-h", "best", "GPUs", "tokens/s")
    return aligned([head, *(_row(point, fastest) for point in found.points)], RIGHT)


def _row(point: Point, fastest: float) -> tuple[str, ...]:
    layout = point.layout
    if layout is None:
        return (f"{point.value:g}", "", "", _short(point.problem or ""), "", "")
    bar = _bar(layout.tokens_per_second / fastest)
    hours = figure(layout.gpu_hours)
    return (f"{point.value:g}", seconds_text(layout.step_seconds.p50), hours, _best(layout), str(layout.gpus), bar)


def _best(layout: Layout) -> str:
    """The regime with its degrees, such as "colocated fsdp 8 | fsdp 16"."""
    teacher, student = layout.teacher, layout.student
    axes = (("fsdp", teacher.fsdp), ("tp", teacher.tp), ("pp", teacher.pp))
    words = " ".join(f"{axis} {degree}" for axis, degree in axes if degree > 1) or "replicate"
    trained = f"fsdp {student.fsdp}" if student.fsdp > 1 else "replicate"
    again = " recompute" if student.activation_recompute == "full" else ""
    return f"{layout.placement} {words} | {trained}{again}"


def _short(problem: str) -> str:
    return problem.split(": ")[0] if len(problem) > BAR else problem


def _bar(share: float) -> str:
    eighths = max(1, round(8 * BAR * share))
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _regimes(found: Sweep) -> list[str]:
    """From which value on which regime is best."""
    if not found.changes:
        return [f"the best regime is the same everywhere: {regime(found.points[0])}"]
    starts = [(f"{found.points[0].value:g}", regime(found.points[0]))]
    starts += [(f"{change.value:g}", change.above) for change in found.changes]
    return [f"the best regime, from which {found.quantity} on:", *aligned([("", *start) for start in starts], COLUMNS)]


def _closed_form(found: Sweep) -> Iterator[str]:
    """The paper's closed form beside the evaluated model; once where it is the same for all values."""
    turns = [(point.value, point.turn) for point in found.points if point.turn is not None]
    if not turns:
        return
    alike = len({turn.model_dump_json() for _, turn in turns}) == 1
    gpus = turns[0][1].gpus
    yield from wrapped(
        f"teacher on {gpus} GPUs of a node, samples in the group below which TP beats FSDP (closed form of arXiv "
        "2606.27797: nothing hides behind compute, half of an all-reduce is charged; evaluated: this cost model):"
    )
    rows = [(found.quantity, "closed form", "evaluated", "difference")]
    for value, turn in turns[:1] if alike else turns:
        evaluated = "never" if turn.evaluated is None else figure(turn.evaluated)
        difference = "" if turn.difference is None else f"{100 * turn.difference:+.0f} %"
        rows.append(("all" if alike else f"{value:g}", figure(turn.closed_form), evaluated, difference))
    yield from aligned(rows, (True, True, True, True))

"""An Explanation as plain text: what a layout's step and memory consist of, and why."""

from collections.abc import Iterator

from kd_launch.cli.wrapping import aligned, entry, wrapped
from kd_launch.plan import Explanation, Layout, PaperLayout, RoleLayout, describe_role
from kd_launch.planner.reasons import figure, seconds_text


def format_explanation(found: Explanation) -> Iterator[str]:
    """Lines of at most 100 columns."""
    layout = found.layout
    yield from wrapped(f"{found.number}: {layout.placement}, {in_words(layout)}", "   ")
    yield from entry("binds", f"{found.binding}, {_share(found, found.terms[found.binding])} of the step")
    yield from _waits(found)
    yield from _terms(found)
    yield from figures(layout)
    yield from entry("why", found.against)
    yield from entry("placement", found.placement)
    for distance in found.distances:
        yield from entry("next", distance)


def _share(found: Explanation, seconds: float) -> str:
    return f"{100 * seconds / found.layout.step_seconds.p50:.0f} %"


def _waits(found: Explanation) -> Iterator[str]:
    """Who waits, and for what."""
    words = []
    for role, seconds in found.waits.items():
        other = "student" if role == "teacher" else "teacher"
        what = f"the {other}'s turn" if found.layout.colocated else _cause(found.layout, other)
        is_some = seconds > 0.005 * found.layout.step_seconds.p50
        words.append(
            f"{role} {seconds_text(seconds)} ({_share(found, seconds)}) for {what}" if is_some else f"{role} never"
        )
    yield from entry("waits", "; ".join(words))


def _cause(layout: Layout, other: str) -> str:
    if layout.limited_by == "transport":
        return "payloads on their way"
    return f"the {other}"


def _terms(found: Explanation) -> Iterator[str]:
    for role in ("teacher", "student", "transport"):
        terms = {name: seconds for name, seconds in found.terms.items() if name.startswith(f"{role}:")}
        parts = sorted(terms.items(), key=lambda term: -term[1])
        words = [f"{name.split(': ')[1]} {seconds_text(seconds)}" for name, seconds in parts]
        if words:
            yield from entry(role, f"{seconds_text(sum(terms.values()))}: {', '.join(words)}")


def format_paper(found: Explanation, baseline: Layout) -> Iterator[str]:
    """The paper's layouts on both engines, side by side."""
    if not found.paper:
        return
    engines = list(dict.fromkeys(case.engine for case in found.paper))
    yield ""
    yield from wrapped(
        f"layouts of arXiv 2606.27797 on {baseline.gpus} GPUs (ZeRO stage of student - teacher, 0: replicated), each "
        f"with its largest micro-batch, on {' and on '.join(engines)}:"
    )
    rows = [("", *("micro-batch", "step", "GiB") * len(engines))]
    for name in dict.fromkeys(case.name for case in found.paper):
        cells = [cell for case in found.paper if case.name == name for cell in _paper_cells(case)]
        rows.append((name, *cells))
    yield from (f"  {line}" for line in aligned(rows, (False, *(True,) * (len(rows[0]) - 1))))


def _paper_cells(case: PaperLayout) -> tuple[str, ...]:
    if not case.fits:
        return str(case.micro_batch_size), "too large", figure(case.memory_gib)
    return str(case.micro_batch_size), seconds_text(case.step_seconds), figure(case.memory_gib)


def in_words(layout: Layout) -> str:
    """Both roles on their GPUs."""
    teacher, student = layout.teacher, layout.student
    freed = {True: " freed after the forward", False: " kept until the backward", None: ""}
    again = ", activations computed twice" if student.activation_recompute == "full" else ""
    again += f", the teacher's head over {student.head_shards} of its GPUs" if student.head_shards > 1 else ""
    return (
        f"teacher {teacher.pool} {gpus_text(teacher)} {describe_role(teacher)}, "
        f"student {student.pool} {gpus_text(student)} {describe_role(student)}{freed[student.reshard_after_forward]}"
        f"{again}, micro-batch {student.micro_batch_size} x {layout.grad_accumulation_steps}"
    )


def gpus_text(role: RoleLayout) -> str:
    """Nodes times GPUs, such as "2x8"; "12 of 2x8" where they are not all used."""
    if role.gpus == role.nodes * role.gpus_per_node:
        return f"{role.nodes}x{role.gpus_per_node}"
    return f"{role.gpus} of {role.nodes}x{role.gpus_per_node}"


def figures(layout: Layout) -> Iterator[str]:
    """A layout's times, payload and memory by part."""
    step = layout.step_seconds
    times = [("teacher", layout.teacher_seconds), ("student", layout.student_seconds)]
    if not layout.colocated:
        times.append(("transport", layout.transport_seconds))
    yield from entry(
        "time",
        f"{seconds_text(step.p50)} a step (p10 {seconds_text(step.p10)}, p90 {seconds_text(step.p90)}): "
        f"{', '.join(f'{name} {seconds_text(seconds)}' for name, seconds in times)}",
    )
    ahead = "" if layout.colocated else f", {layout.prefetch} micro-batch{'es' if layout.prefetch != 1 else ''} ahead"
    launch = f"; launch {layout.launch}" if layout.launch else ""
    idle = f"; {layout.gpus_idle} GPUs idle" if layout.gpus_idle else ""
    yield from entry("payload", f"{layout.payload}, {_bytes(layout)} a token{ahead}{launch}{idle}")
    roles = {"both": layout.student} if layout.colocated else {"teacher": layout.teacher, "student": layout.student}
    for name, role in roles.items():
        parts = sorted(role.memory_parts_gib.items(), key=lambda part: -part[1])
        words = ", ".join(f"{part} {figure(gib)}" for part, gib in parts)
        where = "memory" if name == "both" else f"{name}'s memory"
        yield from entry(where, f"{figure(role.memory_gib)} of {figure(role.memory_limit_gib)} GiB: {words}")


def _bytes(layout: Layout) -> str:
    size = layout.payload_bytes_per_token
    return f"{figure(size / 1e3)} kB" if size >= 1e3 else f"{size:.0f} B"

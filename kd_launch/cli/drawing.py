"""A Sweep, or a plan's front of step time and GPU-hours, as an SVG or PNG file, by matplotlib."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_launch.errors import SpecError

if TYPE_CHECKING:
    from kd_launch.plan import Plan
    from kd_launch.planner.sweep import Sweep

KINDS = (".svg", ".png")
SIZE = (9.0, 5.5)
"""Inches."""


def check_file(path: Path) -> None:
    """Raises SpecError before any work is done: another kind of file, no such folder, no matplotlib."""
    if path.suffix.lower() not in KINDS:
        raise SpecError(f"--plot: {path} ends in '{path.suffix}'; legal: {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise SpecError(f"--plot: {path.parent} is no folder; make it, or name another file")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib as found
    except ImportError as error:
        raise SpecError(
            "--plot: needs matplotlib, which is not installed; give `pip install 'kd-launch[plot]'`, or leave --plot "
            "out: the answer is drawn here"
        ) from error
    found.use("Agg")
    found.rcParams["svg.hashsalt"] = "kd-launch"  # the same file for the same answer
    found.rcParams["svg.fonttype"] = "none"  # text stays text
    return found


def draw_sweep(found: "Sweep", path: Path) -> None:
    """Step time over the quantity, coloured by regime, with a line where it changes; GPU-hours dotted."""
    from kd_launch.planner.sweep import regime

    figure, axes = _axes(f"{found.name}: best layout", f"{found.quantity} ({found.unit})", "seconds of a step")
    shown = [(point.value, point.layout, regime(point)) for point in found.points if point.layout is not None]
    axes.plot([value for value, _, _ in shown], [it.step_seconds.p50 for _, it, _ in shown], color="0.8", zorder=1)
    for name in dict.fromkeys(name for _, _, name in shown):
        of_regime = [(value, it.step_seconds.p50) for value, it, other in shown if other == name]
        axes.scatter(*zip(*of_regime, strict=True), label=name, zorder=2)
    for change in found.changes:
        axes.axvline(change.value, color="0.6", linestyle="--", linewidth=0.8)
    hours = axes.twinx()
    hours.plot([value for value, _, _ in shown], [it.gpu_hours for _, it, _ in shown], ":", color="0.5")
    hours.set_ylabel("GPU-hours of the run (dotted)")
    hours.set_ylim(bottom=0)
    _save(figure, axes, path)


def draw_front(plan: "Plan", path: Path) -> None:
    """Step time against GPU-hours: candidates, the front and its knee, TRL's layout."""
    figure, axes = _axes(f"{plan.name}: step time against GPU-hours", "seconds of a step", "GPU-hours of the run")
    for placement in ("colocated", "disjoint"):
        of_kind = [it for it in plan.candidates if it.placement == placement]
        axes.scatter([it.step_seconds.p50 for it in of_kind], [it.gpu_hours for it in of_kind], label=placement, s=14)
    front = plan.pareto
    points = [(it.step_seconds.p50, it.gpu_hours) for it in front]
    axes.plot(*zip(*points, strict=True), ".-", color="0.5", label="front, with its GPUs")
    for layout, point in zip(front, points, strict=True):
        axes.annotate(str(layout.gpus), point, xytext=(3, 4), textcoords="offset points", fontsize="x-small")
    marks = (("choice", plan.chosen, "o"), ("knee", plan.knee.layout, "D"), ("TRL's layout", plan.baseline, "x"))
    for name, layout, mark in marks:
        fits = layout.student.memory_gib <= layout.student.memory_limit_gib
        label = name if fits else f"{name} (does not fit)"
        hollow = {} if mark == "x" else {"facecolors": "none", "edgecolors": "black"}
        axes.scatter([layout.step_seconds.p50], [layout.gpu_hours], marker=mark, s=90, label=label, **hollow)
    _save(figure, axes, path)


def _axes(title: str, below: str, beside: str) -> tuple[Any, Any]:
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=below, ylabel=beside, xscale="log", yscale="log")
    axes.grid(which="both", color="0.9")
    return figure, axes


def _label(axis: Any) -> None:
    """1, 2 and 5 of every decade of a long axis, some round numbers of a short one."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high > 5 * low else MaxNLocator(6))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, axes: Any, path: Path) -> None:
    """The file appears whole or not at all."""
    import io

    from kd_launch.run_dir import write_whole

    for axis in (axes.xaxis, axes.yaxis):
        _label(axis)
    axes.legend(fontsize="small")
    text = io.BytesIO()
    kind = path.suffix.lower()[1:]
    figure.savefig(text, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_whole(path, text.getvalue())

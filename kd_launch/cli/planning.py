"""What plan shows: layouts, the choice and the reason; an explanation; a sweep. Its options with and without values."""

from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from kd_launch.cli.app import say

if TYPE_CHECKING:
    from pathlib import Path

    from kd_launch.preparation import Source

KEPT = 20
"""Candidates that are numbered, where --top does not ask for more."""
CHOICE = 0
"""What --explain without a number means."""


class PlanCommand(TyperCommand):
    """Takes --explain with and without a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_number(args))


def _with_number(args: list[str]) -> list[str]:
    """A bare --explain means the choice.

    >>> _with_number(["--explain", "3", "a.yaml"]), _with_number(["--explain", "a.yaml"])
    (['--explain=3', 'a.yaml'], ['--explain=0', 'a.yaml'])
    """
    if "--explain" not in args:
        return args
    place = args.index("--explain")
    following = args[place + 1 : place + 2]
    number = following if following and following[0].lstrip("-").isdigit() else []
    return [*args[:place], f"--explain={number[0] if number else CHOICE}", *args[place + 1 + len(number) :]]


def show_plan(
    source: "Source", *, as_json: bool, top: int | None, number: int | None, plot: "Path | None" = None
) -> None:
    """Prints the plan, with the explanation of layout `number` where one is asked for.

    plot: where step time against GPU-hours is drawn.
    """
    from kd_launch.cli import drawing
    from kd_launch.cli.plan_text import format_plan
    from kd_launch.planner.explanation import explain
    from kd_launch.preparation import load_and_plan

    if plot is not None:
        drawing.check_file(plot)
    kept = top or KEPT if as_json else max(top or KEPT, KEPT)
    inputs, found = load_and_plan(source, kept)
    for note in inputs.notes if found.chosen.launch in ("hetjob", "two_steps") else ():
        say(f"note: {note}")
    if number is not None:
        of = (inputs.spec, inputs.cluster, inputs.teacher, inputs.student)
        found = found.model_copy(update={"explanation": explain(*of, found, number or None)})
    if plot is not None:
        drawing.draw_front(found, plot)
    print(found.model_dump_json(indent=2) if as_json else format_plan(found, top=top or 4).rstrip("\n"))


def show_sweep(source: "Source", asked: str, *, as_json: bool, plot: "Path | None") -> None:
    """Prints the best layout over a range of one quantity. plot: where it is drawn, too."""
    from kd_launch.cli import drawing
    from kd_launch.cli.sweep_text import format_sweep
    from kd_launch.planner.sweep import parse_range, sweep
    from kd_launch.preparation import load_inputs

    if plot is not None:
        drawing.check_file(plot)
    inputs = load_inputs(source)
    values = parse_range(asked, inputs.spec, inputs.cluster)
    found = sweep(inputs.spec, inputs.cluster, inputs.teacher, inputs.student, values)
    if plot is not None:
        drawing.draw_sweep(found, plot)
    print(found.model_dump_json(indent=2) if as_json else format_sweep(found).rstrip("\n"))

"""The best layout over a range of one quantity, and where its regime changes."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydantic import BaseModel

from kd_launch.architecture import Architecture
from kd_launch.cluster import Cluster
from kd_launch.errors import DoesNotFitError, SpecError, nearest
from kd_launch.plan import VALUE, Layout
from kd_launch.planner.closed_form import Turn, turn_of
from kd_launch.planner.layouts import LARGEST_MICRO_BATCH, divisors
from kd_launch.planner.search import best_layout, setting_of, sites_of
from kd_launch.spec import Spec

MOST_POINTS = 16
"""Of a range that is not listed value by value."""
MOST_NODES = 4096
MOST_STEPS = 6
"""Bisections per change of regime."""
CLOSE = 1.02
"""Ratio of two values between which a change needs no closer look."""

Problem = tuple[Spec, Cluster]


class Point(BaseModel):
    """One value of the quantity."""

    model_config = VALUE

    value: float
    layout: Layout | None
    """The best one."""
    problem: str | None = None
    """Why there is none."""
    turn: Turn | None = None
    """Where the teacher's TP and FSDP cost the same."""


class Change(BaseModel):
    """From `value` on another regime is best."""

    model_config = VALUE

    value: float
    below: str
    above: str


class Sweep(BaseModel):
    """The answer to `plan --sweep`."""

    model_config = VALUE

    name: str
    quantity: str
    unit: str
    points: list[Point]
    """By rising value."""
    changes: list[Change]


class Quantity(NamedTuple):
    """What may be swept, and what a value of it makes of a problem."""

    unit: str
    whole: bool
    most: float
    apply: Callable[[Spec, Cluster, float], Problem]


def _with_nodes(spec: Spec, cluster: Cluster, value: float) -> Problem:
    """Of both roles together; pools grow where they have fewer."""
    pools = tuple(pool.model_copy(update={"nodes": max(pool.nodes, int(value))}) for pool in cluster.pools)
    return spec.model_copy(update={"max_nodes": int(value)}), cluster.model_copy(update={"pools": pools})


def _with_micro_batch(spec: Spec, cluster: Cluster, value: float) -> Problem:
    training = spec.training.model_copy(update={"micro_batch_size": int(value)})
    return spec.model_copy(update={"training": training}), cluster


def _with_length(spec: Spec, cluster: Cluster, value: float) -> Problem:
    return spec.model_copy(update={"data": spec.data.model_copy(update={"sequence_length": int(value)})}), cluster


def _with_bandwidth(spec: Spec, cluster: Cluster, value: float) -> Problem:
    pools = tuple(pool.model_copy(update={"inter_node_gb_per_s": value}) for pool in cluster.pools)
    return spec, cluster.model_copy(update={"pools": pools})


QUANTITIES = {
    "nodes": Quantity("of both roles", whole=True, most=MOST_NODES, apply=_with_nodes),
    "micro_batch": Quantity("sequences", whole=True, most=LARGEST_MICRO_BATCH, apply=_with_micro_batch),
    "sequence_length": Quantity("tokens", whole=True, most=2**24, apply=_with_length),
    "bandwidth": Quantity("GB/s per node", whole=False, most=1e5, apply=_with_bandwidth),
}


class Range(NamedTuple):
    """What --sweep asks for."""

    quantity: str
    values: tuple[float, ...]


def parse_range(text: str, spec: Spec, cluster: Cluster) -> Range:
    """Reads "nodes=1..64" or "nodes=1,2,8".

    Raises:
        SpecError: it is something else.
    """
    name, _, asked = text.partition("=")
    quantity = QUANTITIES.get(name)
    if quantity is None:
        hint = nearest(name, QUANTITIES)
        raise SpecError(f"--sweep: '{name}' cannot be swept; legal: {', '.join(QUANTITIES)}{hint}")
    if cluster.scheduler == "local" and name in ("nodes", "bandwidth"):
        raise SpecError("--sweep: a local cluster has one node and no network; sweep micro_batch or sequence_length")
    listed = "," in asked or ".." not in asked
    values = sorted({_number(text, quantity, part) for part in asked.split("," if listed else "..")})
    if not listed and (len(values) != 2 or asked.count("..") != 1):
        raise SpecError(f"--sweep: '{text}' is no range; write {name}=1..64, or values such as {name}=1,2,8")
    return Range(name, tuple(values) if listed else tuple(_between(name, quantity, spec, values)))


def _number(text: str, quantity: Quantity, part: str) -> float:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not 0 < value <= quantity.most or (quantity.whole and value != int(value)):
        kind = "whole numbers" if quantity.whole else "numbers"
        raise SpecError(
            f"--sweep: '{part}' in '{text}' is not possible; legal: {kind} above 0 up to {quantity.most:g}, "
            "such as 1..64 or 1,2,8"
        )
    return value


def _between(name: str, quantity: Quantity, spec: Spec, ends: list[float]) -> Iterator[float]:
    """Every value of a short range; of a long one, ends and what lies between by equal ratios."""
    low, high = ends
    if name == "micro_batch":
        yield from (size for size in divisors(spec.training.global_batch_size) if low <= size <= high)
    elif quantity.whole and high - low < MOST_POINTS:
        yield from range(int(low), int(high) + 1)
    elif name == "sequence_length":
        lengths = (low * 2**i for i in range(MOST_POINTS))
        yield from sorted({*itertools.takewhile(lambda length: length < high, lengths), high})
    else:
        ratio = (high / low) ** (1 / (MOST_POINTS - 1))
        inner = (low * ratio**i for i in range(1, MOST_POINTS - 1))
        rounded = {float(round(value)) if quantity.whole else float(f"{value:.3g}") for value in inner}
        yield from sorted({low, *rounded, high})


def sweep(spec: Spec, cluster: Cluster, teacher: Architecture, student: Architecture, asked: Range) -> Sweep:
    """The best layout at every value, and the values at which its regime changes."""
    quantity = QUANTITIES[asked.quantity]

    def at(value: float) -> Point:
        return _point(*quantity.apply(spec, cluster, value), teacher, student, value)

    points = {value: at(value) for value in asked.values}
    changes: list[Change] = []
    for low, high in itertools.pairwise(asked.values):
        changes += _changes(at, asked.quantity, points[low], points[high])
    return Sweep(
        name=spec.name or "plan",
        quantity=asked.quantity,
        unit=quantity.unit,
        points=list(points.values()),
        changes=changes,
    )


def _point(spec: Spec, cluster: Cluster, teacher: Architecture, student: Architecture, value: float) -> Point:
    try:
        layout = best_layout(spec, cluster, teacher, student)
    except (DoesNotFitError, SpecError) as error:
        return Point(value=value, layout=None, problem=str(error).splitlines()[0])
    site = sites_of(spec, cluster)[layout.teacher.pool]
    return Point(value=value, layout=layout, turn=turn_of(setting_of(spec, teacher, student), site))


def regime(point: Point) -> str:
    """What is best, without degrees: placement, the axes of both roles, pools where they differ."""
    layout = point.layout
    if layout is None:
        return "nothing fits"
    teacher, student = layout.teacher, layout.student
    axes = [axis for axis in ("fsdp", "tp", "pp") if getattr(teacher, axis) > 1]
    pools = f" on {teacher.pool}" if teacher.pool != student.pool else ""
    again = " with recompute" if student.activation_recompute == "full" else ""
    return (
        f"{layout.placement}, teacher {' x '.join(axes) or 'replicate'}{pools}, "
        f"student {'fsdp' if student.fsdp > 1 else 'replicate'}{again}{pools and f' on {student.pool}'}"
    )


def _changes(at: Callable[[float], Point], name: str, below: Point, above: Point) -> Iterator[Change]:
    """Between two values, each place where a regime ends, as near as a few bisections come."""
    while regime(below) != regime(above):
        last, first = _ends(at, name, below, above)
        yield Change(value=first.value, below=regime(last), above=regime(first))
        below = first


def _ends(at: Callable[[float], Point], name: str, below: Point, above: Point) -> tuple[Point, Point]:
    """Neighbours, of which the lower one has the regime of `below` and the other one has not."""
    start = regime(below)
    for _ in range(MOST_STEPS if name in ("nodes", "bandwidth") else 0):
        middle = (below.value * above.value) ** 0.5
        middle = float(round(middle)) if QUANTITIES[name].whole else float(f"{middle:.3g}")
        if not below.value < middle < above.value or above.value < CLOSE * below.value:
            break
        point = at(middle)
        below, above = (point, above) if regime(point) == start else (below, point)
    return below, above

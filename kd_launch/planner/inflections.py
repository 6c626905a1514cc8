"""Where another layout of the teacher takes over, read from the cost model by bisection."""

import itertools
from typing import NamedTuple

from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import teacher_memory
from kd_launch.cost.roles import teacher_seconds
from kd_launch.cost.setting import TeacherDegrees
from kd_launch.plan import Inflection, Layout, Payload
from kd_launch.planner.layouts import Share, teacher_degrees, whole_share
from kd_launch.planner.options import SAME, complexity, family
from kd_launch.planner.tables import Tables

QUANTITY = "tokens in a teacher micro-batch"

FEWEST, MOST = 64, 65536
"""Tokens of a teacher's micro-batch between which changes are looked for, in steps of FEWEST."""

RESIDENT = ("training state", "head gradient", "teacher head")
"""Parts of a colocated student that leave the teacher less room."""


class _Case(NamedTuple):
    """One teacher on the chosen GPUs, its micro-batch still open."""

    tables: Tables
    share: Share
    splits: tuple[TeacherDegrees, ...]
    room: float
    """GiB per GPU."""
    drains: bool
    """The pipeline is filled anew for each turn."""

    def seconds(self, degrees: TeacherDegrees, tokens: int) -> float:
        """GPU time of a micro-batch."""
        setting, site = self.tables.setting, self.tables.sites[self.share.pool]
        payload: Payload = "hidden_states" if setting.teacher.head_is_known else "logits"
        found = teacher_seconds(setting, site, degrees, self.share.block, tokens, payload)
        return found.each * degrees.sender_gpus + (found.fill if self.drains else 0.0)

    def best(self, tokens: int) -> TeacherDegrees | None:
        """The simplest of the fastest splits that fit."""
        fitting = [
            degrees
            for degrees in self.splits
            if teacher_memory(self.tables.setting, degrees, tokens).total / GIB <= self.room
        ]
        times = {degrees: self.seconds(degrees, tokens) for degrees in fitting}
        limit = SAME * min(times.values(), default=0.0)
        alike = [degrees for degrees in fitting if times[degrees] <= limit]
        return min(alike, key=lambda degrees: (complexity(degrees), times[degrees]), default=None)


def inflections_of(tables: Tables, chosen: Layout) -> list[Inflection]:
    """Tokens per teacher micro-batch where the best split of one teacher over the chosen GPUs changes its axes.

    Best is the least GPU time among the splits that fit; empty where one is best at every size.
    """
    case = _case(tables, chosen)
    sizes = [FEWEST * 2**i for i in range((MOST // FEWEST).bit_length())]
    best = {size: case.best(size) for size in sizes}
    found = []
    for low, high in itertools.pairwise(sizes):
        below, above = best[low], best[high]
        if below is not None and above is not None and family(below) != family(above):
            value = _first_other(case, below, low, high)
            after = case.best(value) or above
            words = describe(below), describe(after)
            found.append(Inflection(quantity=QUANTITY, value=value, below=words[0], above=words[1]))
    return found


def _case(tables: Tables, chosen: Layout) -> _Case:
    role = chosen.teacher
    share = whole_share(role.pool, role.nodes, role.gpus // role.nodes)
    student = sum(chosen.student.memory_parts_gib.get(part, 0.0) for part in RESIDENT) if chosen.colocated else 0.0
    splits = teacher_degrees(tables.spec, tables.setting.teacher, share)
    return _Case(tables, share, splits, tables.room(share.pool) - student, chosen.colocated)


def _first_other(case: _Case, start: TeacherDegrees, low: int, high: int) -> int:
    """The size, in steps of FEWEST, from which the family of `start`, best at `low`, no longer is."""
    while high - low > FEWEST:
        middle = (low + high) // 2 // FEWEST * FEWEST
        best = case.best(middle)
        if best is not None and family(best) == family(start):
            low = middle
        else:
            high = middle
    return high


def describe(degrees: TeacherDegrees) -> str:
    """The axes that split the teacher, such as "fsdp 8 x tp 2"; "replicate" where none does."""
    words = [f"{axis} {degree}" for axis, degree in degrees._asdict().items() if degree > 1]
    return " x ".join(words) or "replicate"

"""Choice: a layout of the teacher and one of the student on their GPUs; and the order of choices."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from kd_launch.planner.allocations import Allocation
from kd_launch.planner.options import SAME, StudentOption, TeacherOption, Unit, family

Objective = Literal["throughput", "gpu_hours"]


class Choice(NamedTuple):
    """Both roles' layouts on an allocation."""

    seconds: float
    """Of a step."""
    allocation: Allocation
    unit: Unit
    teacher: TeacherOption
    student: StudentOption
    transport: float
    prefetch: int
    allocated: int
    """GPUs that the job holds, idle ones too."""
    fullness: float
    """Share of the memory limit that the fuller role's GPUs need."""

    @property
    def gpu_seconds(self) -> float:
        return self.seconds * self.allocated

    @property
    def kind(self) -> tuple[object, ...]:
        """Choices of one kind are near copies of each other."""
        places = self.allocation.teacher.pool, self.allocation.student.pool
        return self.allocation.placement, family(self.teacher.degrees), places


def ranked(choices: Iterable[Choice], objective: Objective) -> list[Choice]:
    """Best first. Of those that the model cannot tell apart, the better GPU count, the simpler layout, more room."""
    by_value = sorted(choices, key=lambda choice: _value(choice, objective))
    found: list[Choice] = []
    alike: list[Choice] = []
    for choice in by_value:
        if alike and _value(choice, objective) > SAME * _value(alike[0], objective):
            found += sorted(alike, key=lambda choice: _tie(choice, objective))
            alike = []
        alike.append(choice)
    return found + sorted(alike, key=lambda choice: _tie(choice, objective))


def _value(choice: Choice, objective: Objective) -> float:
    return choice.seconds if objective == "throughput" else choice.gpu_seconds


def _tie(choice: Choice, objective: Objective) -> tuple[float, ...]:
    """Equal times: fewer GPUs cost less. Equal GPU-hours: more GPUs are done sooner."""
    first = choice.allocated if objective == "throughput" else -choice.allocated
    teacher, student = choice.teacher.complexity, choice.student.complexity
    return first, teacher + student, teacher, choice.unit.payload != "hidden_states", choice.fullness, choice.seconds


def pareto(choices: Iterable[Choice]) -> list[Choice]:
    """Those that no other beats in both step time and GPU-hours, fastest first."""
    front: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.seconds, choice.gpu_seconds)):
        if not front or choice.gpu_seconds < front[-1].gpu_seconds:
            front.append(choice)
    return front


def varied(order: Sequence[Choice], count: int, kept: Choice) -> list[Choice]:
    """Of choices in order `kept`, the first of each kind, and the next best of all, `count` together; in order."""
    firsts: dict[tuple[object, ...], int] = {}
    for i, choice in enumerate(order):
        firsts.setdefault(choice.kind, i)
    places = dict.fromkeys([order.index(kept), *firsts.values()])
    chosen = set(itertools.islice(places, max(1, count)))
    others = (i for i in range(len(order)) if i not in chosen)
    chosen.update(itertools.islice(others, max(0, count - len(chosen))))
    return [order[i] for i in sorted(chosen)]

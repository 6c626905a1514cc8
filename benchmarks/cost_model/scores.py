"""Scores of predictions: error, bias, coverage of the intervals, and how well they rank the layouts of one model."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cost_model.rows import Case

from kd_launch.estimate.result import Estimate


@dataclass(frozen=True)
class Scored:
    """A case and its prediction, in the unit of the measured figure."""

    case: Case
    estimate: Estimate
    predicted: float

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.predicted / self.case.measured - 1

    @property
    def inside(self) -> bool:
        """The measured time lies between p10 and p90."""
        return self.estimate.step_seconds.p10 <= self.case.measured <= self.estimate.step_seconds.p90

    @property
    def tokens(self) -> float:
        """Of the step."""
        return self.estimate.tokens_per_second * self.estimate.step_seconds.p50


@dataclass(frozen=True)
class Summary:
    """Percent, of one set of rows."""

    rows: int
    mean: float
    median: float
    p90: float
    bias: float
    inside: float


def summary(scored: Sequence[Scored]) -> Summary:
    errors = sorted(abs(one.error) for one in scored)
    return Summary(
        rows=len(errors),
        mean=100 * statistics.fmean(errors),
        median=100 * statistics.median(errors),
        p90=100 * errors[min(len(errors) - 1, math.ceil(0.9 * len(errors)) - 1)],
        bias=100 * statistics.fmean(one.error for one in scored),
        inside=100 * statistics.fmean(one.inside for one in scored),
    )


def grouped(scored: Iterable[Scored], key: Callable[[Scored], str]) -> dict[str, list[Scored]]:
    found: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        found[key(one)].append(one)
    return dict(found)


@dataclass(frozen=True)
class Ranking:
    """Of one group of layouts: what the predicted best loses against the measured best, and the agreement of pairs."""

    name: str
    rows: int
    regret: float
    """Percent of throughput."""
    tau: float


def rankings(scored: Sequence[Scored], key: Callable[[Scored], str]) -> list[Ranking]:
    """By tokens per second, of groups of two rows or more."""
    groups = grouped(scored, key)
    return [_ranking(name, group) for name, group in groups.items() if len(group) > 1]


def _ranking(name: str, group: Sequence[Scored]) -> Ranking:
    measured = [one.tokens / one.case.measured for one in group]
    predicted = [one.tokens / one.predicted for one in group]
    chosen = max(range(len(group)), key=lambda i: (predicted[i], -measured[i]))
    signs = [
        math.copysign(1, (measured[i] - measured[j]) * (predicted[i] - predicted[j]))
        for i, j in itertools.combinations(range(len(group)), 2)
        if measured[i] != measured[j] and predicted[i] != predicted[j]
    ]
    return Ranking(name, len(group), 100 * (1 - measured[chosen] / max(measured)), statistics.fmean(signs or [0.0]))

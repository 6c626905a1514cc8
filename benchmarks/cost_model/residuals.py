"""Which term a source's residuals blame: the correlation of its share of the step with the error, and a plot of it."""

import statistics
from collections.abc import Iterator, Sequence

from cost_model.scores import Scored

WIDTH, HEIGHT = 60, 12


def blamed(source: str, scored: Sequence[Scored]) -> Iterator[str]:
    """The term whose share goes most with the error, and error over share."""
    terms = {term for one in scored for term in one.estimate.breakdown}
    found = {term: _correlation(_shares(term, scored), [one.error for one in scored]) for term in sorted(terms)}
    term = max(found, key=lambda name: abs(found[name]))
    yield f"\n{source}: blames {term} (correlation of its share with the error {found[term]:+.2f})"
    yield from plot(_shares(term, scored), [one.error for one in scored])


def _shares(term: str, scored: Sequence[Scored]) -> list[float]:
    return [one.estimate.breakdown.get(term, 0.0) / one.estimate.step_seconds.p50 for one in scored]


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return 0.0
    return statistics.correlation(xs, ys)


def plot(xs: Sequence[float], ys: Sequence[float]) -> Iterator[str]:
    """Points in a box, the axes' ends beside it."""
    left, right, low, high = min(xs), max(xs), min(*ys, 0.0), max(*ys, 0.0)
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    zero = round((high - 0.0) / ((high - low) or 1) * (HEIGHT - 1))
    rows[zero] = ["-"] * WIDTH
    for x, y in zip(xs, ys, strict=True):
        column = round((x - left) / ((right - left) or 1) * (WIDTH - 1))
        rows[round((high - y) / ((high - low) or 1) * (HEIGHT - 1))][column] = "o"
    yield f"{100 * high:+7.0f} % |{''.join(rows[0])}|"
    yield from (f"          |{''.join(row)}|" for row in rows[1:-1])
    yield f"{100 * low:+7.0f} % |{''.join(rows[-1])}|"
    yield f"{'':10} {100 * left:.0f} % of the step{'':{WIDTH - 24}}{100 * right:.0f} %"

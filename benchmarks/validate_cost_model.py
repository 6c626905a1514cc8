"""Holds the cost model against published measurements, row by row through the functions behind `kd-launch estimate`.

    python benchmarks/validate_cost_model.py benchmarks/data/published_measurements.csv [--refit] [--worst N]

Zero-shot: every row is predicted from its configuration alone, with the constants of the package. --refit also fits the
fitted constants again without each source in turn, and predicts that source with them (two minutes). For a source
beyond its limit the residual is drawn against the share of the term that it blames.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost_model import parts
from cost_model.residuals import blamed
from cost_model.rows import Case, read
from cost_model.scores import Scored, Summary, grouped, rankings, summary

from kd_launch.estimate.forward import estimate_forward
from kd_launch.estimate.train import estimate_training

LIMITS = {"all": 12.0, "source": 15.0, "memory": 10.0, "regret": 3.0}
"""Percent: dense steps over all rows and per source with MANY rows, memory, and top-1 regret of a group."""
COVERAGE = (72.0, 88.0)
MANY = 8
UNSEEN = 1.3
"""Factor of the limits for sources that were left out of the fit."""
GROUPS = {
    "one model, GPUs and batch": lambda one: f"{one.case.group}, batch {one.case.request.global_batch_size}",
    "one model and GPUs, any batch": lambda one: one.case.group,
}
HEAD = ("", "rows", "MAPE", "median", "p90", "bias", "in p10-p90")


def predict(case: Case) -> Scored:
    """Zero-shot, with the constants of the package."""
    if case.kind == "forward":
        estimate = estimate_forward(case.request)
        return Scored(case, estimate, estimate.step_seconds.p50)
    estimate = estimate_training(case.request)
    return Scored(case, estimate, estimate.step_seconds.p50 if case.kind == "step" else estimate.memory_gib)


def main() -> int:
    """0 when all limits are kept, else 1."""
    options = _options()
    cases, skipped = read(options.csv)
    scored = [predict(case) for case in cases]
    dense = _of("step", scored)
    print("\n".join(_report(scored, dense, skipped)))
    print("\n".join(_part_lines(options.csv)))
    failures = list(_failures(scored, dense))
    if options.worst:
        print("\n".join(_worst(dense, options.worst)))
    for source in _missing(dense):
        print("\n".join(blamed(source, grouped(dense, _source)[source])))
    if options.refit:
        unseen = _left_out(dense)
        print("\n".join(_unseen_report(dense, unseen)))
        failures += [f"left out: {failure}" for failure in _step_failures(unseen, factor=UNSEEN)]
    print("\n" + ("\n".join(f"beyond its limit: {failure}" for failure in failures) or "all limits are kept"))
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("csv", type=Path, help="the measurements")
    parser.add_argument("--refit", action="store_true", help="leave one source out, fit, predict it")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="show the N worst dense rows")
    return parser.parse_args()


def _report(scored: Sequence[Scored], dense: Sequence[Scored], skipped: dict[str, int]) -> Iterator[str]:
    yield "Step time, dense models, zero-shot:"
    yield from _table(dense)
    others = {
        "Step time, mixtures of experts": _of("step", scored, dense=False),
        "Memory of a rank": _of("memory", scored),
        "Forward pass": _of("forward", scored),
    }
    for title, rows in others.items():
        if rows:
            yield f"\n{title}:"
            yield from _table(rows)
    yield from _ranking_lines(dense)
    yield from _fit_lines(scored)
    total = sum(skipped.values())
    yield f"\n{len(scored)} rows; {total} say nothing that `estimate` predicts: " + "; ".join(
        f"{count} {reason}" for reason, count in sorted(skipped.items(), key=lambda item: -item[1])
    )


def _of(kind: str, scored: Sequence[Scored], *, dense: bool = True) -> list[Scored]:
    return [one for one in scored if one.case.kind == kind and one.case.dense == dense]


def _source(one: Scored) -> str:
    return one.case.source


def _table(scored: Sequence[Scored]) -> Iterator[str]:
    yield "| " + " | ".join(HEAD) + " |"
    yield "|---|" + "---:|" * (len(HEAD) - 1)
    for source, rows in sorted(grouped(scored, _source).items(), key=lambda item: -len(item[1])):
        yield _row(source, summary(rows))
    yield _row("**all**", summary(scored))


def _row(name: str, found: Summary) -> str:
    cells = (f"{found.mean:.1f} %", f"{found.median:.1f} %", f"{found.p90:.1f} %", f"{found.bias:+.1f} %")
    return f"| {name} | {found.rows} | " + " | ".join(cells) + f" | {found.inside:.0f} % |"


def _ranking_lines(dense: Sequence[Scored]) -> Iterator[str]:
    """By throughput: rows of the same work, which a user could choose between, and of any batch."""
    for title, key in GROUPS.items():
        found = sorted(rankings(dense, key), key=lambda one: -one.regret)
        if not found:
            continue
        mean, tau = (statistics.fmean(values) for values in zip(*((one.regret, one.tau) for one in found), strict=True))
        kept = sum(one.regret <= LIMITS["regret"] for one in found)
        yield f"\nRanking, {len(found)} groups of {title}: top-1 regret {found[0].regret:.1f} % at most,"
        yield f"{mean:.2f} % in the mean, within {LIMITS['regret']:g} % in {kept}; Kendall's tau {tau:.2f}"
        yield from (f"  {one.regret:.1f} % of {one.rows}: {one.name}" for one in found if one.regret > LIMITS["regret"])


def _part_lines(path: Path) -> Iterator[str]:
    for title, rows in (("distillation losses", parts.losses(path)), ("activation formulas", parts.activations(path))):
        if rows:
            worst = max(rows, key=lambda one: abs(one.error))
            yield f"Parts of memory, {len(rows)} {title}: {100 * abs(worst.error):.2g} % off at most ({worst.name})"


def _fit_lines(scored: Sequence[Scored]) -> Iterator[str]:
    """Rows that ran are negatives of "out of memory"; a row of metric `oom` would be a positive."""
    ran = [one for one in scored if one.case.kind in ("step", "memory") and not one.case.ran_out]
    failed = [one for one in scored if one.case.ran_out]
    free = [one for one in ran if not one.estimate.fits and _can_fit(one.case)]
    alarms = [one for one in ran if not one.estimate.fits and one not in free]
    found = [one for one in failed if not one.estimate.fits]
    yield f"\nOut of memory: {len(alarms)} of {len(ran)} layouts that ran are said not to fit; {len(free)} more do not"
    yield "say what they compute again or keep in the host's memory, and fit with full recomputation"
    sources = grouped(alarms, _source).items()
    yield from (f"  {len(rows)} of {source}: {_excess(rows)} over the limit" for source, rows in sources)
    if failed:
        precision = len(found) / max(1, len(found) + len(alarms))
        yield f"precision {100 * precision:.0f} %, recall {100 * len(found) / len(failed):.0f} % of {len(failed)}"
    else:
        yield "no row ran out of memory, so that precision and recall have no meaning here"


def _can_fit(case: Case) -> bool:
    """Whether the row leaves open what is computed again, and the layout fits when all is."""
    return not case.states_recompute and estimate_training(replace(case.request, recompute="full")).fits


def _excess(rows: Sequence[Scored]) -> str:
    over = sorted(100 * (one.estimate.memory_gib / one.estimate.memory_limit_gib - 1) for one in rows)
    return f"{over[0]:.1f} to {over[-1]:.1f} %"


def _missing(dense: Sequence[Scored], factor: float = 1.0) -> list[str]:
    found = ((source, summary(rows)) for source, rows in grouped(dense, _source).items())
    return [source for source, one in found if one.rows >= MANY and one.mean > factor * LIMITS["source"]]


def _step_failures(dense: Sequence[Scored], factor: float = 1.0) -> Iterator[str]:
    whole = summary(dense)
    if whole.mean > factor * LIMITS["all"]:
        yield f"{whole.mean:.1f} % over all dense steps"
    missing = _missing(dense, factor)
    if len(missing) > 1:
        yield f"more than one source: {', '.join(missing)}"


def _failures(scored: Sequence[Scored], dense: Sequence[Scored]) -> Iterator[str]:
    yield from _step_failures(dense)
    inside = summary(dense).inside
    if not COVERAGE[0] <= inside <= COVERAGE[1]:
        yield f"{inside:.0f} % between p10 and p90"
    memory = _of("memory", scored)
    if memory and summary(memory).mean > LIMITS["memory"]:
        yield f"{summary(memory).mean:.1f} % of memory"
    regrets = [one for one in rankings(dense, next(iter(GROUPS.values()))) if one.regret > LIMITS["regret"]]
    if regrets:
        yield f"top-1 regret in {len(regrets)} groups"


def _worst(dense: Sequence[Scored], count: int) -> Iterator[str]:
    yield f"\nThe {count} worst:"
    for one in sorted(dense, key=lambda one: -abs(one.error))[:count]:
        terms = sorted(one.estimate.breakdown.items(), key=lambda item: -item[1])[:4]
        shares = ", ".join(f"{name} {100 * part / one.predicted:.0f} %" for name, part in terms)
        yield f"  {100 * one.error:+.0f} % {one.case.group}, {one.case.layout}: {shares}"


def _left_out(dense: Sequence[Scored]) -> list[Scored]:
    """Each source predicted with constants that were fitted without it."""
    from cost_model.refit import fit, predicted_with

    found: list[Scored] = []
    for source, rows in grouped(dense, _source).items():
        values = fit([one.case for one in dense if one.case.source != source])
        found += [
            Scored(one.case, estimate, estimate.step_seconds.p50) for one, estimate in predicted_with(rows, values)
        ]
    return found


def _unseen_report(dense: Sequence[Scored], unseen: Sequence[Scored]) -> Iterator[str]:
    yield "\nStep time, dense models, each source left out of the fit of the constants that predict it:"
    yield from _table(unseen)
    yield f"{summary(unseen).mean / summary(dense).mean:.2f} times the error of the package's constants"


if __name__ == "__main__":
    sys.exit(main())

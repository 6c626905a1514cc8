"""A calibration as plain text for a terminal: what was measured against the cost model, and the factors."""

from collections.abc import Mapping

from kd_launch.calibration.file import PoolCalibration
from kd_launch.cli.wrapping import aligned

HEADINGS = ("pool", "what", "sizes", "measured/predicted", "factor")


def format_calibration(pools: Mapping[str, PoolCalibration]) -> str:
    """One line for each factor."""
    rows = [HEADINGS]
    for name, pool in pools.items():
        for term, fit in pool.terms.items():
            shown = f"{fit.measured_over_predicted:.2f}", f"{fit.factor:.2f}"
            rows.append((name, term.replace("_", "-"), str(fit.samples), *shown))
    lines = aligned(rows, [heading not in ("pool", "what") for heading in HEADINGS])
    return "\n".join(line.rstrip() for line in lines) + "\n"

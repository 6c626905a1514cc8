"""Samples per second with more and more processes on this machine, one core each, colocated.

    python -m benchmarks.scaling [--steps 10] [--ranks 1 2] [--small]

The last lines are each number's rate over that of the first, and of what so many would reach without any loss.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.material import make_material, small_material, write_spec
from benchmarks.measuring import keep, show, submit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--small", action="store_true", help="models of 1M parameters")
    asked = parser.parse_args()
    figures = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        material = (small_material if asked.small else make_material)(Path(place), steps=asked.steps)
        for ranks in asked.ranks:
            spec = write_spec(material, processes=ranks, cores=ranks, placement="colocated")
            pins = (f"teacher.gpus={ranks}", f"student.gpus={ranks}")
            figures.append(submit(f"{ranks} ranks", spec, Path(place) / f"run-{ranks}", material.batch, pins))
    show(figures)
    keep("scaling", {"ranks": asked.ranks}, figures)
    for ranks, one in zip(asked.ranks, figures, strict=True):
        gain = one.samples_per_second / figures[0].samples_per_second
        print(f"{ranks} ranks: {gain:.2f} times the first, {gain * asked.ranks[0] / ranks:.2f} of the ideal")


if __name__ == "__main__":
    main()

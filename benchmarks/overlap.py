"""Teacher and student at the same time, against the slower of the two alone.

    python -m benchmarks.overlap [--steps 20] [--small]

A disjoint run of one teacher and one student process. What each side waited for the other is measured in every step, so
a step's seconds without its waits are what that side needs alone, on the same core with the same work. The last line is
the slower side's seconds over the step's: 1 means that the other side and the transport cost nothing.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.material import make_material, small_material, write_spec
from benchmarks.measuring import WARM_UP, keep, read_steps, show, submit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="models of 1M parameters")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        make = small_material if asked.small else make_material
        material = make(Path(place), steps=asked.steps)
        # Two micro-batches a step, so that one is computed while the other is learnt from.
        spec = write_spec(material, processes=2, cores=2, placement="disjoint", training={"micro_batch_size": 1})
        figures = submit("disjoint 1 + 1", spec, Path(place) / "run", material.batch)
        lines = read_steps(Path(place) / "run" / "metrics.jsonl")[WARM_UP:]
    show([figures])
    step, student, teacher = (
        [line[name] for line in lines] for name in ("step_seconds", "student_wait_seconds", "teacher_wait_seconds")
    )
    alone = {
        "student": statistics.fmean(a - b for a, b in zip(step, student, strict=True)),
        "teacher": statistics.fmean(a - b for a, b in zip(step, teacher, strict=True)),
    }
    share = max(alone.values()) / statistics.fmean(step)
    keep("overlap", {"alone": alone, "step": statistics.fmean(step), "share": share}, [figures])
    print(f"step {statistics.fmean(step):.3f} s; alone: student {alone['student']:.3f}, teacher {alone['teacher']:.3f}")
    print(f"{share:.3f} of the slower side's own rate")


if __name__ == "__main__":
    main()

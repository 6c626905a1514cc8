"""Teacher and student at the same time, against each side alone.

    python -m benchmarks.overlap [--steps 12] [--rounds 2]

Three disjoint runs of one teacher and one student process, with the same payload: of both models; of the student with
a teacher of one narrow layer, which never keeps it waiting; and of the teacher with such a student. Rounds take turns,
the best of each counts. The last line is the slower side's seconds for a step, alone, over those of both: 1 means that
the other side and the transport cost nothing. Raw figures go to benchmarks/results/overlap.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks.material import STUDENT, TEACHER, Material, make_material, write_spec
from benchmarks.measuring import Figures, best, keep, show, submit

NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}


SHAPES = {"both": (TEACHER, STUDENT), "student alone": (NARROW, STUDENT), "teacher alone": (TEACHER, NARROW)}


def materials(place: Path, steps: int) -> dict[str, Material]:
    """Of each run, in folders of their own."""
    return {
        name: make_material(place / name.replace(" ", "-"), steps=steps, teacher=teacher, student=student)
        for name, (teacher, student) in SHAPES.items()
    }


def run(name: str, material: Material, folder: Path) -> Figures:
    # Several micro-batches a step, so that one is computed while the other is learnt from even within a step.
    spec = write_spec(
        material, processes=2, cores=2, placement="disjoint", distillation={"payload": "logits"},
        training={"micro_batch_size": 1},
    )  # fmt: skip
    return submit(name, spec, folder, material.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        made = materials(Path(place), asked.steps)
        for number in range(asked.rounds):
            for name, material in made.items():
                found.setdefault(name, []).append(run(name, material, Path(place) / f"{name[:7]}-{number}"))
    figures = {name: best(rounds) for name, rounds in found.items()}
    show(list(figures.values()))
    seconds = {name: statistics.median(one.step_seconds) for name, one in figures.items()}
    slower = max("student alone", "teacher alone", key=lambda name: seconds[name])
    share = seconds[slower] / seconds["both"]
    keep("overlap", {"seconds": seconds, "share": share}, [one for rounds in found.values() for one in rounds])
    print("; ".join(f"{name} {value:.3f} s a step" for name, value in seconds.items()))
    print(f"{share:.3f} of the slower side's own rate")


if __name__ == "__main__":
    main()

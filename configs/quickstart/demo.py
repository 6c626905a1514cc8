"""What `make demo` runs: the quickstart with three seeds, each beside the same student trained on the text alone.

    python configs/quickstart/demo.py [--runs FOLDER] [--seeds N]

Plans, submits and follows configs/quickstart.yaml on this machine. Ends with what the student reaches on held-out text
before and after, beside the teacher; the last line is the run folder of the first seed, alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "quickstart.yaml"
SEEDS = 3
# Same student, same steps, same learning rate, same order of the same text; only what it learns from differs.
TEXT_ALONE = ("distillation.cross_entropy_weight=1.0", "placement=colocated", "teacher.gpus=1", "student.gpus=1")


@dataclass(frozen=True)
class Evaluations:
    """Cross-entropies on the held-out text, nats per byte (a token is a byte)."""

    folder: Path
    teacher: float
    before: float
    after: float


def kd_launch(*arguments: str, capture: bool = False) -> str:
    """Runs the command line as a user would; its errors are the demo's."""
    command = [sys.executable, "-m", "kd_launch.cli", *arguments]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def run(name: str, seed: int, settings: tuple[str, ...]) -> Evaluations:
    """One run to its end."""
    chosen = (f"name={name}", f"training.seed={seed}", *settings)
    print(f"\n{name}, seed {seed}", flush=True)
    options = [word for setting in chosen for word in ("--set", setting)]
    answer = kd_launch("submit", str(CONFIG), "--wait", "--json", *options, capture=True)
    return read_evaluations(Path(json.loads(answer)["run_dir"]))


def read_evaluations(folder: Path) -> Evaluations:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "eval_loss" in line]
    student = [line["eval_student_cross_entropy"] for line in found]
    return Evaluations(folder, found[-1]["eval_teacher_cross_entropy"], student[0], student[-1])


def mean_and_spread(values: list[float]) -> str:
    """The spread where there is one."""
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def report(distilled: list[Evaluations], text_alone: list[Evaluations]) -> list[str]:
    """The last six lines."""
    gains = [alone.after - taught.after for taught, alone in zip(distilled, text_alone, strict=True)]
    better = sum(gain > 0 for gain in gains)
    seeds = ", ".join(map(str, range(len(gains))))
    return [
        f"held-out text, nats per byte; mean and standard deviation over seeds {seeds}",
        f"  teacher                     {distilled[0].teacher:.3f}",
        f"  student before              {mean_and_spread([one.before for one in distilled])}",
        f"  student on the text alone   {mean_and_spread([one.after for one in text_alone])}",
        f"  student distilled           {mean_and_spread([one.after for one in distilled])}"
        f"   better by {mean_and_spread(gains)}, with {better} of {len(gains)} seeds",
        str(distilled[0].folder),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE.parents[1] / "runs", help="where runs and data go")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, 10), help="how many")
    arguments = parser.parse_args()
    runs = arguments.runs.resolve()
    subprocess.run([sys.executable, str(HERE / "make_data.py"), str(runs / "quickstart-data")], check=True)
    print("$ kd-launch plan configs/quickstart.yaml", flush=True)
    kd_launch("plan", str(CONFIG))
    data = runs / "quickstart-data"
    places = {"cluster.run_root": runs, "data.train": data / "train", "data.eval": data / "eval"}
    at = tuple(f"{key}={json.dumps(str(path))}" for key, path in places.items())
    distilled, text_alone = [], []
    for seed in range(arguments.seeds):
        distilled.append(run("quickstart", seed, at))
        text_alone.append(run("quickstart-text-alone", seed, (*at, *TEXT_ALONE)))
    print()
    print("\n".join(report(distilled, text_alone)))
    if any(taught.after >= alone.after for taught, alone in zip(distilled, text_alone, strict=True)):
        sys.exit("error: a student that saw the text alone is as good; the distillation taught it nothing")


if __name__ == "__main__":
    main()

"""Predicted against measured step times on this machine after `calibrate`, and whether the planner chooses the best.

    python -m benchmarks.calibrated [--steps 34] [--minutes 30] [--pairs 3]

Three pairs of teacher and student of different ratio, made on the spot, on a pool of 4 processes that share this
machine's cores. Each pair is calibrated; then every layout of up to 4 processes that fits is run, the most promising
first, until its share of the minutes is spent. A layout is a placement, the processes of each role and how each is
split; its micro-batch and payload are the planner's. The first run is started as a user starts it and prepares the
tokens; the others' ranks are forked from a process with torch in it, which saves most of the time. A step's time is the
mean over those in the middle: in the first six teachers work ahead, and in the last six some have nothing left to do.
Raw figures go to benchmarks/results/calibrated.json.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.material import make_material, write_spec
from benchmarks.measuring import RESULTS, ROOT, read_steps
from kd_launch.errors import KdLaunchError
from kd_launch.plan import Layout, RunPlan, describe_role, read_run_plan
from kd_launch.preparation import Source, load_inputs, plan_inputs
from kd_launch.run_dir import RunDir
from tests.runtime.harness import run_to_end

PROCESSES = 4
# Steps in which teachers fill their students' buffers, and as many in which those run empty: what a student then takes
# was not made in the time of its step.
AHEAD = 6
WHOLE = {"vocab_size": 8192}
# Hidden size, layers; the rest of the shape follows. The teacher is 12, 4 and 1 times the student's work.
PAIRS = {"large : small": ((512, 8), (128, 4)), "medium : small": ((384, 6), (192, 6)), "equal": ((256, 6), (256, 6))}


@dataclass(frozen=True)
class Run:
    """One layout, as predicted and as measured."""

    layout: str
    settings: tuple[str, ...]
    predicted: float
    measured: float
    is_choice: bool

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def shape(hidden: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": hidden, "intermediate_size": 11 * hidden // 4, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
    }  # fmt: skip


def all_settings() -> Iterator[tuple[str, ...]]:
    """Every placement, and every split of both roles over up to 4 processes."""
    counts = range(1, PROCESSES + 1)
    for teacher, student in itertools.product(counts, counts):
        for placement in ("colocated", "disjoint"):
            if (teacher == student) if placement == "colocated" else (teacher + student <= PROCESSES):
                for of_teacher, of_student in itertools.product(_axes(teacher, 4), _axes(student, 2)):
                    yield (
                        f"placement={placement}", f"teacher.gpus={teacher}", f"student.gpus={student}",
                        f"teacher.parallelism={{{of_teacher}}}", f"student.parallelism={{{of_student}}}",
                    )  # fmt: skip


def _axes(ranks: int, kinds: int) -> tuple[str, ...]:
    names = ("replicas", "fsdp", "tp", "pp")[:kinds]
    return tuple(f"{name}: {ranks}" for name in names) if ranks > 1 else ("replicas: 1",)


def words(layout: Layout) -> str:
    teacher, student = (f"{role.gpus} ({describe_role(role)})" for role in (layout.teacher, layout.student))
    size = f"{layout.student.micro_batch_size} x {layout.grad_accumulation_steps}"
    return f"{layout.placement}: teacher {teacher}, student {student}, {size}, {layout.payload}"


def planned(spec: Path, settings: Sequence[str] = ()) -> Layout | None:
    """What the planner says of these settings; None where nothing fits or runs."""
    try:
        return plan_inputs(load_inputs(Source(spec, list(settings), None, os.environ, Path.cwd()))).chosen
    except KdLaunchError:
        return None


def run_command(command: str, *arguments: str) -> str:
    """What a command of ours prints; all ends where it fails."""
    words = [sys.executable, "-m", "kd_launch.cli", command, *arguments]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def step_seconds(run_dir: RunDir) -> float:
    ends = [line["time"] for line in read_steps(run_dir.metrics)]
    first, *_, last = ends[AHEAD - 1 : -AHEAD]
    return (last - first) / (len(ends) - 2 * AHEAD)


def run_layout(like: RunPlan, layout: Layout, folder: Path) -> float:
    """Seconds of a step in another layout of the same run."""
    folder.mkdir()
    run_dir = RunDir(folder)
    run_dir.plan.write_text(like.model_copy(update={"layout": layout}).model_dump_json())
    run_to_end(run_dir, layout)
    return step_seconds(run_dir)


def run_pair(name: str, folder: Path, steps: int, seconds: float) -> list[Run]:
    """Calibrates, plans, and runs layouts in the order of their predictions while there is time."""
    end = time.monotonic() + seconds
    (teacher, student) = PAIRS[name]
    material = make_material(
        folder, steps=steps, vocabulary=WHOLE["vocab_size"], teacher=shape(*teacher), student=shape(*student)
    )
    spec = write_spec(material, processes=PROCESSES, cores=len(os.sched_getaffinity(0)))
    print(run_command("calibrate", str(spec), "--run-dir", str(folder / "probe")))
    chosen = planned(spec)
    assert chosen is not None
    ways = {words(chosen): (chosen, ())}
    for settings in all_settings():
        layout = planned(spec, settings)
        if layout is not None:
            ways.setdefault(words(layout), (layout, settings))
    found: list[Run] = []
    order = sorted(ways.values(), key=lambda way: way[0].step_seconds.p50)
    order.sort(key=lambda way: way[0] != chosen)
    run_command("submit", str(spec), "--wait", "--run-dir", str(folder / "submitted"))
    like = read_run_plan(folder / "submitted" / "plan.json")
    for number, (layout, settings) in enumerate(order):
        if number and time.monotonic() > end:
            print(f"{len(order) - number} slower layouts of {len(order)} are left out: the time is spent")
            break
        measured = run_layout(like, layout, folder / f"run-{number}")
        found.append(Run(words(layout), settings, layout.step_seconds.p50, measured, layout == chosen))
        show(found[-1])
    return found


def show(run: Run) -> None:
    mark = ">" if run.is_choice else " "
    times = f"predicted {run.predicted:6.3f} s  measured {run.measured:6.3f} s  {100 * run.error:+5.0f} %"
    print(f"{mark} {times}  {run.layout}", flush=True)


def verdict(name: str, runs: Sequence[Run]) -> str:
    best = min(run.measured for run in runs)
    choice = next(run for run in runs if run.is_choice)
    errors = [abs(run.error) for run in runs]
    within = sum(error <= 0.2 for error in errors)
    return (
        f"{name}: the choice takes {choice.measured / best:.2f} times the best measured of {len(runs)}; predictions: "
        f"median error {100 * statistics.median(errors):.0f} %, {within} of {len(runs)} within 20 %, "
        f"the choice {100 * choice.error:+.0f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=34)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="only the first ones")
    asked = parser.parse_args()
    kept: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        for number, name in enumerate(list(PAIRS)[: asked.pairs]):
            print(f"\n{name}, teacher {PAIRS[name][0]}, student {PAIRS[name][1]} (hidden size, layers)", flush=True)
            kept[name] = run_pair(name, Path(place) / str(number), asked.steps, 60 * asked.minutes / asked.pairs)
    RESULTS.mkdir(exist_ok=True)
    runs = {name: [asdict(run) for run in found] for name, found in kept.items()}
    (RESULTS / "calibrated.json").write_text(json.dumps({"cores": os.cpu_count(), "pairs": runs}, indent=1) + "\n")
    print()
    for name, found in kept.items():
        print(verdict(name, found))


if __name__ == "__main__":
    main()

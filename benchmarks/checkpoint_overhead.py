"""How much of the training thread's time saving takes, and how much the whole training slows down.

`python -m benchmarks.checkpoint_overhead --every 10 --steps 40` trains one rank in turn with and without checkpoints,
and shows both figures of each round; the median round's count, for another program may disturb one. One rank has all
the state to itself, which is the worst case; and on a CPU the thread that writes takes its time from the training,
which on a GPU it does not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 3


@dataclass(frozen=True)
class Measured:
    """One training."""

    step_seconds: list[float]
    """Without those of the warm-up."""
    blocked_seconds: float
    """In which the training thread copied the state, or waited for the write before."""
    saves: int

    @property
    def blocked(self) -> float:
        return self.blocked_seconds / sum(self.step_seconds)


@dataclass(frozen=True)
class Round:
    """The same steps, one after the other."""

    saving: Measured
    bare: Measured

    @property
    def ratio(self) -> float:
        """How many times as long all steps take with checkpoints."""
        return sum(self.saving.step_seconds) / sum(self.bare.step_seconds)

    def __str__(self) -> str:
        saving, bare = (sum(one.step_seconds) / len(one.step_seconds) for one in (self.saving, self.bare))
        return (
            f"{self.saving.saves} checkpoints: the training thread is blocked {self.saving.blocked:.2%} of its time; "
            f"a step takes {saving:.3f} s, {bare:.3f} s without: {self.ratio:.3f} times as long"
        )


def train(run_dir: Path) -> None:
    """One rank, in this process; prints what it measured in its last line."""
    from kd_launch.runtime.__main__ import main
    from kd_launch.runtime.checkpoint.saver import Saver

    blocked: list[float] = []
    start = Saver.start

    def timed(self: Saver, *arguments: Any) -> None:
        began = time.perf_counter()
        start(self, *arguments)
        blocked.append(time.perf_counter() - began)

    Saver.start = timed  # type: ignore[method-assign]
    code = main([str(run_dir), "--role", "both"])
    # The last one is made at the end of the run, whose time counts to no step.
    print(json.dumps({"blocked": blocked[:-1]}), flush=True)
    os._exit(code)


def measure(run_dir: Path) -> Measured:
    command = [sys.executable, "-m", "benchmarks.checkpoint_overhead", "--train", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    blocked = json.loads(done.stdout.splitlines()[-1])["blocked"]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return Measured([line["step_seconds"] for line in lines if "loss" in line][WARM_UP:], sum(blocked), len(blocked))


def prepare(folder: Path, steps: int) -> dict[str, Any]:
    """Models and tokens of both trainings; the student has 11 million parameters."""
    from kd_launch.plan import TokenStores
    from tests.runtime.harness import make_layout, make_model, make_store

    student = make_model(
        folder / "student",
        seed=2,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        tie_word_embeddings=True,
    )
    return {
        "teacher": make_model(folder / "teacher", seed=1), "student": student,
        "tokens": TokenStores(train=str(make_store(folder / "train", 64))),
        "layout": make_layout(teachers=1, replicas=1, colocated=True, micro_batch=16, accumulation=1),
        "training__steps": steps,
    }  # fmt: skip


def compare(steps: int, every: int, rounds: int) -> Iterator[Round]:
    """With checkpoints and without, in turn: which comes first changes, for a machine may tire."""
    from tests.runtime.harness import make_run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = prepare(folder, steps)
        for number in range(rounds):
            found = {}
            for kind in ("saving", "bare") if number % 2 else ("bare", "saving"):
                interval = every if kind == "saving" else steps + 1
                run = make_run(folder / f"{kind}-{number}", **material, checkpoint__every_steps=interval)
                found[kind] = measure(run.path)
            yield Round(found["saving"], found["bare"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.train:
        train(a.train)
    rounds = []
    for one in compare(a.steps, a.every, a.rounds):
        print(one, flush=True)
        rounds.append(one)
    blocked = statistics.median(one.saving.blocked for one in rounds)
    ratio = statistics.median(one.ratio for one in rounds)
    print(f"every {a.every} steps: blocked {blocked:.2%} of the time, {ratio:.3f} times as long in all")
    return 0 if blocked <= 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())

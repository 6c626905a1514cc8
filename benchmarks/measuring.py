"""Runs one side of a comparison in processes of its own, and measures it from outside, every side alike."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).resolve().parents[1]
# Allocators and caches warm up in the first steps.
WARM_UP = 2


@dataclass(frozen=True)
class Figures:
    """One side."""

    name: str
    samples_per_second: float
    """Of the median step after the warm-up."""
    cpu_seconds_per_step: float
    """Over all ranks, mean after the warm-up; other work on the machine hardly changes it."""
    peak_gib: float
    """The most anonymous memory (RssAnon) of one process, the largest of its ranks."""
    step_seconds: list[float]
    losses: list[float]


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of steps in a metrics file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if "loss" in line]


class Watch:
    """Samples memory and CPU time of all descendants of a process while its metrics file grows."""

    def __init__(self, pid: int, metrics: Path) -> None:
        self._pid, self._metrics = pid, metrics
        self.peaks: dict[int, int] = {}
        self.cpu_at_step: dict[int, float] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(0.02):
            pids = descendants(self._pid)
            for pid in pids:
                self.peaks[pid] = max(self.peaks.get(pid, 0), anonymous_bytes(pid))
            done = self._metrics.read_text().count('"loss"') if self._metrics.exists() else 0
            if done and done not in self.cpu_at_step:
                self.cpu_at_step[done] = sum(cpu_seconds(pid) for pid in pids)

    def cpu_per_step(self) -> float:
        """Between the first and the last step that were seen after the warm-up."""
        seen = sorted(step for step in self.cpu_at_step if step >= WARM_UP)
        if len(seen) < 2:
            return float("nan")
        # The last step's end is when ranks leave.
        first, last = seen[0], seen[-2] if len(seen) > 2 else seen[-1]
        return (self.cpu_at_step[last] - self.cpu_at_step[first]) / (last - first)


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:
                continue
    return found


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def cpu_seconds(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, command: Sequence[str], metrics: Path, batch: int, environ: dict[str, str]) -> Figures:
    """Runs `command`, which writes a line with loss and time per step to `metrics`."""
    output = metrics.with_suffix(".output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environ}, stdout=file, stderr=file)
        with Watch(process.pid, metrics) as watch:
            code = process.wait()
    if code:
        sys.exit(f"{name} failed with exit code {code}:\n{output.read_text()[-3000:]}")
    lines = read_steps(metrics)
    ends = [line["time"] for line in lines]
    seconds = [later - earlier for earlier, later in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    return Figures(
        name, batch / statistics.median(seconds), watch.cpu_per_step(), max(watch.peaks.values()) / 2**30,
        [round(value, 4) for value in seconds], [line["loss"] for line in lines],
    )  # fmt: skip


def submit(name: str, spec: Path, run_dir: Path, batch: int, settings: Sequence[str] = ()) -> Figures:
    """A run of kd-launch, as a user starts it."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "kd_launch.cli", "submit", str(spec), "--wait", "--run-dir", str(run_dir), *words]
    return measure(name, command, run_dir / "metrics.jsonl", batch, {})


def best(rounds: Sequence[Figures]) -> Figures:
    """The round with the least median step: what other work on the machine disturbed the least."""
    return max(rounds, key=lambda figures: figures.samples_per_second)


def show(figures: Sequence[Figures]) -> None:
    print(f"{'':28}{'samples/s':>10}{'CPU s/step':>12}{'peak GiB':>10}")
    for one in figures:
        print(f"{one.name:28}{one.samples_per_second:10.3f}{one.cpu_seconds_per_step:12.2f}{one.peak_gib:10.3f}")


def keep(name: str, facts: dict[str, Any], figures: Sequence[Figures]) -> Path:
    """Writes raw figures to results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"cores": os.cpu_count(), "load": os.getloadavg(), "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}
    document = {**facts, "machine": machine, "figures": [asdict(one) for one in figures]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path

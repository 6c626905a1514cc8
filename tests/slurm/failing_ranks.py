"""Stands for the ranks of a run that something happens to: writes the runtime's records, and computes nothing.

What a rank does is in TOLD, or else in told.json of the run folder: {"<attempt>": {"<rank>": [what, value]}}, with "*"
for any attempt. `what` happens in its third step. Steps are made together: a rank waits, as in a collective, until
all have made the one before.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

STEP_S = 0.2
COLLECTIVE = "torch/distributed/distributed_c10d.py:2810 all_reduce"


class Rank:
    def __init__(self, run_dir: Path, role: str) -> None:
        self.run_dir, self.role, self.attempt = run_dir, role, int(os.environ["KD_LAUNCH_ATTEMPT"])
        plan = json.loads((run_dir / "plan.json").read_text())
        layout = plan["layout"]
        self.steps, self.first_student = plan["spec"]["training"]["steps"], layout["teacher"]["gpus"]
        self.world = self.first_student + layout["student"]["gpus"]
        second_step = layout["launch"] == "two_steps" and role == "student"
        self.number = int(os.environ["SLURM_PROCID"]) + (self.first_student if second_step else 0)
        told = json.loads(os.environ.get("TOLD") or (run_dir / "told.json").read_text())
        self.told = told.get(str(self.attempt), told.get("*", {})).get(str(self.number))
        self.parent, self.done, self.moved, self.where = os.getppid(), 0, 0.0, ["student.py:1 step"]

    def act(self) -> None:
        signal.signal(signal.SIGTERM, self.obey)
        signal.signal(signal.SIGUSR2, self.obey)
        if self.told == ["absent"]:
            time.sleep(600)
        for step in range(self.steps):
            if self.told and step == 2:
                getattr(self, f"do_{self.told[0]}")(*self.told[1:])
            self.meet(step)
            if step == 0 and self.number == self.first_student:
                self.write(self.here("start.json"), {"time": time.time(), "attempt": self.attempt})
            self.finish_step(step + 1)
        if self.number == self.first_student:
            self.write(self.here("done.json"), {"time": time.time(), "step": self.steps})
        self.beat("done")

    def meet(self, step: int) -> None:
        """Waits until every rank has made so many steps."""
        self.where = [COLLECTIVE, "student.py:2 step"]
        while True:
            self.beat()
            if self.number != self.first_student and self.here("done.json").exists():
                return
            if all(self.has_made(rank, step) for rank in range(self.world)):
                return
            time.sleep(STEP_S)

    def has_made(self, rank: int, steps: int) -> bool:
        with suppress(OSError, ValueError):
            beat = json.loads((self.run_dir / f"heartbeats/rank-{rank:05d}.json").read_text())
            return bool(beat["attempt"] == self.attempt and beat["done"] >= steps)
        return False

    def finish_step(self, step: int) -> None:
        self.done, self.where = step, ["student.py:1 step"]
        if self.number == self.first_student:
            line = {"step": step, "loss": 2.0, "tokens_per_second": 1.0, "step_seconds": STEP_S}
            with (self.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({**line, "attempt": self.attempt}) + "\n")
        self.beat()

    def beat(self, ended: str | None = None) -> None:
        """As the runtime does, it leaves when another one was told to, and ends when it is an orphan."""
        who = {"rank": self.number, "role": self.role, "host": os.environ["SLURMD_NODENAME"], "pid": os.getpid()}
        progress = {"time": time.time(), "done": self.done, "total": self.steps, "unit": "steps"}
        waits = {"waiting_for": None, "since": 0.0, "moved": self.moved, "phase": "training", "where": self.where}
        self.write(
            self.run_dir / f"heartbeats/rank-{self.number:05d}.json",
            {**who, **progress, **waits, "attempt": self.attempt, "ended": ended},
        )
        if ended is None and os.getppid() != self.parent:
            self.fail("orphaned", "its launcher is gone")
        if ended is None and self.here("leave.json").exists() and self.told != ["deaf"]:
            self.end("TERM")

    def obey(self, number: int, _: FrameType | None) -> None:
        word = "USR2" if number == signal.SIGUSR2 else "TERM"
        print(f"{word} at {time.time():.1f}", flush=True)
        if self.told == ["deaf"]:
            return
        if not self.failure.exists() and not self.here("done.json").exists():
            reason = {"USR2": "time_limit", "TERM": "terminated"}[word]
            said = {"signal": word, "reason": reason, "rank": self.number, "role": self.role, "time": time.time()}
            self.write(self.here("leave.json"), said)
        self.end(word)

    def do_exit(self, code: int) -> None:
        os._exit(code)

    def do_raise(self, words: str) -> None:
        self.fail("raised", words)

    def do_signal(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def do_hang(self) -> None:
        while True:
            self.where = ["hang.py:3 for_ever"]
            self.beat()
            time.sleep(STEP_S)

    def do_wait(self, seconds: float = 600.0) -> None:
        """Keeps everybody waiting, until something happens."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.moved = time.time()  # which is progress
            self.beat()
            time.sleep(STEP_S)

    def do_deaf(self) -> None:
        self.do_wait()

    def fail(self, kind: str, words: str) -> None:
        if not self.failure.exists():
            who = {"attempt": self.attempt, "role": self.role, "rank": self.number, "kind": kind}
            what = {"host": os.environ["SLURMD_NODENAME"], "error": words, "traceback": "", "time": time.time()}
            self.write(self.failure, {**who, **what})
        self.end(kind, 1)

    def end(self, word: str, code: int = 0) -> None:
        self.beat(word)
        os._exit(code)

    @property
    def failure(self) -> Path:
        return self.run_dir / f"failures/attempt-{self.attempt}.json"

    def here(self, name: str) -> Path:
        return self.run_dir / f"attempts/attempt-{self.attempt}/{name}"

    def write(self, path: Path, value: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(value))
        partial.rename(path)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["-m", "kd_launch.runtime", run_dir, "--role", role]:
            Rank(Path(run_dir), role).act()
        case other:
            sys.exit(f"unexpected: {other}")

"""Stands for the job's interpreter: answers the probe, prepares nothing, and acts as ranks by what FAKE_RANKS says.

FAKE_RANKS is JSON: {"<rank>": [action, ...], "*": [...]}; an action is a word, or [word, value]. A rank that has no
more actions ends with 0. FAKE_PREPARE is an exit code of the preparation.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    match sys.argv[1:]:
        case ["-c", _, *_]:
            print(os.environ.get("FAKE_PROBE") or json.dumps({"missing": [], "version": version()}))
        case ["-m", "kd_launch.runtime.prepare"]:
            prepare(json.load(sys.stdin))
        case ["-m", "kd_launch.runtime", run_dir, "--role", role]:
            Rank(Path(run_dir), role).act()
        case ["-m", "kd_launch.attempt", *_]:  # the batch script's own questions get real answers
            os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
        case other:
            sys.exit(f"unexpected: {other}")


def version() -> str:
    from kd_launch import __version__

    return __version__


def prepare(request: dict) -> None:
    code = int(os.environ.get("FAKE_PREPARE", "0"))
    if code:
        sys.stderr.write("error: the tokenizers are different\n")
        sys.exit(code)
    store = Path(request["cluster"]["run_root"]) / "tokens" / "abc"
    print(json.dumps({"train": str(store), "eval": None, "stores": [], "created": True}))


class Rank:
    """One rank; each method is an action."""

    def __init__(self, run_dir: Path, role: str) -> None:
        self.run_dir, self.role = run_dir, role
        self.number = int(os.environ.get("SUBMITIT_LOCAL_GLOBALID") or os.environ["SLURM_PROCID"])
        self.attempt = os.environ["KD_LAUNCH_ATTEMPT"]

    def act(self) -> None:
        script = json.loads(os.environ["FAKE_RANKS"])
        for action in script.get(str(self.number), script.get("*", [])):
            word, *values = action if isinstance(action, list) else (action,)
            getattr(self, word)(*values)

    def beat(self, done: int) -> None:
        record = {"rank": self.number, "role": self.role, "host": socket.gethostname(), "pid": os.getpid()}
        record |= {"attempt": int(self.attempt), "ended": None, "where": []}
        unit = "micro-batches" if self.role == "teacher" else "steps"
        progress = {"time": time.time(), "done": done, "total": 10, "unit": unit, "waiting_for": None, "since": 0.0}
        self._write(f"heartbeats/rank-{self.number:05d}.json", {**record, **progress})

    def step(self, number: int) -> None:
        line = {"step": number, "loss": 2.5, "tokens_per_second": 1000.0, "step_seconds": 0.5}
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def done(self) -> None:
        self._write(f"attempts/attempt-{self.attempt}/done.json", {"time": 0, "step": 10})

    def failure(self, error: str) -> None:
        record = {"attempt": 1, "role": self.role, "rank": self.number, "host": "here", "error": error}
        self._write("failures/attempt-1.json", {**record, "traceback": "", "time": 0})

    def describe(self) -> None:
        """What the rank finds around it."""
        descriptors = {number: str(Path(f"/proc/self/fd/{number}").readlink()) for number in range(3)}
        place = {"session": os.getsid(0), "controller": os.getppid(), "argv": sys.argv}
        self._write(f"rank-{self.number}.json", {**place, "environ": dict(os.environ), "descriptors": descriptors})

    def sleep(self, seconds: float) -> None:
        """As the runtime does, a rank ends when its launcher is gone."""
        parent, deadline = os.getppid(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.getppid() != parent:
                os._exit(1)
            time.sleep(0.02)

    def wait_for(self, name: str) -> None:
        while not (self.run_dir / name).exists():
            time.sleep(0.01)

    def child(self, new_session: bool = False) -> None:
        """Something that the rank starts and leaves behind, with the rank's outputs."""
        code = "import time; time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", code, str(self.run_dir)], start_new_session=new_session)

    def ignore_term(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def print(self, text: str) -> None:
        print(text, flush=True)

    def say_attempt(self) -> None:
        print(f"attempt {self.attempt}", flush=True)

    def exit(self, code: int) -> None:
        os._exit(code)

    def _write(self, name: str, value: object) -> None:
        path = self.run_dir / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(value))
        partial.rename(path)


if __name__ == "__main__":
    main()

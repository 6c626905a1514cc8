"""What a run writes about itself while it runs: metrics.jsonl, heartbeats, and the record of the first failure."""

import json
import os
import socket
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kd_launch.plan import Role
from kd_launch.run_dir import RunDir, write_first_json, write_json

HEARTBEAT_SECONDS = 2.0


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each line in one write, so that a reader never sees half of two."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, line: dict[str, object]) -> None:
        os.write(self._descriptor, (json.dumps(line) + "\n").encode())


@dataclass
class Progress:
    """How far a rank is; its loop writes, its heartbeat reads."""

    unit: str
    """steps, or micro-batches."""
    total: int
    done: int = 0
    waiting_for: str | None = None
    since: float = 0.0

    def wait_for(self, what: str | None) -> None:
        """Says what the rank waits for from now on; None: it works."""
        self.waiting_for, self.since = what, time.time()


class Heartbeat(threading.Thread):
    """Writes this rank's sign of life every two seconds, and ends the process when its launcher is gone."""

    def __init__(self, run_dir: RunDir, rank: int, role: Role, progress: Progress, launcher_pid: int | None) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._path, self._rank, self._role, self.progress = run_dir.heartbeat(rank), rank, role, progress
        self._launcher = launcher_pid
        self._ended = threading.Event()
        run_dir.heartbeats.mkdir(exist_ok=True)

    def run(self) -> None:
        while True:
            self._beat()
            if self._ended.wait(HEARTBEAT_SECONDS):
                return
            if self._launcher is not None and os.getppid() != self._launcher:
                # An orphan would hold GPUs that nobody counts any more.
                os._exit(1)

    def stop(self) -> None:
        """Writes the last sign of life."""
        self._ended.set()
        self.join()
        self._beat()

    def _beat(self) -> None:
        known = {"rank": self._rank, "role": str(self._role), "host": socket.gethostname(), "pid": os.getpid()}
        with suppress(OSError):  # a full disk must not stop a run that could go on; a later beat may get through
            write_json(self._path, {**known, "time": time.time(), **asdict(self.progress)})


# How torch words a connection that another rank's end has broken.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "connect failure",
    "ncclremoteerror",
    "connection was likely closed",
    "timed out waiting",
)


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone: then that rank's own record comes first."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST_PEER)


def record_failure(run_dir: RunDir, attempt: int, role: Role, rank: int, error: BaseException) -> None:
    """Writes the attempt's failure record unless another rank did; waits for that one where this one only follows."""
    path = run_dir.failure(attempt)
    if lost_a_peer(error):
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not path.exists():
            time.sleep(0.1)
    record = {
        "attempt": attempt, "role": str(role), "rank": rank, "host": socket.gethostname(),
        "error": f"{type(error).__name__}: {error}", "time": time.time(),
        "traceback": "".join(traceback.format_exception(error)),
    }  # fmt: skip
    write_first_json(path, record)


def memory_gib(device: torch.device) -> float:
    """The most memory this process held on its GPU; for a CPU rank what it holds now, without files' pages. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**20
    return 0.0

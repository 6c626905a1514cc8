"""metrics.jsonl, and the memory that stands in it."""

import json
import os
import threading
from collections import deque
from pathlib import Path

import torch

from kd_launch.runtime.departure import say

# Lines that wait for a full disk to have room again; the oldest go first.
MOST_WAITING = 10_000


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each line in one write, so that a reader never sees half of two.

    A line that cannot be written waits for the next one: a full disk stops no training. The training thread writes
    while the thread that saves a checkpoint syncs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._fails = False
        self._writing = threading.Lock()
        _drop_torn_line(self._descriptor)

    def write(self, line: dict[str, object]) -> None:
        with self._writing:
            self._waiting.append((json.dumps(line) + "\n").encode())
        try:
            self._write_waiting()
        except OSError as error:
            if not self._fails:
                say(f"warning: {self._path}: {error.strerror}; its lines wait, and the training goes on")
            self._fails = True

    def sync(self) -> None:
        """Brings all lines to the disk. Raises OSError."""
        try:
            self._write_waiting()
            os.fsync(self._descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _write_waiting(self) -> None:
        with self._writing:
            while self._waiting:
                line = self._waiting[0]
                written = os.write(self._descriptor, line)
                if written < len(line):  # the disk is full now
                    self._waiting[0] = line[written:]
                    continue
                self._waiting.popleft()
            self._fails = False


def _drop_torn_line(descriptor: int) -> None:
    """What a rank that was killed, or a node that died, has left behind the last whole line."""
    size = end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        block = os.pread(descriptor, min(end, 4096), max(0, end - 4096))
        found = block.rfind(b"\n")
        if found >= 0:
            end -= len(block) - found - 1
            break
        end -= len(block)
    if end < size:
        os.ftruncate(descriptor, end)


def memory_gib(device: torch.device) -> float:
    """The most memory this process held on its GPU; for a CPU rank what it holds now, without files' pages. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**20
    return 0.0

"""metrics.jsonl, and the memory that stands in it."""

import json
import os
from pathlib import Path

import torch


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each line in one write, so that a reader never sees half of two."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, line: dict[str, object]) -> None:
        os.write(self._descriptor, (json.dumps(line) + "\n").encode())


def memory_gib(device: torch.device) -> float:
    """The most memory this process held on its GPU; for a CPU rank what it holds now, without files' pages. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**20
    return 0.0

"""This machine as its kernel describes it: cores, memory and NVIDIA GPUs."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """What processes of ours may use here."""

    cores: int
    memory_gib: float
    gpus: tuple[str, ...]
    """The model of each NVIDIA GPU, as its driver names it."""


def read_machine(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Cores of our affinity; memory of the machine, or of our control group where that has less."""
    return Machine(len(os.sched_getaffinity(0)), _memory_bytes(proc, cgroup) / GIB, tuple(_gpu_models(proc)))


def _memory_bytes(proc: Path, cgroup: Path) -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)
    total = int(found[1]) * 1024 if found else 0
    try:
        limit = (cgroup / "memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _gpu_models(proc: Path) -> Sequence[str]:
    texts = [path.read_text() for path in sorted(proc.glob("driver/nvidia/gpus/*/information"))]
    models = [re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE) for text in texts]
    return [model[1] for model in models if model]

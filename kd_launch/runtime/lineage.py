"""Which process started this rank, and whether it still stands above it."""

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def launcher_above(proc: Path = PROC) -> int:
    """The slurmstepd that started this rank, else whatever did.

    Not simply the parent: in a container that is a process of the container's own.
    """
    return next((pid for pid in _above(proc) if _name(pid, proc) == "slurmstepd"), os.getppid())


def is_below(launcher: int, proc: Path = PROC) -> bool:
    """Whether the launcher still is this process's parent, or a parent of that one.

    A process whose parent ends gets another one at once, so the answer never speaks of a later process of that number.
    """
    return launcher in _above(proc)


def _above(proc: Path) -> Iterator[int]:
    """This process's parent, that one's parent, and so on."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        pid = _parent(pid, proc)


def _parent(pid: int, proc: Path) -> int:
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])  # the name in parentheses may hold blanks and parentheses


def _name(pid: int, proc: Path) -> str | None:
    try:
        return (proc / str(pid) / "comm").read_text().strip()
    except OSError:
        return None

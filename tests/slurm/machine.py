"""What the test clusters ask the machine: its processes and namespaces, free ports, and waiting."""

import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(there: Callable[[], bool], seconds: float, why_not: Callable[[], str], every: float = 0.2) -> None:
    """Raises TimeoutError, with what `why_not` says then."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise TimeoutError(why_not())
        time.sleep(every)


def free_ports(count: int) -> list[int]:
    """Ports below the range from which the kernel takes those of outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def link(pid: int, name: str) -> str:
    """Where a link of the process points; "" when the process is gone."""
    try:
        return str(Path(f"/proc/{pid}/{name}").readlink())
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """False also for one that has ended and waits to be reaped."""
    return link(pid, "exe") != ""


def uts_inode(pid: int) -> int:
    """The process's host-name namespace; 0 when the process is gone."""
    return int(link(pid, "ns/uts").partition("[")[2].rstrip("]") or 0)


def read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def command_line(pid: int) -> str:
    return read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def parent_of(pid: int) -> int:
    """Of a process that is there."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def state_of(pid: int) -> str:
    """R, S, D, T, Z and so on; "" when the process is gone."""
    told = read(pid, "stat").rpartition(b")")[2].split()
    return told[0].decode() if told else ""


def kill_all(find: Callable[[], list[int]], reap: Callable[[], None], seconds: float = 30) -> None:
    """Kills until none is found: a process may have started another in the meantime."""
    deadline = time.monotonic() + seconds
    while pids := find():
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes that cannot be killed: {pids}")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        reap()
        time.sleep(0.02)

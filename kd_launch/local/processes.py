"""Processes of this machine as /proc shows them: which one it is, whether it still is, and all that belong to a run."""

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessIdentity:
    """One process and no later one: process numbers are given again, start times of one boot are not."""

    pid: int
    start_time: int
    """Clock ticks since the boot: field 22 of /proc/<pid>/stat."""
    host: str
    boot_id: str


def identify(pid: int, proc: Path = PROC) -> ProcessIdentity | None:
    """The identity of a living process of this machine; None where there is none (a zombie has ended)."""
    started = _start_time(pid, proc)
    return None if started is None else ProcessIdentity(pid, started, socket.gethostname(), _boot_id(proc))


def is_alive(identity: ProcessIdentity, proc: Path = PROC) -> bool | None:
    """Whether exactly that process still runs; None where another machine would have to be asked."""
    if identity.host != socket.gethostname():
        return None
    return identify(identity.pid, proc) == identity


def send(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signals exactly that process; False where it has ended.

    The descriptor is opened first and the identity compared after, so the number cannot change hands in between.

    Raises:
        OSError: it is another user's.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def with_variable(name: str, value: str, proc: Path = PROC) -> list[ProcessIdentity]:
    """Every living process, but this one, that was started with that variable: a run's ranks and all they started."""
    wanted = os.fsencode(f"{name}={value}")
    found: list[ProcessIdentity] = []
    for entry in proc.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                identity = identify(int(entry.name), proc)
                found += [identity] if identity else []
    return found


def _start_time(pid: int, proc: Path) -> int | None:
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command in parentheses may hold blanks and parentheses
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id(proc: Path) -> str:
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""

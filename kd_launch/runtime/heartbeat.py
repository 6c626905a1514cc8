"""A rank's signs of life: what it does, what it waits for and where, every two seconds; and those of the others.

Nothing here needs torch: a rank that still imports it already shows that it lives.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kd_launch.errors import SpecError
from kd_launch.plan import Role
from kd_launch.run_dir import RunDir, read_json, write_json
from kd_launch.runtime.environment import Environment

BEAT_SECONDS = 2.0
STILL_SECONDS = 2.5 * BEAT_SECONDS
"""A heartbeat that is older has stood still."""
STACK_LINES = 8
LOCK_SECONDS = 5.0

Phase = Literal["starting", "joining", "loading", "training", "finishing"]
LastWord = Literal["done", "raised", "lost_peer", "orphaned", "TERM", "USR2", "INT"]


@dataclass
class Progress:
    """How far a rank is; its loop writes, its heartbeat reads."""

    unit: str
    """steps, or micro-batches."""
    total: int = 0
    done: int = 0
    waiting_for: str | None = None
    since: float = 0.0
    """Unix time since when it waits."""
    phase: Phase = "starting"
    """finishing: its part of the training is over; what follows is the export, and leaving."""
    moved: float = 0.0
    """Unix time of the last thing done, even where `done` stands still, as in an evaluation."""

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        self.move()

    def move(self) -> None:
        """Something was done."""
        self.moved = time.time()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """While others are waited for. Left as it is by an error, whose heartbeat then says what was waited for."""
        self.waiting_for, self.since = what, time.time()
        yield
        self.waiting_for, self.since = None, time.time()


class Heartbeat:
    """This rank's sign of life."""

    def __init__(self, run_dir: RunDir, place: Environment, role: Role, progress: Progress) -> None:
        self._path = run_dir.heartbeat(place.rank)
        self._known = {
            "rank": place.rank, "role": str(role), "host": place.host, "pid": os.getpid(), "attempt": place.attempt,
        }  # fmt: skip
        self.progress = progress
        self._last_word: LastWord | None = None
        self._said_last = False
        self._lock = threading.Lock()
        self._main = threading.main_thread().ident

    def keep_beating(self, look_around: Callable[[], None]) -> None:
        """The work of a thread: writes every two seconds, looking around after each time; until `end`."""
        while self._last_word is None:
            self._beat()
            look_around()
            time.sleep(BEAT_SECONDS)

    def end(self, word: LastWord) -> None:
        """Writes the last sign of life; the first word stays."""
        self._last_word = self._last_word or word
        self._beat()

    def _beat(self) -> None:
        # The lock keeps the last word the last. Whoever leaves does not wait for a beat that a file system has stopped.
        if not self._lock.acquire(timeout=LOCK_SECONDS):
            return
        try:
            if self._said_last:
                return
            self._said_last = self._last_word is not None
            with suppress(OSError):  # a full disk must not stop a run that could go on; a later beat may get through
                self._path.parent.mkdir(exist_ok=True)
                write_json(self._path, {
                    **self._known, "time": time.time(), **asdict(self.progress), "ended": self._last_word,
                    "where": where(self._main),
                })  # fmt: skip
        finally:
            self._lock.release()


def where(thread: int | None) -> list[str]:
    """What a thread is doing: "file:line function", the innermost first."""
    lines: list[str] = []
    frame = None if thread is None else sys._current_frames().get(thread)
    while frame is not None and len(lines) < STACK_LINES:
        if frame.f_code.co_filename != __file__:  # the last beat is often the thread's own
            lines.append(f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return lines


def _short(file: str) -> str:
    """A file as it is imported: without the folder that it was found in."""
    folders = [folder for folder in sys.path if folder and file.startswith(folder.rstrip("/") + "/")]
    return str(Path(file).relative_to(max(folders, key=len))) if folders else file


@dataclass(frozen=True)
class Beat:
    """What a rank needs of another rank's last heartbeat."""

    rank: int
    role: Role
    host: str
    time: float
    """Unix time, by that rank's clock."""
    ended: str | None
    where: tuple[str, ...]

    def stands_still(self, now: float) -> bool:
        return self.ended is None and now - self.time > STILL_SECONDS


def read_beats(run_dir: RunDir, attempt: int) -> dict[int, Beat]:
    """The last sign of life of each rank of this attempt that gave one."""
    found: dict[int, Beat] = {}
    for path in sorted(run_dir.heartbeats.glob("rank-*.json")):
        with suppress(SpecError, KeyError, TypeError, ValueError):  # of another version: not ours
            values = read_json(path)
            if values is not None and values["attempt"] == attempt:
                beat = _beat_of(values)
                found[beat.rank] = beat
    return found


def _beat_of(values: dict[str, object]) -> Beat:
    rank, lines, ended = values["rank"], values["where"], values["ended"]
    moment = values["time"]
    if not isinstance(rank, int) or not isinstance(lines, list) or not isinstance(moment, int | float):
        raise TypeError("no heartbeat")
    said = None if ended is None else str(ended)
    return Beat(rank, Role(str(values["role"])), str(values["host"]), moment, said, tuple(map(str, lines)))

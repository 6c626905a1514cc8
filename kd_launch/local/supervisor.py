"""Watches the ranks of one attempt on this machine: labels their output, ends them together, says how they ended."""

import math
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Protocol

from kd_launch.commands import Process, start_rank

TICK_S = 0.1
LONGEST_LINE = 1 << 16
UNKILLABLE_S = 10.0
NOT_STARTED = 127


@dataclass(frozen=True)
class Patience:
    """How long ranks get before the next, harder means. Seconds."""

    peers: float = 5.0
    """After a rank died: for the others to end by themselves, and then from TERM to KILL."""
    cancel: float = 10.0
    """After TERM of a cancelled run or one past its time limit: until KILL."""
    record: float = 1.0
    """After a rank ended with a non-zero exit code: for it or another rank to have written the failure record."""
    time_limit: float | None = None
    """Of the whole attempt."""


class Log(Protocol):
    """Where lines go, whole and at once."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class RankCommandLine:
    """What starts one rank."""

    rank: int
    role: str
    argv: Sequence[str]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Death:
    """A rank that ended with anything but 0 before anybody told it to end."""

    rank: int
    role: str
    exit_code: int
    """Negative: killed by that signal."""

    def words(self) -> str:
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        return f"killed by signal {-self.exit_code} ({signal_name(-self.exit_code)})"


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    exit_codes: tuple[int | None, ...]
    """By rank; negative: killed by that signal; None: not known."""
    cancelled: bool
    timed_out: bool
    first: Death | None


@dataclass(frozen=True)
class Course:
    """When the ranks that still live are told to end, and when they are killed. Seconds of the monotonic clock."""

    term_at: float = math.inf
    kill_at: float = math.inf

    def ending(self, at: float, grace: float) -> "Course":
        """The course after a reason to tell the ranks at `at` and to kill them `grace` later: the earlier one wins."""
        term_at = min(self.term_at, at)
        return Course(term_at, min(self.kill_at, max(term_at, at) + grace))


class LineLabeler:
    """Turns chunks of a rank's output into whole lines that begin with its number, as `srun --label` does."""

    def __init__(self, rank: int) -> None:
        self._prefix = f"{rank}: ".encode()
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        return b"".join(self._prefix + line + b"\n" for line in lines)

    def rest(self) -> bytes:
        """What came after the last line's end, as a line."""
        return self.feed(b"\n") if self._rest else b""


class _Live:
    """A rank that was started."""

    def __init__(self, line: RankCommandLine, process: Process, log: Log) -> None:
        assert process.stdout is not None
        self.rank, self.role, self.pid = line.rank, line.role, process.pid
        self._process, self._log, self._labeler = process, log, LineLabeler(line.rank)
        self.pipe: IO[bytes] | None = process.stdout
        os.set_blocking(self.pipe.fileno(), False)

    def read(self) -> None:
        """Moves what the pipe holds into the log; forgets the pipe at its end."""
        while self.pipe is not None:
            try:
                chunk = os.read(self.pipe.fileno(), 1 << 16)
            except BlockingIOError:
                return
            self._write(self._labeler.feed(chunk))
            if not chunk:
                self._close()

    def _write(self, data: bytes) -> None:
        # A full disk loses lines of a log; the pipe must be read on, or the rank would stand still.
        with suppress(OSError):
            self._log.write(data)

    def _close(self) -> None:
        if self.pipe is not None:
            self._write(self._labeler.rest())
            self.pipe.close()
            self.pipe = None

    def has_exited(self) -> bool:
        """Asked without reaping: until then its number, and its process group's, are nobody else's."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: signal.Signals) -> None:
        """To the rank and everything that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def bury(self) -> int:
        """Kills what the ended rank left behind, keeps its last words and returns its exit code."""
        self.signal(signal.SIGKILL)
        self.read()
        self._close()
        return self._process.wait()


class Supervisor:
    """One attempt's ranks, from their start to the end of the last one."""

    def __init__(
        self,
        lines: Sequence[RankCommandLine],
        logs: Mapping[str, Log],
        patience: Patience,
        *,
        on_death: Callable[[Death], None],
        say: Callable[[str], None],
        start: Callable[[Sequence[str], Mapping[str, str]], Process] = start_rank,
        clock: Callable[[], float] = time.monotonic,
        hanging: Callable[[float], str | None] = lambda _: None,
    ) -> None:
        """
        Args:
            hanging: why ranks that live must be ended all the same; asked at every tick.
            logs: unbuffered log of each role.
            on_death: told once of the first death, when the ranks have had the time to write their own record.
            say: one line for the log of the attempt.
        """
        self._lines, self._logs, self._patience = lines, logs, patience
        self._on_death, self._say, self._start_rank, self._clock = on_death, say, start, clock
        self._hanging = hanging
        self._live: dict[int, _Live] = {}
        self._exit_codes: list[int | None] = [None] * len(lines)
        self._course = Course()
        self._sent: set[signal.Signals] = set()
        self._limit_at = math.inf
        self._record_at = math.inf
        self._first: Death | None = None
        self._cancelled = self._timed_out = False

    def cancel(self) -> None:
        """Ends the ranks. Safe to call from a signal handler, and again."""
        self._cancelled = True

    def run(self) -> End:
        """Returns when no rank is left."""
        try:
            self._start()
            while self._live:
                self._read()
                self._collect()
                self._act(self._clock())
            self._tell_of_death(math.inf)
        finally:
            for live in self._live.values():  # only after an error of our own is anything left
                live.signal(signal.SIGKILL)
        return self.end()

    def end(self) -> End:
        """How it ended, so far. Who cancels what had failed already does not change that it failed."""
        cancelled = self._cancelled and not self._timed_out and self._first is None
        return End(tuple(self._exit_codes), cancelled, self._timed_out, self._first)

    def _start(self) -> None:
        if self._patience.time_limit is not None:
            self._limit_at = self._clock() + self._patience.time_limit
        for line in self._lines:
            try:
                process = self._start_rank(line.argv, line.env)
            except OSError as error:
                self._say(f"rank {line.rank} ({line.role}) cannot be started: {error}")
                self._died(Death(line.rank, line.role, NOT_STARTED))
                return
            self._live[line.rank] = _Live(line, process, self._logs[line.role])
            self._say(f"rank {line.rank} ({line.role}) started as process {process.pid}")

    def _read(self) -> None:
        """Waits for output, at most a tick, and passes it on."""
        pipes = {live.pipe.fileno(): live for live in self._live.values() if live.pipe is not None}
        ready, _, _ = select.select(list(pipes), [], [], TICK_S)
        for descriptor in ready:
            pipes[descriptor].read()

    def _collect(self) -> None:
        """Takes note of the ranks that have exited."""
        for live in [live for live in self._live.values() if live.has_exited()]:
            code = live.bury()
            del self._live[live.rank]
            self._exit_codes[live.rank] = code
            death = Death(live.rank, live.role, code)
            self._say(f"rank {live.rank} ({live.role}) {death.words()}")
            if code != 0 and not self._sent:
                self._died(death)

    def _died(self, death: Death) -> None:
        now = self._clock()
        self._course = self._course.ending(now + self._patience.peers, self._patience.peers)
        if self._first is None:
            self._first = death
            # What was killed cannot have written a record, and nobody else knows the reason better.
            self._record_at = now if death.exit_code < 0 else now + self._patience.record

    def _act(self, now: float) -> None:
        """Does what is due."""
        self._tell_of_death(now)
        if self._cancelled:
            self._course = self._course.ending(now, self._patience.cancel)
        if now >= self._limit_at and not self._sent and self._live:
            self._timed_out = True
            self._course = self._course.ending(now, self._patience.cancel)
        if not self._sent and self._live and (words := self._hanging(now)) is not None:
            self._say(f"ends the ranks: {words}")
            self._course = self._course.ending(now, self._patience.peers)
        for due, number in ((self._course.term_at, signal.SIGTERM), (self._course.kill_at, signal.SIGKILL)):
            if now >= due and number not in self._sent:
                self._sent.add(number)
                self._signal_all(number)
        if now >= self._course.kill_at + UNKILLABLE_S:
            self._say(f"rank {', '.join(map(str, self._live))} cannot be killed; given up")
            self._live.clear()

    def _tell_of_death(self, now: float) -> None:
        if self._first is not None and now >= self._record_at:
            self._record_at = math.nan  # once
            self._on_death(self._first)

    def _signal_all(self, number: signal.Signals) -> None:
        if self._live:
            self._say(f"{number.name} to rank {', '.join(map(str, self._live))}")
        for live in self._live.values():
            live.signal(number)


def signal_name(number: int) -> str:
    """SIGKILL of 9; the number where it has no name.

    >>> signal_name(9), signal_name(40)
    ('SIGKILL', '40')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def with_limit(patience: Patience, seconds: int | None) -> Patience:
    """The same patience with a time limit."""
    return replace(patience, time_limit=None if seconds is None else float(seconds))

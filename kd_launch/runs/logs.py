"""The ranks' output of an attempt: whose files, which lines, and the lines that are still coming."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kd_launch.errors import UnknownNameError
from kd_launch.plan import Layout, Role
from kd_launch.run_dir import RunDir

POLL_S = 0.5


@dataclass(frozen=True)
class Piece:
    """Some whole lines of one log."""

    log: Path
    text: bytes
    several: bool
    """Whether other pieces may be of other logs."""


@dataclass(frozen=True)
class Wanted:
    """Whose lines."""

    run: RunDir
    layout: Layout
    role: Role | None = None
    """None: of both."""
    rank: int | None = None
    """Global; under every launch each line begins with it. None: of all."""
    attempt: int | None = None
    """None: of the newest one."""

    def newest(self) -> int:
        """The attempt that is meant now; 0 where none has begun."""
        return self.attempt or max(self.run.attempt_numbers(), default=0)

    def files(self, attempt: int) -> list[Path]:
        """The logs of the role, or of both; ranks that have both roles write to one."""
        colocated = self.layout.colocated
        roles = [Role.BOTH] if colocated else [Role.TEACHER, Role.STUDENT]
        chosen = [one for one in roles if colocated or self.role in (None, one)]
        return [self.run.role_log(attempt, one) for one in chosen]


def check_rank(rank: int | None, world_size: int) -> None:
    """Raises UnknownNameError when the run has no such rank."""
    if rank is not None and not 0 <= rank < world_size:
        raise UnknownNameError(f"--rank {rank}: the run has ranks 0 to {world_size - 1}")


def check_attempt(attempt: int | None, run: RunDir) -> None:
    """Raises UnknownNameError when the run has begun no such attempt."""
    begun = run.attempt_numbers()
    if attempt is not None and attempt not in begun:
        known = f"the run has begun attempts {begun[0]} to {begun[-1]}" if begun else "the run has begun none"
        raise UnknownNameError(f"--attempt {attempt}: {known}")


def read_logs(wanted: Wanted) -> Iterator[Piece]:
    """What the logs hold, one after another; where no rank has written, what srun and the batch script have."""
    attempt = wanted.newest()
    if not _ranks_wrote(wanted, attempt):
        yield from _launchers_words(wanted, attempt)
        return
    files = wanted.files(attempt)
    for file in files:
        yield Piece(file, _of_rank(_Tail(file).rest(), wanted.rank), len(files) > 1)


def follow_logs(
    wanted: Wanted, ended: Callable[[], bool], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Piece]:
    """What the logs hold and what is added to them, until the run has ended; a requeued run's in its next attempt too.

    Of one attempt that was asked for by its number, until a later one has begun.
    """
    tails = _tails(wanted)
    wrote = False
    while True:
        # Asked before reading: what was written before the end is read after it.
        last = ended() or _is_over(wanted)
        tails |= {file: tail for file, tail in _tails(wanted).items() if file not in tails}
        for tail in tails.values():
            text = _of_rank(tail.rest() if last else tail.lines(), wanted.rank)
            if text:
                wrote = True
                yield Piece(tail.path, text, len(tails) > 1)
        if last:
            break
        sleep(POLL_S)
    attempt = wanted.newest()
    if not wrote and not _ranks_wrote(wanted, attempt):
        yield from _launchers_words(wanted, attempt)


def _tails(wanted: Wanted) -> "dict[Path, _Tail]":
    return {file: _Tail(file) for file in wanted.files(wanted.newest())}


def _is_over(wanted: Wanted) -> bool:
    return wanted.attempt is not None and wanted.attempt < max(wanted.run.attempt_numbers(), default=0)


def _ranks_wrote(wanted: Wanted, attempt: int) -> bool:
    """Whether any rank has, of whichever role."""
    run = wanted.run
    logs = [run.role_log(attempt, role) for role in Role]
    return any(log.exists() and log.stat().st_size > 0 for log in logs)


def _launchers_words(wanted: Wanted, attempt: int) -> Iterator[Piece]:
    for file in (wanted.run.srun_log(attempt), wanted.run.batch_log):
        if text := _Tail(file).rest():
            yield Piece(file, text, several=True)


class _Tail:
    """A file that may not exist yet, read from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self.path, self._position, self._torn = path, 0, b""

    def lines(self) -> bytes:
        """The whole lines that were added."""
        whole, end, torn = (self._torn + self._added()).rpartition(b"\n")
        self._torn = torn
        return whole + end

    def rest(self) -> bytes:
        """All that was added."""
        text, self._torn = self._torn + self._added(), b""
        return text

    def _added(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                added = file.read()
        except FileNotFoundError:
            return b""
        self._position += len(added)
        return added


def _of_rank(text: bytes, rank: int | None) -> bytes:
    """The lines that begin with that rank's prefix. srun pads the number on its left."""
    if rank is None:
        return text
    wanted = str(rank).encode()
    return b"".join(line for line in text.splitlines(keepends=True) if line.partition(b":")[0].strip() == wanted)

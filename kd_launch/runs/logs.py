"""The ranks' output of the newest attempt: whose files, which lines, and the lines that are still coming."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kd_launch.errors import UnknownNameError
from kd_launch.plan import Role
from kd_launch.run_dir import RunDir

POLL_S = 0.2


@dataclass(frozen=True)
class Piece:
    """Some whole lines of one log."""

    log: Path
    text: bytes


def log_files(run: RunDir, attempt: int, role: Role | None, colocated: bool) -> list[Path]:
    """The logs of a role, or of both; ranks that have both roles write to one."""
    roles = [Role.BOTH] if colocated else [Role.TEACHER, Role.STUDENT]
    chosen = [one for one in roles if colocated or role in (None, one)]
    return [run.role_log(attempt, one) for one in chosen]


def check_rank(rank: int | None, world_size: int) -> None:
    """Raises UnknownNameError when the run has no such rank."""
    if rank is not None and not 0 <= rank < world_size:
        raise UnknownNameError(f"--rank {rank}: the run has ranks 0 to {world_size - 1}")


def read_logs(files: list[Path], rank: int | None) -> Iterator[Piece]:
    """What the logs hold, one after another."""
    for file in files:
        yield Piece(file, _of_rank(_Tail(file).rest(), rank))


def follow_logs(
    files: list[Path], rank: int | None, ended: Callable[[], bool], sleep: Callable[[float], None] = time.sleep
) -> Iterator[Piece]:
    """What the logs hold and what is added to them, until the run has ended."""
    tails = [_Tail(file) for file in files]
    while True:
        last = ended()  # asked before reading: what was written before the end is read after it
        for tail in tails:
            text = _of_rank(tail.rest() if last else tail.lines(), rank)
            if text:
                yield Piece(tail.path, text)
        if last:
            return
        sleep(POLL_S)


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

"""What the ranks of a run write about themselves, as a reader meets it: half of it not there yet, some of it torn."""

import json
import os
import statistics
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch.errors import SpecError
from kd_launch.run_dir import RunDir, read_json

_BLOCK = 1 << 16
RECENT_STEPS = 20
"""Over which a step's time is told."""
WARM_UP_STEPS = 2
"""In which allocators and caches fill."""


class Heartbeat(BaseModel):
    """The last sign of life of one rank."""

    model_config = ConfigDict(frozen=True)

    rank: int
    role: str
    host: str
    time: float
    """Unix time."""
    done: int
    total: int
    """0: not known yet."""
    unit: str
    """steps, or micro-batches."""
    waiting_for: str | None = None
    since: float = 0.0
    """Unix time since when it waits."""
    attempt: int | None = None
    ended: str | None = None
    """Its last word, after which no sign of life follows: done, raised, lost_peer, orphaned, TERM or USR2."""
    where: tuple[str, ...] = ()
    """What its main thread is at, innermost first."""
    phase: str = "training"
    """starting, joining, loading, training or finishing."""
    moved: float = 0.0
    """Unix time of the last thing done, even where `done` stands still, as in an evaluation."""


class Metrics(BaseModel):
    """One step's line of metrics.jsonl, as far as a reader needs it."""

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float
    tokens_per_second: float
    step_seconds: float
    attempt: int | None = None


def read_heartbeats(run: RunDir, attempt: int) -> tuple[Heartbeat, ...]:
    """Every rank's of an attempt, by rank. A rank that has not begun to write still has an earlier attempt's file."""
    beats: list[Heartbeat] = []
    for path in sorted(run.heartbeats.glob("rank-*.json")):
        try:
            beat = Heartbeat.model_validate(read_json(path))
        except (SpecError, ValidationError):
            continue  # of another version; the next look finds a whole one
        if beat.attempt in (attempt, None):
            beats.append(beat)
    return tuple(beats)


def last_metrics(run: RunDir, attempt: int) -> Metrics | None:
    """An attempt's last whole line about a step; None where it has none yet, though an earlier attempt may have."""
    try:
        last = next(_metrics_backwards(run.metrics), None)
    except OSError:
        return None
    return last if last is not None and last.attempt in (attempt, None) else None


def recent_step_seconds(run: RunDir, attempt: int) -> float | None:
    """The median of an attempt's last steps, without its first ones while there are others; None: it has none yet."""
    last: list[Metrics] = []
    with suppress(OSError):
        for line in _metrics_backwards(run.metrics):
            if line.attempt not in (attempt, None) or len(last) == RECENT_STEPS:
                break
            last.append(line)
    begun = min((line.step for line in last), default=0)
    warm = [line for line in last if len(last) == RECENT_STEPS or line.step >= begun + WARM_UP_STEPS]
    return statistics.median(line.step_seconds for line in warm or last) if last else None


def _metrics_backwards(path: Path) -> Iterator[Metrics]:
    for line in _lines_backwards(path):
        try:
            yield Metrics.model_validate(json.loads(line))
        except (ValueError, ValidationError):
            continue  # an evaluation's line


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, the last one first; what follows the last line's end is not a line yet."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        rest, torn = b"", True
        while position > 0:
            start = max(0, position - _BLOCK)
            file.seek(start)
            rest, *lines = (file.read(position - start) + rest).split(b"\n")
            if torn and lines:
                lines.pop()
                torn = False
            yield from reversed(lines)
            position = start
        if not torn:
            yield rest

"""What became of each attempt of a run on Slurm: its records become values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from kd_launch.attempt.failures import FailureRecord, read_failure
from kd_launch.errors import SpecError
from kd_launch.run_dir import RunDir, read_json

Outcome = Literal["done", "cancelled", "taken", "preempted", "time_limit", "failed", "incomplete"]
Next = Literal["done", "requeue", "fail"]


@dataclass(frozen=True)
class Leave:
    """That the ranks were told to leave."""

    signal: str
    """USR2 before the time limit, TERM at preemption."""
    time: float
    """Unix time."""


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt."""

    number: int
    job_id: str | None
    """The leader's digits; None where the batch script had no time to write it."""
    began: float | None
    """Unix time, as the others."""
    training_since: float | None
    ended: float | None
    """None: it runs, or its batch script was ended with it."""
    outcome: Outcome | None
    """As its batch script found it; None where it had no time to say."""
    next: Next | None
    why: str | None
    """In words, what followed and why."""
    step: int
    """The furthest that it reached; 0: none."""
    saved: int
    """The step of the run's newest checkpoint when it had ended, by which attempt after attempt gets on; 0: none."""
    leave: Leave | None
    failure: FailureRecord | None
    done: bool


def read_attempts(run: RunDir, *, count_steps: bool = True) -> list[AttemptRecord]:
    """Every attempt that was begun, in order.

    Args:
        count_steps: else each step is 0: of a long run that is many lines to read, for whoever looks twice a second.
    """
    steps = furthest_steps(run) if count_steps else {}
    numbers = run.attempt_numbers()
    saved = _saved(run, numbers)
    return [_read_attempt(run, number, steps.get(number, 0), saved[number]) for number in numbers]


def newest_checkpoint(run: RunDir) -> int:
    """The step of it; 0 where there is none."""
    return max(run.checkpoint_steps(), default=0)


def _saved(run: RunDir, numbers: list[int]) -> dict[int, int]:
    """What each attempt has left: where the next one that trained began, and after the last one what is there now."""
    saved, after = {}, newest_checkpoint(run)
    for number in reversed(numbers):
        saved[number] = after
        begun = _number(_read(run, "start", number), "step")
        after = after if begun is None else int(begun)
    return saved


def furthest_steps(run: RunDir) -> dict[int, int]:
    """The last step that each attempt finished, of those that finished one."""
    steps: dict[int, int] = {}
    try:
        lines = run.metrics.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            found = json.loads(line)
            attempt, step = int(found["attempt"]), int(found["step"])
        except (ValueError, KeyError, TypeError):
            continue  # an evaluation's line, or a torn one
        steps[attempt] = max(step, steps.get(attempt, 0))
    return steps


def read_leave(run: RunDir, attempt: int) -> Leave | None:
    """None where no rank was told to leave."""
    found = _read(run, "leave", attempt)
    return Leave(str(found.get("signal")), _number(found, "time") or 0.0) if found else None


def _read_attempt(run: RunDir, number: int, step: int, saved: int) -> AttemptRecord:
    job, start, end = (_read(run, name, number) for name in ("job", "start", "end"))
    return AttemptRecord(
        number=number,
        job_id=str(job["job_id"]) if "job_id" in job else None,
        began=_number(job, "time"),
        training_since=_number(start, "time"),
        ended=_number(end, "time"),
        outcome=cast(Outcome, end["outcome"]) if end.get("outcome") in get_args(Outcome) else None,
        next=cast(Next, end["next"]) if end.get("next") in get_args(Next) else None,
        why=str(end["why"]) if "why" in end else None,
        step=step,
        saved=saved,
        leave=read_leave(run, number),
        failure=read_failure(run, number),
        done=run.done_record(number).exists(),
    )


def _read(run: RunDir, name: str, attempt: int) -> Mapping[str, object]:
    """One record; {} where it is missing or cannot be read, which is no reason to know nothing of the others."""
    paths = {
        "job": run.job_record, "start": run.start_record, "leave": run.leave_record, "end": run.end_record,
    }  # fmt: skip
    try:
        return read_json(paths[name](attempt)) or {}
    except SpecError:
        return {}


def _number(record: Mapping[str, object], name: str) -> float | None:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) else None

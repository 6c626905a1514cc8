"""All that a run's own files say about it at one moment, and whether its controller on this machine lives."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch.attempt.history import AttemptRecord, read_attempts
from kd_launch.errors import SpecError
from kd_launch.local.processes import is_alive
from kd_launch.plan import RunPlan, read_run_plan
from kd_launch.run_dir import RunDir, read_json
from kd_launch.runs.records import Heartbeat, Metrics, last_metrics, read_heartbeats, recent_step_seconds
from kd_launch.runs.state import RunState, read_state

# Between the clock that a file server writes into a file's times and that of the machine that submits.
_CLOCKS_S = 5.0


class Failure(BaseModel):
    """What went wrong first, at any time of the run."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    role: str
    rank: int
    """Global."""
    host: str
    error: str
    kind: str | None = None
    """raised, killed, exited, silent, stuck, absent, orphaned or lost_peer; None in local runs."""


@dataclass(frozen=True)
class Facts:
    """What is known of a run without asking Slurm."""

    run: RunDir
    plan: RunPlan
    state: RunState | None
    """None: made, but not started."""
    attempt: int
    """The newest; 0: none was begun."""
    controller_lives: bool | None
    """Of a local run; None: there is none yet, or only its own machine can tell."""
    end: Mapping[str, Any] | None
    """How the newest attempt ended."""
    done: bool
    """Whether the newest attempt has finished the student."""
    failure: Failure | None
    """The latest, of whichever attempt."""
    metrics: Metrics | None
    """Like the heartbeats of the newest attempt: where that starts again, so does the progress."""
    heartbeats: tuple[Heartbeat, ...]
    now: float
    """Unix time."""
    made: float
    """Unix time at which the folder got its plan."""
    begun: float | None = None
    """Unix time of the last change in the newest attempt's folder: not before it was begun."""
    attempt_job: str | None = None
    """The job that the newest attempt belongs to, where it has said so."""
    leave: Mapping[str, Any] | None = None
    """Who told the newest attempt's ranks to leave."""
    attempts: tuple[AttemptRecord, ...] | None = None
    """All of a run on Slurm, without their steps; None: not asked for."""
    step_seconds: float | None = None
    """Of the newest attempt's last steps, the median; None where it has none, or nobody asked."""
    cancelled: bool = False
    """Whether `cancel` was called for the present job."""

    @property
    def on_slurm(self) -> bool:
        return self.plan.cluster.scheduler == "slurm"

    @property
    def job_id(self) -> str | None:
        return self.state.job_id if self.state else None

    @property
    def attempt_is_of_this_job(self) -> bool:
        """Whether the present job has begun an attempt: else the newest is one of before a resume."""
        if self.attempt == 0 or self.state is None:
            return False
        if self.attempt_job is not None and self.job_id is not None:
            return self.attempt_job == self.job_id
        sent = self.state.token.since if self.state.token else 0.0
        return self.begun is None or self.begun >= sent - _CLOCKS_S

    def lives(self, within: float) -> bool:
        """Whether a rank of the newest attempt has given a sign of life within so many seconds, not its last one."""
        return any(self.now - beat.time <= within for beat in self.heartbeats if beat.ended is None)


def gather(run: RunDir, now: float, *, in_full: bool = True) -> Facts:
    """Looks at a run's files; else than in full only at those that its state depends on.

    Raises:
        SpecError: a file of the run folder cannot be read.
    """
    plan, state = read_run_plan(run.plan), read_state(run)
    attempt = max(run.attempt_numbers(), default=0)
    # In this order: what a process wrote before its end is there once the end was seen.
    lives = is_alive(state.controller) if state is not None and state.controller is not None else None
    end = read_json(run.end_record(attempt))
    job = read_json(run.job_record(attempt))
    done = run.done_record(attempt).exists()
    may_live = lives is None and end is None and not done
    on_slurm = plan.cluster.scheduler == "slurm"
    return Facts(
        run=run,
        plan=plan,
        state=state,
        attempt=attempt,
        controller_lives=lives,
        end=end,
        done=done,
        failure=latest_failure(run, attempt),
        metrics=last_metrics(run, attempt),
        heartbeats=read_heartbeats(run, attempt) if in_full or may_live else (),
        now=now,
        made=_changed(run.plan) or now,
        begun=_changed(run.attempt(attempt)),
        attempt_job=str(job["job_id"]) if job and job.get("job_id") else None,
        leave=read_json(run.leave_record(attempt)),
        attempts=tuple(read_attempts(run, count_steps=False)) if in_full and on_slurm else None,
        step_seconds=recent_step_seconds(run, attempt) if in_full else None,
        cancelled=_cancels(read_json(run.cancel_record), state),
    )


def _cancels(record: Mapping[str, Any] | None, state: RunState | None) -> bool:
    """A record without a job's number was written while that was not known."""
    return record is not None and state is not None and record.get("job_id") in (None, state.job_id)


def _changed(path: Path) -> float | None:
    with suppress(OSError):
        return path.stat().st_mtime
    return None


def latest_failure(run: RunDir, attempt: int) -> Failure | None:
    """The failure record of the newest attempt that has one."""
    for number in range(attempt, 0, -1):
        record = read_json(run.failure(number))
        if record is not None:
            try:
                return Failure.model_validate(record)
            except ValidationError as error:
                raise SpecError(f"{run.failure(number)}: {error.errors()[0]['msg']}") from error
    return None

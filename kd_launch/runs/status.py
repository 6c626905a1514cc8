"""The state of a run: plan, controller and records of the ranks become one Status value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch.errors import SpecError
from kd_launch.local.processes import is_alive
from kd_launch.plan import Role, RunPlan, read_run_plan
from kd_launch.run_dir import RunDir, read_json
from kd_launch.runs.records import Heartbeat, Metrics, last_metrics, read_heartbeats
from kd_launch.runs.state import RunState, read_state

VALUE = ConfigDict(frozen=True)

State = Literal[
    "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT",
    "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "REQUEUED", "UNKNOWN",
]  # fmt: skip
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


class Component(BaseModel):
    """The ranks of one role."""

    model_config = VALUE

    role: Role
    het_group: int | None
    job_id: str
    state: State
    nodes: list[str]
    reason: str | None
    start_estimate: str | None


class StepProgress(BaseModel):
    """How far the training is."""

    model_config = VALUE

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    eta_seconds: float


class Failure(BaseModel):
    """What went wrong first, at any time of the run."""

    model_config = VALUE

    attempt: int
    role: str
    rank: int
    """Global."""
    host: str
    error: str


class Status(BaseModel):
    """One run as `status --json` shows it."""

    model_config = VALUE

    run: str
    run_dir: str
    job_id: str | None
    state: State
    ended: bool
    """No attempt follows."""
    attempt: int
    components: list[Component]
    progress: StepProgress | None
    failure: Failure | None


@dataclass(frozen=True)
class Facts:
    """All that is known of a run at one moment."""

    run: RunDir
    plan: RunPlan
    state: RunState | None
    """None: made, but not started."""
    attempt: int
    """The newest; 0: none was begun."""
    controller_lives: bool | None
    """None: there is none yet, or only its own machine can tell."""
    end: Mapping[str, Any] | None
    done: bool
    failure: Failure | None
    metrics: Metrics | None
    heartbeats: tuple[Heartbeat, ...]
    now: float
    """Unix time."""


def gather(run: RunDir, now: float, *, every_rank: bool = True) -> Facts:
    """Looks at a run; at each rank's heartbeat only when asked to, or when nothing else tells whether it lives.

    Raises:
        SpecError: a file of the run folder cannot be read.
    """
    plan, state = read_run_plan(run.plan), read_state(run)
    attempt = max(run.attempt_numbers(), default=0)
    # In this order: what a process wrote before its end is there once the end was seen.
    lives = is_alive(state.controller) if state is not None and state.controller is not None else None
    end = read_json(run.end_record(attempt))
    return Facts(
        run=run,
        plan=plan,
        state=state,
        attempt=attempt,
        controller_lives=lives,
        end=end,
        done=run.done_record(attempt).exists(),
        failure=latest_failure(run, attempt),
        metrics=last_metrics(run),
        heartbeats=read_heartbeats(run) if every_rank or (lives is None and end is None) else (),
        now=now,
    )


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


def build(facts: Facts) -> Status:
    """The status that the facts amount to."""
    state, reason = local_state(facts)
    job_id = facts.state.job_id if facts.state else None
    controller = facts.state.controller if facts.state else None
    roles = [Role.BOTH] if facts.plan.layout.colocated else [Role.TEACHER, Role.STUDENT]
    nodes = [controller.host] if controller else []
    components = [
        Component(
            role=role, het_group=None, job_id=job_id or "", state=state, nodes=nodes, reason=reason, start_estimate=None
        )
        for role in roles
    ]
    return Status(
        run=facts.run.name,
        run_dir=str(facts.run.path),
        job_id=job_id,
        state=state,
        ended=state in FINAL,
        attempt=facts.attempt,
        components=components,
        progress=_progress(facts, state in FINAL),
        failure=facts.failure,
    )


def local_state(facts: Facts) -> tuple[State, str | None]:
    """The state of a local run and, where the records do not say it, the reason."""
    if facts.done and (facts.end is not None or not facts.controller_lives):
        return "COMPLETED", None
    if facts.end is not None:
        return _ended_state(facts)
    if facts.state is None or facts.state.controller is None:
        return "PENDING", "made, but not started"
    if facts.controller_lives:
        return "RUNNING", None
    if facts.controller_lives is None:
        return _state_elsewhere(facts)
    return "FAILED", f"its controller (process {facts.state.controller.pid}) is gone and left no end record"


def _ended_state(facts: Facts) -> tuple[State, str | None]:
    assert facts.end is not None
    if facts.end.get("cancelled"):
        return "CANCELLED", None
    if facts.end.get("timed_out"):
        return "TIMEOUT", "its time limit was reached"
    if facts.failure is not None and facts.failure.attempt == facts.attempt:
        return "FAILED", None
    first = facts.end.get("first")
    if not first:
        return "FAILED", "every rank ended with 0, but without a finished student"
    how = f"with exit code {first['exit_code']}" if "exit_code" in first else f"killed by signal {first['signal']}"
    return "FAILED", f"{first['role']} rank {first['rank']} ended first, {how}"


def _state_elsewhere(facts: Facts) -> tuple[State, str | None]:
    """The run is on another machine, whose processes cannot be seen from here: signs of life must do."""
    assert facts.state is not None
    assert facts.state.controller is not None
    host, limit = facts.state.controller.host, facts.plan.cluster.heartbeat_timeout_s
    newest = max((beat.time for beat in facts.heartbeats), default=facts.state.created)
    if facts.now - newest <= limit:
        return "RUNNING", None
    return "UNKNOWN", f"no sign of life for {facts.now - newest:.0f} s; ask on its machine, {host}"


def _progress(facts: Facts, ended: bool) -> StepProgress | None:
    if facts.metrics is None:
        return None
    steps, metrics = facts.plan.spec.training.steps, facts.metrics
    return StepProgress(
        step=metrics.step,
        steps=steps,
        loss=metrics.loss,
        tokens_per_second=metrics.tokens_per_second,
        eta_seconds=0.0 if ended else max(0, steps - metrics.step) * metrics.step_seconds,
    )


def read_status(run: RunDir, now: float) -> Status:
    """The status of a run, whatever state its folder is in: what cannot be read is UNKNOWN, with the reason."""
    try:
        return build(gather(run, now, every_rank=False))
    except SpecError as error:
        return Status(
            run=run.name, run_dir=str(run.path), job_id=None, state="UNKNOWN", ended=False, attempt=0,
            components=[
                Component(
                    role=Role.BOTH, het_group=None, job_id="", state="UNKNOWN", nodes=[], reason=str(error),
                    start_estimate=None,
                )
            ],
            progress=None, failure=None,
        )  # fmt: skip

"""The state of a run: plan, records, and what Slurm says become one Status value."""

from pydantic import BaseModel, ConfigDict

from kd_launch.attempt.history import AttemptRecord
from kd_launch.errors import SpecError
from kd_launch.plan import Interval, Role
from kd_launch.run_dir import RunDir
from kd_launch.runs.facts import Facts, Failure, gather
from kd_launch.runs.local_status import local_standing
from kd_launch.runs.slurm_status import Asked, slurm_standing
from kd_launch.runs.standing import Component
from kd_launch.slurm.states import State

__all__ = ["Component", "Facts", "Failure", "State", "Status", "StepProgress", "build", "gather", "unreadable"]

NOT_ASKED = Asked()


class StepProgress(BaseModel):
    """How far the training is, in the newest attempt."""

    model_config = ConfigDict(frozen=True)

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    eta_seconds: float


class StepTime(BaseModel):
    """What a step takes, as planned and as measured."""

    model_config = ConfigDict(frozen=True)

    predicted: Interval
    measured: float
    """The median of the newest attempt's last steps."""

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted.p50


class AttemptSummary(BaseModel):
    """What became of one attempt of a run on Slurm."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    job_id: str | None
    began: float | None
    """Unix time."""
    ended: float | None
    """None: it runs, or was ended together with its batch script."""
    outcome: str | None
    """done, cancelled, taken, preempted, time_limit, failed or incomplete."""
    next: str | None
    """done, requeue or fail."""
    why: str | None


class Status(BaseModel):
    """One run as `status --json` shows it."""

    model_config = ConfigDict(frozen=True)

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
    reason: str | None = None
    """Why it is in that state, where neither state nor failure says it."""
    start_estimate: str | None = None
    """When a waiting run starts: the latest of its components' estimates. Local time."""
    way_on: str | None = None
    """The command that helps a job for which Slurm waits in vain."""
    attempts: list[AttemptSummary] | None = None
    """Of a run on Slurm, in order; None in a list of runs, and of local ones."""
    step_seconds: StepTime | None = None
    """None before the first step, and in a list of runs."""


def build(facts: Facts, asked: Asked = NOT_ASKED) -> Status:
    """The status that the facts, and what Slurm was asked about a run on it, amount to."""
    standing = slurm_standing(facts, asked) if facts.on_slurm else local_standing(facts)
    verdict = standing.verdict
    return Status(
        run=facts.run.name,
        run_dir=str(facts.run.path),
        job_id=facts.job_id or asked.job_id,
        state=verdict.state,
        ended=verdict.ended,
        attempt=facts.attempt,
        components=list(standing.components),
        progress=_progress(facts, verdict.ended),
        failure=facts.failure,
        reason=verdict.reason,
        start_estimate=standing.start_estimate,
        way_on=standing.way_on,
        step_seconds=_step_time(facts),
        attempts=None if facts.attempts is None else [_summary(record) for record in facts.attempts],
    )


def _summary(record: AttemptRecord) -> AttemptSummary:
    return AttemptSummary(
        attempt=record.number, job_id=record.job_id, began=record.began, ended=record.ended,
        outcome=record.outcome, next=record.next, why=record.why,
    )  # fmt: skip


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


def _step_time(facts: Facts) -> StepTime | None:
    if facts.step_seconds is None:
        return None
    return StepTime(predicted=facts.plan.layout.step_seconds, measured=facts.step_seconds)


def unreadable(run: RunDir, error: SpecError) -> Status:
    """The status of a run whose folder cannot be read: UNKNOWN, with the reason."""
    component = Component(
        role=Role.BOTH, het_group=None, job_id="", state="UNKNOWN", nodes=[], reason=str(error), start_estimate=None
    )
    return Status(
        run=run.name, run_dir=str(run.path), job_id=None, state="UNKNOWN", ended=False, attempt=0,
        components=[component], progress=None, failure=None, reason=str(error),
    )  # fmt: skip

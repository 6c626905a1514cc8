"""Where a run stands: its state, whether that is the end, why, and each role's part in it."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from kd_launch.plan import Layout, Role
from kd_launch.slurm.states import State

# submit needs seconds; whoever was cut off in it will not go on.
SUBMITTING_S = 60.0


class Component(BaseModel):
    """The ranks of one role."""

    model_config = ConfigDict(frozen=True)

    role: Role
    het_group: int | None
    job_id: str
    state: State
    nodes: list[str]
    reason: str | None
    start_estimate: str | None


@dataclass(frozen=True)
class Verdict:
    """The state of the whole run."""

    state: State
    ended: bool
    """No attempt follows."""
    reason: str | None = None
    """Why, where neither the state nor the failure says it."""


@dataclass(frozen=True)
class Standing:
    """A verdict, and what it is made of."""

    verdict: Verdict
    components: tuple[Component, ...]
    start_estimate: str | None = None
    """The latest of the components': they start together. Local time."""
    way_on: str | None = None
    """The command that helps a job on that Slurm keeps waiting."""


def roles_of(layout: Layout) -> list[Role]:
    """The roles that ranks are started with, in rank order."""
    return [Role.BOTH] if layout.colocated else [Role.TEACHER, Role.STUDENT]


def never_started(seconds: float) -> Verdict:
    """The state of a run whose folder was made so many seconds ago, and which was not started since."""
    if seconds <= SUBMITTING_S:
        return Verdict("PENDING", ended=False, reason="made, but not started")
    words = "made, but never started: its submission was cut off; remove the folder and submit again"
    return Verdict("FAILED", ended=True, reason=words)

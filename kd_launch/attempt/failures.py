"""The record of an attempt's first failure: written once, unless the first writer only knew that a peer was gone."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch.errors import SpecError
from kd_launch.run_dir import RunDir, read_json
from kd_launch.run_dir import write_failure as write_better

Kind = Literal["raised", "lost_peer", "killed", "exited", "silent", "stuck", "absent", "orphaned"]
# What the next attempt would do again. Everything else was taken from outside, and comes back by itself.
STAYS: tuple[Kind, ...] = ("raised", "exited")


class FailureRecord(BaseModel):
    """What went wrong first in an attempt, and where."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    kind: Kind = "raised"
    role: str
    rank: int
    """Global."""
    host: str
    error: str
    time: float
    """Unix time: when it failed, or its last sign of life."""
    traceback: str | None = None

    @property
    def comes_back(self) -> bool:
        """Whether another attempt may go better."""
        return self.kind not in STAYS

    @property
    def explains(self) -> bool:
        """Whether it says more than that some other rank is gone."""
        return self.kind != "lost_peer"


def read_failure(run: RunDir, attempt: int) -> FailureRecord | None:
    """None where nothing failed yet, or what stands there is no record."""
    try:
        return FailureRecord.model_validate(read_json(run.failure(attempt)))
    except (SpecError, ValidationError):
        return None


def write_failure(run: RunDir, record: FailureRecord) -> None:
    """Writes the record unless a better one is there."""
    write_better(run.failure(record.attempt), record.model_dump())

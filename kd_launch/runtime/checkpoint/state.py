"""state.json of a checkpoint: how far the training is, and all that must be the same for it to go on.

Nothing random is saved: every draw is a function of the seed and the step, or of the seed and a parameter's name.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch import __version__
from kd_launch.decisive import decisive
from kd_launch.errors import SpecError, first_problem
from kd_launch.plan import RunPlan

STATE, PLAN = "state.json", "plan.json"


class SavedState(BaseModel):
    """The training when `step` optimizer steps are done."""

    model_config = ConfigDict(frozen=True)

    step: int
    attempt: int
    """That wrote it."""
    time: float
    """Unix time."""
    version: str = __version__
    next_sequence: int
    """Position in the data: sequences that the steps so far have used, in the order of seed and epoch."""
    learning_rate: float
    """Of the next step."""
    skipped_steps: int = 0
    """Steps so far whose loss or gradient was not finite."""
    bad_steps: int = 0
    """Those of them in a row up to now."""
    decides: dict[str, Any]
    """All of the spec that decides what is learnt."""


def read_state(folder: Path, run: RunPlan) -> SavedState:
    """The state of a verified checkpoint.

    Raises:
        SpecError: it is of another version, or of a training that differs in more than its layout.
    """
    path = folder / STATE
    try:
        state = SavedState.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problem = first_problem(error.errors(), "the file")
        raise SpecError(f"{path}: {problem}; was it written by another version of kd-launch?") from error
    expected = decisive(run)
    for key, value in expected.items():
        if key in state.decides and state.decides[key] != value:
            raise SpecError(
                f"{path}: the checkpoint was made with {key} {state.decides[key]} but the run has {value}; a run goes "
                "on with what it began with: submit another run, or remove its checkpoints"
            )
    return state

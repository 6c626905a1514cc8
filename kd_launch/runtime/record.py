"""What is written down of a step: its line in the metrics, and what a checkpoint says of the training so far."""

import math
import time
from dataclasses import dataclass

import torch

from kd_launch.decisive import decisive
from kd_launch.plan import RunPlan
from kd_launch.runtime.checkpoint.state import SavedState
from kd_launch.runtime.metrics import memory_gib
from kd_launch.runtime.optimizer import learning_rate


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all student ranks."""

    loss: float
    loss_tokens: int
    grad_norm: float
    student_wait: float
    """Mean over the student's ranks."""
    teacher_wait: float
    """Of all teachers for one rank, mean over the student's ranks."""


class Recorder:
    """Counts what must survive a restart."""

    def __init__(self, run: RunPlan, attempt: int, device: torch.device, saved: SavedState | None) -> None:
        """
        Args:
            saved: of the checkpoint that this attempt goes on from.
        """
        self._run, self._attempt, self._device = run, attempt, device
        self._decides = decisive(run)
        self.begin = saved.step if saved else 0
        self.skipped_steps = saved.skipped_steps if saved else 0
        self.bad_steps = saved.bad_steps if saved else 0
        """Not finite, in a row."""

    def is_good(self, result: StepResult) -> bool:
        """Whether the step may change the weights; counts those that may not."""
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        self.skipped_steps += 1
        return False

    def line(self, step: int, result: StepResult, seconds: float) -> dict[str, object]:
        """Of step number `step`, from 0."""
        batch = self._run.spec.training.global_batch_size
        return {
            "step": step + 1,
            "loss": result.loss,
            "loss_tokens": result.loss_tokens,
            "learning_rate": learning_rate(step, self._run.spec.training),
            "grad_norm": result.grad_norm,
            "tokens_per_second": batch * self._run.spec.data.sequence_length / seconds,
            "samples_per_second": batch / seconds,
            "step_seconds": seconds,
            "student_wait_seconds": result.student_wait,
            "teacher_wait_seconds": result.teacher_wait,
            "memory_gib": memory_gib(self._device),
            "skipped_steps": self.skipped_steps,
            "attempt": self._attempt,
            "time": time.time(),
        }

    def state(self, done: int) -> SavedState:
        """When so many steps are done."""
        training = self._run.spec.training
        return SavedState(
            step=done, attempt=self._attempt, time=time.time(), next_sequence=done * training.global_batch_size,
            learning_rate=learning_rate(done, training), skipped_steps=self.skipped_steps, bad_steps=self.bad_steps,
            decides=self._decides,
        )  # fmt: skip

    def state_before(self, done: int) -> SavedState:
        """Before the bad steps in a row up to now, which begin after so many."""
        before = {"bad_steps": 0, "skipped_steps": self.skipped_steps - self.bad_steps}
        return self.state(done).model_copy(update=before)

"""The student's loop: payload, loss, backward, optimizer step; evaluations between; the exported model at the end."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from kd_launch.errors import RunFailedError
from kd_launch.plan import RunPlan
from kd_launch.run_dir import RunDir
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.colocated import PayloadSource
from kd_launch.runtime.data import Item
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.losses import STATISTICS
from kd_launch.runtime.metrics import MetricsFile, memory_gib
from kd_launch.runtime.models import export
from kd_launch.runtime.optimizer import MakeOptimizer, clip_gradients, learning_rate, set_learning_rate
from kd_launch.runtime.parallel import DistilledStudent, reduce_gradients, whole_state
from kd_launch.runtime.world import World

# Steps in a row whose loss or gradient is not finite, after which the run fails: it would not recover by itself.
MOST_BAD_STEPS = 3


class DivergedError(RunFailedError):
    """The training has left the finite numbers."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step, over all student ranks."""

    loss: float
    loss_tokens: int
    grad_norm: float
    seconds: float
    student_wait: float
    """Mean over the student's ranks."""
    teacher_wait: float
    """Of all teachers for one rank, mean over the student's ranks."""


class Trainer:
    """One student rank."""

    def __init__(
        self,
        world: World,
        run: RunPlan,
        batches: Batches,
        student: DistilledStudent,
        source: PayloadSource,
        make_optimizer: MakeOptimizer,
        progress: Progress,
    ) -> None:
        self._world, self._run, self._batches, self._student, self._source = world, run, batches, student, source
        self._progress = progress
        self._items: Iterator[Item] = batches.items_of_student(world.role_rank)
        self._optimizer = make_optimizer(student, run.spec.training)
        self._bad_steps = 0

    def train(self, metrics: MetricsFile | None) -> None:
        """All steps and evaluations of the schedule, from its start."""
        training = self._run.spec.training
        if self._batches.schedule.evaluates_after(0):
            self._report_evaluation(0, metrics)
        for step in range(training.steps):
            result = self.step(step)
            if metrics is not None:
                metrics.write(self._metrics_line(step, result))
            self._progress.done = step + 1
            self._progress.move()
            if self._batches.schedule.evaluates_after(step + 1):
                self._report_evaluation(step + 1, metrics)

    def step(self, step: int) -> StepResult:
        """Optimizer step number `step`, from 0."""
        started = time.perf_counter()
        waits = (self._source.student_waited, self._source.teacher_waited)
        training, layout = self._run.spec.training, self._run.layout
        loss_tokens = self._batches.loss_tokens(step)
        # FSDP averages gradients over ranks; the loss is the sum over all tokens divided by their number.
        scale = layout.student.data_parallel / max(1, loss_tokens)
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        for micro_batch in range(layout.grad_accumulation_steps):
            last = micro_batch == layout.grad_accumulation_steps - 1
            # Keeping whole gradients between micro-batches costs memory that sharding is meant to save.
            reduce_gradients(self._student, now=last or layout.student.fsdp > 1)
            loss, statistics = self._forward(next(self._items), scale, False)
            loss.backward()  # type: ignore[no-untyped-call]
            total += statistics[0]
        with self._progress.waiting(f"the students' gradients of step {step + 1}"):
            norm = clip_gradients(self._student.parameters(), training.max_grad_norm)
        waited = (self._source.student_waited - waits[0], self._source.teacher_waited - waits[1])
        loss_sum, *mean_waits = self._sum_over_students([total.item(), *waited], f"the losses of step {step + 1}")
        result = StepResult(
            loss_sum / max(1, loss_tokens), loss_tokens, norm, 0.0, *(w / layout.student.gpus for w in mean_waits)
        )
        self._update(step, result)
        return StepResult(**{**vars(result), "seconds": time.perf_counter() - started})

    def evaluate(self) -> dict[str, float]:
        """Means over the held-out loss tokens, under the names of `losses.STATISTICS`."""
        totals = torch.zeros(len(STATISTICS), dtype=torch.float64, device=self._world.device)
        self._student.eval()
        with torch.no_grad():
            for _ in range(self._batches.schedule.eval_rounds):
                totals += self._forward(next(self._items), 0.0, True)[1]
        self._student.train()
        tokens = max(1, self._batches.eval_loss_tokens())
        sums = self._sum_over_students(totals.tolist(), "the losses of the evaluation")
        return dict(zip(STATISTICS, (value / tokens for value in sums), strict=True))

    def _forward(self, item: Item, scale: float, evaluate: bool) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self._batches.micro_batch(item)
        with self._progress.waiting(f"the payload of micro-batch {item.number}"):
            payload = self._source.take(item, batch)
        result: tuple[torch.Tensor, torch.Tensor] = self._student(batch, payload, scale, evaluate)
        # Before the backward: the teacher's next message can arrive meanwhile.
        self._source.release()
        self._progress.move()
        return result

    def _update(self, step: int, result: StepResult) -> None:
        """The optimizer step; left out where loss or gradient is not finite, which every rank sees alike."""
        set_learning_rate(self._optimizer, learning_rate(step, self._run.spec.training))
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            self._optimizer.step()
            self._bad_steps = 0
        else:
            self._bad_steps += 1
            if self._bad_steps >= MOST_BAD_STEPS:
                raise DivergedError(
                    f"loss {result.loss} and gradient norm {result.grad_norm} in step {step + 1}: {self._bad_steps} "
                    "steps in a row were not finite; lower training.learning_rate or look at the data"
                )
        self._optimizer.zero_grad()

    def _sum_over_students(self, values: list[float], what: str) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self._world.device)
        with self._progress.waiting(f"all students: {what}"):
            dist.all_reduce(total, group=self._world.student_group)
            return [float(value) for value in total.tolist()]

    def _metrics_line(self, step: int, result: StepResult) -> dict[str, object]:
        batch = self._run.spec.training.global_batch_size
        return {
            "step": step + 1,
            "loss": result.loss,
            "loss_tokens": result.loss_tokens,
            "learning_rate": learning_rate(step, self._run.spec.training),
            "grad_norm": result.grad_norm,
            "tokens_per_second": batch * self._run.spec.data.sequence_length / result.seconds,
            "samples_per_second": batch / result.seconds,
            "step_seconds": result.seconds,
            "student_wait_seconds": result.student_wait,
            "teacher_wait_seconds": result.teacher_wait,
            "memory_gib": memory_gib(self._world.device),
            "attempt": self._world.attempt,
            "time": time.time(),
        }

    def _report_evaluation(self, step: int, metrics: MetricsFile | None) -> None:
        means = self.evaluate()
        if metrics is not None:
            known = {f"eval_{name}": value for name, value in means.items() if not math.isnan(value)}
            metrics.write({"step": step, "eval_loss": known.pop("eval_objective", None), **known})


def finish(world: World, run: RunPlan, run_dir: RunDir, student: DistilledStudent, progress: Progress) -> None:
    """Gathers the trained weights and writes the model; returns on every rank when it is on disk."""
    with progress.waiting("all students: the weights"):
        state = whole_state(student, keep=world.is_first_student)
    if world.is_first_student:
        export(student.model.config, state, run.spec, run_dir.model)
    with progress.waiting("the first student to write the model"):
        dist.barrier(group=world.student_group)

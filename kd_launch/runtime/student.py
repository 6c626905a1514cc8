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
from kd_launch.runtime.checkpoint.due import Due
from kd_launch.runtime.checkpoint.saver import SaveError, Saver
from kd_launch.runtime.checkpoint.state import SavedState
from kd_launch.runtime.colocated import PayloadSource
from kd_launch.runtime.data import Item
from kd_launch.runtime.departure import say
from kd_launch.runtime.gate import Gate
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.losses import STATISTICS
from kd_launch.runtime.metrics import MetricsFile
from kd_launch.runtime.models import export
from kd_launch.runtime.optimizer import clip_gradients, learning_rate, set_learning_rate
from kd_launch.runtime.parallel import DistilledStudent, reduce_gradients, whole_state
from kd_launch.runtime.record import Recorder, StepResult
from kd_launch.runtime.room import write_patiently
from kd_launch.runtime.world import World

# Steps in a row whose loss or gradient is not finite, after which the run fails: it would not recover by itself.
MOST_BAD_STEPS = 3


class DivergedError(RunFailedError):
    """The training has left the finite numbers."""


@dataclass(frozen=True)
class Learner:
    """What learns: the model, what changes it, and what keeps it."""

    student: DistilledStudent
    optimizer: torch.optim.Optimizer
    saver: Saver
    gate: Gate


class Trainer:
    """One student rank."""

    def __init__(
        self,
        world: World,
        run: RunPlan,
        batches: Batches,
        learner: Learner,
        source: PayloadSource,
        progress: Progress,
        recorder: Recorder,
    ) -> None:
        self._world, self._run, self._batches, self._source = world, run, batches, source
        self._student, self._optimizer, self._saver, self._gate = (
            learner.student, learner.optimizer, learner.saver, learner.gate,
        )  # fmt: skip
        self._progress, self._recorder = progress, recorder
        self._items: Iterator[Item] = batches.items_of_student(world.role_rank, recorder.begin)
        self._due = Due(run.spec.checkpoint.every_steps)
        self._has_warned = False

    def train(self, metrics: MetricsFile | None) -> None:
        """All steps and evaluations of the schedule, from where this attempt begins."""
        begin, steps = self._recorder.begin, self._run.spec.training.steps
        self._metrics = metrics
        if self._batches.schedule.evaluates_after(begin):
            self._report_evaluation(begin)
        for step in range(begin, steps):
            self.step(step)
            if self._batches.schedule.evaluates_after(step + 1):
                self._report_evaluation(step + 1)

    def step(self, step: int) -> None:
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
            reshard = bool(layout.student.reshard_after_forward)
            reduce_gradients(self._student, last or layout.student.fsdp > 1, last, reshard)
            loss, statistics = self._forward(next(self._items), scale, False)
            loss.backward()  # type: ignore[no-untyped-call]
            total += statistics[0]
        with self._progress.waiting(f"the students' gradients of step {step + 1}"):
            norm = clip_gradients(self._student.parameters(), training.max_grad_norm)
        waited = (self._source.student_waited - waits[0], self._source.teacher_waited - waits[1])
        mine = [total.item(), float(self._saver.busy), float(self._saver.failed), *waited]
        loss_sum, saving, failed, *mean_waits = self._sum_over_students(mine, f"the losses of step {step + 1}")
        result = StepResult(
            loss_sum / max(1, loss_tokens), loss_tokens, norm, *(w / layout.student.gpus for w in mean_waits)
        )
        with self._gate.completing(step + 1):
            self._complete(step, result, started)
            self._save_if_due(step + 1, saving > 0, failed > 0)

    def _complete(self, step: int, result: StepResult, started: float) -> None:
        """All that makes it a step: the weights and its line. Left out where the gate is closed: another thread saves
        the state of before, and ends this process."""
        self._update(step, result)
        self._saver.changed()
        if self._metrics is not None:
            self._metrics.write(self._recorder.line(step, result, time.perf_counter() - started))
        self._progress.done = step + 1
        self._progress.move()

    def _save_if_due(self, done: int, saving: bool, failed: bool) -> None:
        """Not after a bad step: the checkpoint waits for a good one. What the last step leaves, `save_last` saves."""
        held = saving or self._recorder.bad_steps > 0
        if saving and self._due.takes_longer(done):
            self._warn_of_slow_disk()
        if done < self._run.spec.training.steps and self._due.after(done, held, failed):
            self._saver.start(self.state(done))

    def _warn_of_slow_disk(self) -> None:
        """Once: what a fault costs is no longer bounded by the interval."""
        if self._metrics is not None and not self._has_warned:
            say(
                f"warning: {self._saver.folder}: a checkpoint takes longer than checkpoint.every_steps "
                f"({self._run.spec.checkpoint.every_steps}), and the next one waits for it: a fault may cost all steps "
                "since the save before; raise every_steps, or write to a faster disk"
            )
        self._has_warned = True

    def state(self, done: int) -> SavedState:
        """What a checkpoint says of the training when so many steps are done. While the gate is closed, or between
        two steps."""
        return self._recorder.state(done)

    def save_last(self) -> None:
        """The state at the end of the training, from which the export can be made again."""
        with self._progress.waiting("the last checkpoint to be written"):
            try:
                self._saver.save_now(lambda: self.state(self._run.spec.training.steps))
            except SaveError:
                say("warning: the finished state is not saved; if the export fails, too, the last steps are made again")

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
        if self._recorder.is_good(result):
            self._optimizer.step()
        elif self._recorder.bad_steps >= MOST_BAD_STEPS:
            self._save_from_before(step + 1 - self._recorder.bad_steps)
            raise DivergedError(
                f"loss {result.loss} and gradient norm {result.grad_norm} in step {step + 1}: "
                f"{self._recorder.bad_steps} steps in a row were not finite; lower training.learning_rate or look at "
                "the data"
            )
        self._optimizer.zero_grad()

    def _save_from_before(self, done: int) -> None:
        """The weights are still those of before the first bad step: so many steps are done."""
        try:
            self._saver.save_now(lambda: self._recorder.state_before(done))
        except SaveError as error:
            say(f"warning: the state of step {done}, before the losses left the finite numbers, is not saved: {error}")

    def _sum_over_students(self, values: list[float], what: str) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self._world.device)
        with self._progress.waiting(f"all students: {what}"):
            dist.all_reduce(total, group=self._world.student_group)
            return [float(value) for value in total.tolist()]

    def _report_evaluation(self, step: int) -> None:
        means = self.evaluate()
        if self._metrics is not None:
            known = {f"eval_{name}": value for name, value in means.items() if not math.isnan(value)}
            self._metrics.write({"step": step, "eval_loss": known.pop("eval_objective", None), **known})


def finish(world: World, run: RunPlan, run_dir: RunDir, student: DistilledStudent, progress: Progress) -> None:
    """Gathers the trained weights and writes the model; returns on every rank when it is on disk."""
    with progress.waiting("all students: the weights"):
        state = whole_state(student, keep=world.is_first_student)
    if world.is_first_student:
        config = student.model.config
        write_patiently(run_dir.model, lambda: export(config, state, run.spec, run_dir.model), progress)
    with progress.waiting("the first student to write the model"):
        # No barrier: that of a group without gloo may take another GPU than this rank's.
        done = torch.zeros((), device=world.device)
        dist.all_reduce(done, group=world.student_group)
        done.item()

"""A rank with another optimizer, or with one deliberate defect: python worker.py SGD_OR_DEFECT RUN_DIR --role ROLE."""

import os
import signal
import sys
import time

import torch
from transformers import PreTrainedModel

from kd_launch.runtime import __main__ as runtime
from kd_launch.runtime import losses, parting, student, world
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.optimizer import make_adamw
from kd_launch.runtime.parallel import DistilledStudent
from tests.runtime.harness import VOCABULARY

forward = DistilledStudent.forward


def sgd(module, training):
    return torch.optim.SGD(module.parameters(), lr=training.learning_rate)


def mean_per_rank(self, batch, signal, _, evaluate):
    """Normalises by the tokens of the rank's own micro-batch."""
    return forward(self, batch, signal, 0.5 / max(1, len(batch.index)), evaluate)


def factor_two(self, batch, signal, scale, evaluate):
    """The gradient twice as large, which AdamW with clipping hides in the weights."""
    return forward(self, batch, signal, 2 * scale, evaluate)


def drop_second_micro_batch():
    """The second micro-batch of each step never reaches the gradient."""
    forward_of_trainer = student.Trainer._forward

    def dropped(self, item, scale, evaluate):
        loss, statistics = forward_of_trainer(self, item, scale, evaluate)
        return (loss * 0, statistics) if item.micro_batch == 1 else (loss, statistics)

    student.Trainer._forward = dropped


def one_micro_batch_off():
    """The teacher leaves its first item out: every payload belongs to the micro-batch after the expected one."""
    items = Batches.items_of_teacher

    def later(self, teacher, begin):
        remaining = items(self, teacher, begin)
        next(remaining)
        return remaining

    Batches.items_of_teacher = later


def die_in_step_three():
    """A student rank that raises in the middle of the run."""
    step = student.Trainer.step

    def dying(self, number):
        if number == 3 and self._world.role_rank == 0:
            raise RuntimeError("the third step is one too many")
        return step(self, number)

    student.Trainer.step = dying


def not_finite():
    """Losses that are no numbers from step 3 on."""
    forward_of_trainer = student.Trainer._forward

    def bad(self, item, scale, evaluate):
        loss, statistics = forward_of_trainer(self, item, scale, evaluate)
        return loss * float("nan") if item.step >= 3 else loss, statistics

    student.Trainer._forward = bad


def slow_export():
    """The model is half on disk for two seconds."""
    export = student.export
    save = PreTrainedModel.save_pretrained

    def slow(self, folder, **options):
        save(self, folder, **options)
        time.sleep(2)

    def slowly(*arguments):
        PreTrainedModel.save_pretrained = slow
        export(*arguments)

    student.export = slowly


def stop_before_the_lane():
    """A student that is stopped as by SIGSTOP when it comes to the check of its lane."""
    attempt = world._try

    def stopped(check, *arguments):
        if check.kind == "lane" and arguments[0].rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        attempt(check, *arguments)

    world._try = stopped


def told_in_the_first_step():
    """A student that is told to leave before it has done anything, while its teacher runs ahead."""
    _tell_in(lambda _: 0, signal.SIGTERM)


def told_in_the_last_step():
    """The same when all payloads are computed."""
    _tell_in(lambda trainer: trainer._run.spec.training.steps - 1, signal.SIGUSR2)


def _tell_in(step_of, word):
    step = student.Trainer.step

    def told(self, number):
        if number == step_of(self) and self._world.role_rank == 0:
            time.sleep(0.3)
            os.kill(os.getpid(), word)
            time.sleep(30)
        return step(self, number)

    student.Trainer.step = told


def few_rows():
    """Chunks of the loss of five rows at most, so that a micro-batch has several."""
    losses.CPU_CHUNK_BYTES = 5 * 4 * VOCABULARY


def impatient():
    """Students wait one second for each other before they leave."""
    parting.AGREE_SECONDS = 1.0


def main():
    defect = sys.argv.pop(1)
    match defect:
        case "mean_per_rank":
            DistilledStudent.forward = mean_per_rank
        case "factor_two":
            DistilledStudent.forward = factor_two
        case "sgd" | "none":
            pass
        case name:
            globals()[name]()
    return runtime.main(make_optimizer=sgd if defect == "sgd" else make_adamw)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    runtime.os._exit(code)

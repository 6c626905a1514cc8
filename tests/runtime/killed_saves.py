"""Attempts that do nothing but save, each killed a little later after its first checkpoint than the one before.

python -m tests.runtime.killed_saves FOLDER KILLS

Prints for each attempt, as JSON: the step that it found, and the last one that its predecessor had named. All weights
are the number of the step, so that whoever loads them sees whether they are what their checkpoint says.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from kd_launch.run_dir import RunDir
from kd_launch.runtime.checkpoint.choice import choose
from kd_launch.runtime.checkpoint.manifest import TENSORS
from kd_launch.runtime.checkpoint.saver import Saver, Storage
from kd_launch.runtime.checkpoint.state import SavedState
from kd_launch.runtime.checkpoint.tensors import Copies, TrainState
from kd_launch.runtime.heartbeat import Progress

EVERY_S = 0.05


def attempt(run: RunDir, number: int, found: int) -> None:
    """Writes where it begins to a pipe, then saves step after step."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    begin = choose(run, number, 0, group, Progress("steps"))
    model = torch.nn.Linear(400, 400)
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainState(model, optimizer)
    if begin:
        state.load(run.checkpoint(begin) / TENSORS, group)
        for name, tensor in state.tensors().items():
            assert torch.all(tensor == begin), f"{name} of step {begin} is not what was saved"
    os.write(found, f"{begin}\n".encode())
    model(torch.ones(400)).sum().backward()
    optimizer.step()
    saver = Saver(Storage(run, number, 2, 0, group), state, Copies(torch.device("cpu")), begin, lambda: None)
    for step in range(begin + 1, begin + 1000):
        with torch.no_grad():
            for tensor in state.tensors().values():
                tensor.fill_(step)
        saver.save_now(lambda step=step: SavedState(
            step=step, attempt=number, time=0.0, next_sequence=step, learning_rate=0.0, decides={},
        ))  # fmt: skip


def main() -> None:
    run, kills = RunDir(Path(sys.argv[1])), int(sys.argv[2])
    run.plan.write_text("{}")
    for number in range(1, kills + 1):
        named = max(run.checkpoint_steps(), default=0)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            attempt(run, number, writing)
        os.close(writing)
        with os.fdopen(reading) as answers:
            begin = int(answers.readline() or -1)
        while max(run.checkpoint_steps(), default=0) <= begin:
            ended, status = os.waitpid(pid, os.WNOHANG)
            assert not ended, f"attempt {number} ended by itself, with status {status}"
            time.sleep(0.001)
        time.sleep(number * EVERY_S)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(json.dumps([begin, named]), flush=True)


if __name__ == "__main__":
    main()

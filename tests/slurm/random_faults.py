"""A run of many steps to which random things happen, one after another; and whether anything of it was lost.

By hand: `python -m tests.slurm.random_faults --faults 30 --steps 300 --seed 7` starts a cluster, trains an undisturbed
run and a struck one, says what is wrong, and takes the cluster down.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from kd_launch.attempt.history import read_attempts
from tests.slurm.box import Box
from tests.slurm.checkpointed import Training, largest_difference, send
from tests.slurm.machine import wait_for
from tests.slurm.projects import make_models, write_project
from tests.slurm.setup import Nodes, Partition, Setup

SETUP = Setup(
    nodes=(Nodes("t", 2), Nodes("s", 2)),
    partitions=(Partition("teach", "t[1-2]", "Default=YES"), Partition("train", "s[1-2]")),
    preempt="REQUEUE", grace_s=20,
)  # fmt: skip
SITE: dict[str, Any] = {"heartbeat_timeout_s": 15.0, "signal_before_end_s": 30}
EVERY, PATIENCE_S, TOLERANCE = 4, 600.0, 1e-5
FAULTS = (
    "kill", "slurmstepd", "slurmd", "node", "preempt teacher", "preempt student", "end signal", "controller", "stop",
    "storage",
)  # fmt: skip
ENDS_NOTHING = ("slurmd", "controller", "storage")
"""After these the attempt goes on."""


@dataclass(frozen=True)
class Lot:
    """What the seed has drawn for one fault."""

    fault: str
    rank: int
    """Teacher 0, students 1 and 2."""
    steps: int
    """After a newer checkpoint than the attempt began with, so many more; then it strikes."""


def draw(seed: int, faults: int) -> list[Lot]:
    """Each fault at least once where there are enough."""
    chance = random.Random(seed)
    drawn = [*FAULTS, *chance.choices(FAULTS, k=max(0, faults - len(FAULTS)))]
    chance.shuffle(drawn)
    return [Lot(fault, chance.randrange(3), chance.randrange(EVERY + 1)) for fault in drawn[:faults]]


def spec_of(steps: int) -> dict[str, dict[str, Any]]:
    """Of steps that are long enough to be struck in."""
    return {
        "teacher": {"gpus": 1}, "student": {"gpus": 2, "parallelism": {"replicas": 1, "fsdp": 2}},
        "training": {"steps": steps, "global_batch_size": 16, "micro_batch_size": 1},
        "checkpoint": {"every_steps": EVERY, "keep": 2},
    }  # fmt: skip


def strike(training: Training, lot: Lot) -> None:
    """Does it, and returns when it is over, though not its consequences."""
    box, node = training.project.box, str(training.beat(lot.rank)["host"])
    match lot.fault:
        case "kill":
            training.send(lot.rank, signal.SIGKILL)
        case "stop":
            training.send(lot.rank, signal.SIGSTOP)
        case "slurmstepd":
            os.kill(_parent(training.pid(lot.rank)), signal.SIGKILL)
        case "end signal":
            box.ask("scancel", "--signal=USR2", training.job)
        case "slurmd":
            box.kill_slurmd(node)
            time.sleep(1)
            box.start_node(node)
        case "node":
            box.kill_node(node)
            time.sleep(SETUP.slurmd_timeout_s + 5)
            box.start_node(node)
        case "controller":
            box.kill_slurmctld()
            time.sleep(1)
            box.start_slurmctld()
        case "storage":
            training.run.checkpoints.chmod(0o555)
            time.sleep(5)
            training.run.checkpoints.chmod(0o755)
        case _:
            wanted = training.beat(0 if "teacher" in lot.fault else 1)["host"]
            box.sbatch("--partition=urgent", f"--nodelist={wanted}", "--exclusive", "--wrap=sleep 3")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def suffer(training: Training, lots: list[Lot], steps: int) -> list[str]:
    """Lets everything happen, and returns when the run has ended; what happened when."""
    told = []
    for lot in lots:
        if not _is_ripe(training, lot, steps):
            break
        attempt, step = training.attempt, training.steps_of(training.attempt)[-1]
        told.append(f"{lot.fault} (rank {lot.rank}) in attempt {attempt} after step {step}")
        print(f"{time.strftime('%H:%M:%S')} {told[-1]}", flush=True)
        with suppress(ProcessLookupError):
            strike(training, lot)
        if lot.fault not in ENDS_NOTHING:
            _wait_for_next(training, attempt)
    wait_for(lambda: training.project.status(training.run.path)["ended"], PATIENCE_S, training.said, every=2)
    return told


def _is_ripe(training: Training, lot: Lot, steps: int) -> bool:
    """Waits until the attempt trains and has left a newer checkpoint; False where the run is about to be done."""
    newest = [0]

    def ripe() -> bool:
        attempt = training.attempt
        done = training.steps_of(attempt) if training.run.start_record(attempt).exists() else []
        newest[0] = max(training.run.checkpoint_steps(), default=0)
        if done and (done[-1] >= steps - 2 or training.run.done_record(attempt).exists()):
            return True
        return bool(done) and newest[0] > training.begin_of(attempt) and done[-1] >= newest[0] + lot.steps % EVERY

    wait_for(ripe, PATIENCE_S, training.said, every=0.05)
    return training.steps_of(training.attempt)[-1] < steps - 2


def _wait_for_next(training: Training, attempt: int) -> None:
    """Until another attempt has begun, or the run has ended without one."""

    def over() -> bool:
        for line in training.project.box.call("squeue", "-h", "-a", "-j", training.job, "-o", "%A").stdout.split():
            training.project.box.call("scontrol", "update", f"JobId={line}", "StartTime=now", as_root=True)
        return training.attempt > attempt or training.project.status(training.run.path)["ended"]

    wait_for(over, PATIENCE_S, training.said, every=1)


def wrong(struck: Training, calm: Training, steps: int) -> Iterator[str]:
    """Everything that is not as it should be."""
    status = struck.project.status(struck.run.path)
    if status["state"] != "COMPLETED":
        yield f"is {status['state']}, not COMPLETED\n{struck.said()}"
        return
    ours, theirs = struck.curve(), calm.curve()
    missing = [step for step in range(1, steps + 1) if step not in ours]
    if missing:
        yield f"no line of the steps {missing}"
    apart = {step: abs(ours[step] - loss) for step, loss in theirs.items() if step in ours}
    if max(apart.values()) > TOLERANCE:
        yield f"the losses differ by {max(apart.values()):.2g} from those of the undisturbed run"
    difference = largest_difference(struck.run, calm.run)
    if difference > TOLERANCE:
        yield f"the weights differ by {difference:.2g} from those of the undisturbed run"
    yield from _lost(struck)


def _lost(training: Training) -> Iterator[str]:
    """Steps made again, where more than one interval; one that is due is put off while another is written."""
    numbers = [one.number for one in read_attempts(training.run) if training.run.start_record(one.number).exists()]
    for before, after in pairwise(numbers):
        made = training.steps_of(before)
        lost = (made[-1] if made else training.begin_of(before)) - training.begin_of(after)
        print(f"attempt {before} made {len(made)} steps; {lost} of them were made again", flush=True)
        if lost > 2 * EVERY:
            yield f"attempt {after} makes {lost} steps again"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Box() as box:
        models = make_models(Path(folder))
        box.start(SETUP)
        print(f"{a.faults} faults over {a.steps} steps, seed {a.seed}", flush=True)
        calm, struck = (
            send(write_project(box, name, models, cluster=SITE, **spec_of(a.steps))) for name in ("calm", "struck")
        )
        told = suffer(struck, draw(a.seed, a.faults), a.steps)
        wait_for(lambda: calm.project.status(calm.run.path)["ended"], PATIENCE_S, calm.said, every=2)
        problems = list(wrong(struck, calm, a.steps))
        if len(told) < a.faults:
            problems.append(f"only {len(told)} of {a.faults} faults happened: the run was done; take more steps")
    print("\n".join(problems) or f"all as it should be after {len(told)} faults")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

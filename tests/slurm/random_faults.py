"""A run of many steps to which random things happen, one after another; and whether anything of it was lost.

By hand: `python -m tests.slurm.random_faults --faults 30 --steps 300 --seed 7` starts a cluster, trains a run that is
struck and one that is not, says what was lost and what is wrong, and takes the cluster down.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.aftermath import Struck, lost_by, wrong
from tests.slurm.box import Box
from tests.slurm.checkpointed import Training, send, undisturbed
from tests.slurm.machine import parent_of, wait_for
from tests.slurm.projects import make_models, write_paced_project
from tests.slurm.setup import UID, Nodes, two_pools

SETUP = two_pools(Nodes("t", 2), Nodes("s", 2), preempt="REQUEUE", grace_s=20, slurmd_timeout_s=10)
EVERY, STEP_S, PATIENCE_S = 4, 0.5, 600.0
"""A step takes longer than a checkpoint's write."""
FAULTS = (
    "kill", "slurmstepd", "slurmd", "node", "preempt teacher", "preempt student", "end signal", "controller", "stop",
    "full disk",
)  # fmt: skip
ENDS_NOTHING = ("slurmd", "controller", "full disk")
"""During these the attempt goes on."""
# While there is room on it, somebody takes it: what is freed for a moment too.
FULL_S = 12
FILL = 'while [ $SECONDS -lt {seconds} ]; do cat /dev/zero >> "$0"; sleep 0.1; done; rm "$0"'


@dataclass(frozen=True)
class Lot:
    """What the seed has drawn for one fault."""

    fault: str
    rank: int
    """Teacher 0, students from 1."""
    steps: int
    """After a newer checkpoint than there was before, so many more; then it strikes."""


def draw(seed: int, faults: int, ranks: int = 3, kinds: Sequence[str] = FAULTS) -> list[Lot]:
    """Each fault at least once where there are enough."""
    chance = random.Random(seed)
    drawn = [*kinds, *chance.choices(kinds, k=max(0, faults - len(kinds)))]
    chance.shuffle(drawn)
    return [Lot(fault, chance.randrange(ranks), chance.randrange(EVERY)) for fault in drawn[:faults]]


def send_to_be_struck(box: Box, name: str, models: Path, steps: int, students: int, silent_s: float) -> Training:
    """A run whose steps are long enough to be struck in, on a disk of its own. `silent_s`: patience with a rank."""
    project = write_paced_project(
        box, name, models, {"heartbeat_timeout_s": silent_s, "signal_before_end_s": 30}, step_s=STEP_S,
        teacher={"gpus": 1}, student={"gpus": students, "parallelism": {"replicas": 1, "fsdp": students}},
        training={"steps": steps, "global_batch_size": 4, "micro_batch_size": 1},
        checkpoint={"every_steps": EVERY, "keep": 2},
    )  # fmt: skip
    disk = project.folder / "disk"
    disk.mkdir()
    room = f"size=32m,mode=755,uid={UID},gid={UID}"
    box.ask("mount", "-t", "tmpfs", "-o", room, "none", str(disk), as_root=True)
    return send(project, "--run-dir=disk/run")


def strike(training: Training, lot: Lot) -> None:
    """Does it, and returns when it is over, though not its consequences."""
    box, node = training.project.box, str(training.beat(lot.rank)["host"])
    match lot.fault:
        case "kill":
            training.send(lot.rank, signal.SIGKILL)
        case "stop":
            training.send(lot.rank, signal.SIGSTOP)
        case "slurmstepd":
            os.kill(parent_of(training.pid(lot.rank)), signal.SIGKILL)
        case "end signal":
            box.ask("scancel", "--signal=USR2", training.job)
        case "slurmd":
            box.kill_slurmd(node)
            time.sleep(1)
            box.start_node(node)
        case "node":
            box.kill_node(node)
            time.sleep(box.setup.slurmd_timeout_s + 5)
            box.start_node(node)
        case "controller":
            box.kill_slurmctld()
            time.sleep(1)
            box.start_slurmctld()
        case "full disk":
            filling = str(training.inside.with_name("filling"))
            box.call("bash", "-c", FILL.format(seconds=FULL_S), filling, as_root=True)
        case _:
            wanted = training.beat(0 if "teacher" in lot.fault else 1)["host"]
            box.sbatch("--partition=urgent", f"--nodelist={wanted}", "--exclusive", "--wrap=sleep 3")


def suffer(training: Training, lots: list[Lot], steps: int) -> list[Struck]:
    """Lets everything happen, and returns when the run has ended; what happened when."""
    told: list[Struck] = []
    newest = 0
    for lot in lots:
        if not _is_ripe(training, lot, steps, newest):
            break
        attempt, step = training.attempt, training.steps_of(training.attempt)[-1]
        print(f"{time.strftime('%H:%M:%S')} {lot.fault} (rank {lot.rank}), attempt {attempt}, step {step}", flush=True)
        with suppress(ProcessLookupError):
            strike(training, lot)
        unnamed = [] if lot.fault in ENDS_NOTHING else _wait_for_next(training, attempt)
        told.append(Struck(lot.fault, lot.rank, attempt, lot.fault not in ENDS_NOTHING, max(unnamed, default=None)))
        newest = max(training.run.checkpoint_steps(), default=0)
    wait_for(lambda: _has_ended(training), PATIENCE_S, training.said, every=2)
    return told


def _is_ripe(training: Training, lot: Lot, steps: int, before: int) -> bool:
    """Waits until the attempt trains and has left a newer checkpoint; False where the run is about to be done."""
    last = 0

    def ripe() -> bool:
        nonlocal last
        attempt = training.attempt
        assert not training.has_failed(attempt), training.said()
        done = training.steps_of(attempt) if training.run.start_record(attempt).exists() else []
        last = done[-1] if done else 0
        newest = max(training.run.checkpoint_steps(), default=0)
        is_newer = newest > before and bool(done) and newest > training.begin_of(attempt)
        return last >= steps - 2 or (is_newer and last >= newest + lot.steps)

    wait_for(ripe, PATIENCE_S, training.said, every=0.1)
    return last < steps - 2


def _wait_for_next(training: Training, attempt: int) -> list[int]:
    """Until another attempt has begun, or the run has ended without one; which checkpoint was never finished."""
    unnamed = training.unnamed(attempt)

    def over() -> bool:
        nonlocal unnamed
        if training.attempt > attempt:
            return True
        unnamed = training.unnamed(attempt)
        training.project.box.resume_drained()
        return _has_ended(training)

    wait_for(over, PATIENCE_S, training.said, every=1)
    return unnamed


def _has_ended(training: Training) -> bool:
    """Whether no attempt follows. A job that waits to begin again is let wait: Slurm would refuse it any sooner."""
    queued = training.project.box.call("squeue", "-h", "-a", "-j", training.job, "-o", "%A").stdout.strip()
    return not queued and bool(training.status()["ended"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    a = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, Box() as box:
        folder = Path(name)
        models = make_models(folder / "models")
        box.start(SETUP)
        print(f"{a.faults} faults over {a.steps} steps, seed {a.seed}", flush=True)
        training = send_to_be_struck(box, "struck", models, a.steps, students=2, silent_s=15.0)
        told = suffer(training, draw(a.seed, a.faults), a.steps)
        (folder / "calm").mkdir()
        calm = undisturbed(training.run, folder / "calm")
        problems = list(wrong(training, calm, told, EVERY))
        lost = lost_by(training, told)
    if len(told) < a.faults:
        problems.append(f"only {len(told)} of {a.faults} faults happened: the run was done; take more steps")
    for one in lost:
        print(one)
    steps = [one.steps for one in lost]
    print(f"seed {a.seed}: {len(told)} faults ended {len(lost)} attempts in {time.monotonic() - began:.0f} s; of "
          f"{a.steps} steps, with a checkpoint every {EVERY}, {sum(steps)} were made again, {max(steps, default=0)} "
          "at most after one fault")  # fmt: skip
    print("\n".join(problems) or "all as it should be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

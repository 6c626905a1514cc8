"""Many runs at once on a test cluster, random ones cancelled or killed, and what became of them.

By hand: `python -m tests.slurm.burst --jobs 20 --seed 7` starts a cluster, says what is wrong, and takes it down.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_launch.run_dir import RunDir
from tests.slurm.box import Box
from tests.slurm.machine import command_line, parent_of, wait_for
from tests.slurm.private_view import PRIVATE
from tests.slurm.projects import Project, cpu_pool, make_models, told, write_light_project
from tests.slurm.setup import UID

# One core for each rank, so that many runs are at work at the same time.
POOLS = tuple(cpu_pool(name, nodes, 2, cpus_per_node=2) for name, nodes in (("teach", 2), ("train", 2), ("cpu", 4)))
SITE = {"heartbeat_timeout_s": 8.0, "stall_timeout_s": 60.0}
ON_ONE_PARTITION = ["--set=teacher.pool=cpu", "--set=student.pool=cpu"]
LAUNCHES = {
    "hetjob": [],
    "hetstep": [*ON_ONE_PARTITION, "--set=launch=hetstep"],
    "ranks": [*ON_ONE_PARTITION, "--set=launch=ranks"],
}
FATES = {"nothing": 4, "raise": 2, "exit": 1, "kill": 3, "stepd": 1, "cancel": 4, "scancel": 3, "scancel component": 2}
"""What happens to a run, and how often in comparison."""


CANCELLED_WITHIN_S = 8.0


@dataclass(frozen=True)
class Lot:
    """What the seed has drawn for one run."""

    fate: str
    launch: str
    teachers: int
    students: int
    rank: int
    """That raises, exits or is killed."""
    seconds: float
    """Of its work; and of an act from outside, how long after the submission or the start of the training."""

    @property
    def arguments(self) -> list[str]:
        sizes = [f"--set=teacher.gpus={self.teachers}", f"--set=student.gpus={self.students}"]
        return [*LAUNCHES[self.launch], *sizes, told(self.script)]

    @property
    def script(self) -> dict[str, dict[str, list[Any]]]:
        """For failing_ranks: by attempt and rank."""
        if self.fate == "raise":
            return {"*": {str(self.rank): ["raise", "ValueError: on purpose"]}}
        if self.fate == "exit":
            return {"*": {str(self.rank): ["exit", 7]}}
        if self.fate in ("kill", "stepd"):
            return {"1": {"0": ["wait"]}, "2": {}}
        return {"*": {"0": ["wait", self.seconds if self.fate == "nothing" else CANCELLED_WITHIN_S / 2]}}


@dataclass
class Member:
    """One run of the burst."""

    lot: Lot
    project: Project
    run: RunDir
    said: list[str] = field(default_factory=list)
    """What the act from outside was answered with."""
    status: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, str] = field(default_factory=dict)
    """What Slurm says of each component in the end."""

    @property
    def box(self) -> Box:
        return self.project.box

    @property
    def job(self) -> str:
        return str(json.loads(self.run.state.read_text())["job_id"])

    @property
    def is_done(self) -> bool:
        return any(self.run.done_record(attempt).exists() for attempt in self.run.attempt_numbers())

    def act(self) -> None:
        """Does from outside what the lot says."""
        if self.lot.fate in ("kill", "stepd"):
            self._kill()
        elif self.lot.fate == "cancel":
            time.sleep(self.lot.seconds)
            done = self.project.kd("cancel", str(self.run.path))
            self.said.append(f"{done.returncode} {done.stdout}{done.stderr}")
        elif self.lot.fate.startswith("scancel"):
            time.sleep(self.lot.seconds)
            one = f"{self.job}+1" if "component" in self.lot.fate and self.lot.launch == "hetjob" else self.job
            done = self.box.call("scancel", one)
            self.said.append(f"{done.returncode} {done.stderr}")

    def _kill(self) -> None:
        beat = self.run.heartbeat(self.lot.rank)
        wait_for(lambda: self.run.start_record(1).exists(), 120, lambda: f"{self.run.path} does not begin")
        time.sleep(self.lot.seconds / 4)
        pid = int(json.loads(beat.read_text())["pid"])
        os.kill(pid if self.lot.fate == "kill" else parent_of(pid), signal.SIGKILL)

    def wrong(self) -> Iterator[str]:
        """Everything in the last status that is not so."""
        state, attempts = self._expected()
        if (self.status["state"], self.status["ended"]) != (state, True):
            yield f"is {self.status['state']}, ended: {self.status['ended']}, but should be {state}"
        if self.status["attempt"] not in attempts:
            yield f"is at attempt {self.status['attempt']}, not {attempts}"
        if self.lot.fate in ("raise", "exit"):
            yield from self._wrong_failure()
        # One that was done already when it was cancelled may have either word from Slurm.
        if state == "COMPLETED" and "cancel" not in self.lot.fate and set(self.slurm.values()) != {"COMPLETED"}:
            yield f"is done, but Slurm says {self.slurm}"

    def _expected(self) -> tuple[str, set[int]]:
        """The state, and the possible attempts; whether a cancelled run was quicker, its own record tells."""
        if self.lot.fate in ("raise", "exit"):
            return "FAILED", {1}
        if self.lot.fate in ("kill", "stepd"):
            return "COMPLETED", {2}
        refused = self.lot.fate == "scancel component" and not self.said[0].startswith("0")
        if self.lot.fate == "nothing" or refused or self.is_done:
            return "COMPLETED", {1}
        return "CANCELLED", {0, 1}

    def _wrong_failure(self) -> Iterator[str]:
        failure = self.status["failure"] or {}
        role = "teacher" if self.lot.rank < self.lot.teachers else "student"
        if (failure.get("rank"), failure.get("role")) != (self.lot.rank, role):
            yield f"names {failure} instead of {role} rank {self.lot.rank}"

    def __str__(self) -> str:
        return f"{self.run.path}: {self.lot}; {self.said}; Slurm says {self.slurm}"


def draw(seed: int, jobs: int) -> list[Lot]:
    """Each fate at least once where there are runs enough."""
    chance = random.Random(seed)
    fates = [*FATES, *chance.choices(list(FATES), list(FATES.values()), k=max(0, jobs - len(FATES)))]
    chance.shuffle(fates)
    return [_draw_one(chance, fate) for fate in fates[:jobs]]


def _draw_one(chance: random.Random, fate: str) -> Lot:
    teachers, students = chance.choice((2, 4)), chance.choice((1, 2))
    launch = "hetjob" if fate == "scancel component" else chance.choice(list(LAUNCHES))
    seconds = chance.uniform(0.1, CANCELLED_WITHIN_S)
    return Lot(fate, launch, teachers, students, chance.randrange(teachers + students), seconds)


def burst(box: Box, models: Path, lots: list[Lot]) -> list[Member]:
    """Sends a run for each lot, lets their fates happen, and returns when Slurm holds none of them any more."""
    project = write_light_project(box, "a burst of 'runs'", models, cluster=SITE, pools=POOLS)
    with ThreadPoolExecutor(len(lots)) as acts, ThreadPoolExecutor(4) as calls:
        members = list(calls.map(lambda lot: _send(project, lot, acts), lots))
    box.wait_idle(180)
    with ThreadPoolExecutor(4) as calls:
        list(calls.map(_look, members))
    return members


def _send(project: Project, lot: Lot, acts: ThreadPoolExecutor) -> Member:
    member = Member(lot, project, RunDir(project.submit(*lot.arguments)))
    acts.submit(member.act)
    return member


def _look(member: Member) -> None:
    member.status = member.project.status(member.run.path)
    member.slurm = member.box.states(member.job)


def traces(box: Box) -> dict[str, str]:
    """What runs can leave: processes, and files outside their folders; with words on each."""
    processes = {f"process {pid}": command_line(pid) for pid in box.processes()}
    spools = [path for path in (box.folder / "spool").glob("*/*") if path.name.startswith("job")]
    seen = Path(f"/proc/{box.view}/root")
    shared = [path for root in PRIVATE for path in Path(f"{seen}{root}").iterdir() if _is_users(path)]
    return {**processes, **{f"file {path}": "" for path in (*spools, *shared)}}


def _is_users(path: Path) -> bool:
    with suppress(OSError):
        return path.lstat().st_uid == UID
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Box() as box:
        models = make_models(Path(folder))
        box.start()
        before = traces(box)
        print(f"{a.jobs} runs, seed {a.seed}", flush=True)
        members = burst(box, models, draw(a.seed, a.jobs))
        wrong = [f"{member}\n  {words}" for member in members for words in member.wrong()]
        problems = [*wrong, *(f"left: {what} {words}" for what, words in traces(box).items() if what not in before)]
        for member in members:
            print(f"{member.lot.fate:18} {member.lot.launch:8} {member.status['state']:10} {member.status['attempt']}")
    print("\n".join(problems) or "all as it should be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

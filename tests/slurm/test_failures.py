"""What ends an attempt, and what follows it, on the real cluster: where it comes back, one requeue, never two or none.

The ranks only pretend. All that can happen at the same time does: these tests look at what became of it.
"""

import json
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from kd_launch.attempt.history import AttemptRecord
from tests.slurm.box import Box
from tests.slurm.machine import read
from tests.slurm.setup import PREEMPTING, Nodes, Setup, two_pools
from tests.slurm.trials import RANKS, Sent, Trial, run_wave

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
HOLD: dict[str, list[Any]] = {"0": ["wait"]}
"""In the first attempt, until something happens from outside."""
MINUTE = ({}, {"sbatch": ["--time=1"]})
SOON: dict[str, Any] = {"signal_before_end_s": 5}
"""Slurm looks every 30 s and is early rather than late: the signal comes 25 to 55 s after the start of a MINUTE, when
the ranks are there."""
ALONE = ({"sbatch": ["--exclusive"]}, {"sbatch": ["--exclusive"]})

COMES_BACK = (("failed", "requeue"), ("done", "done"))
STAYS = (("failed", "fail"),)
# The batch script was ended with the job, and could not say anything.
ENDED_WITH_THE_JOB = (None, None)
# What the first attempt says of itself where Slurm noticed the dead node before the run's own watch was through.
SLURM_FIRST = (ENDED_WITH_THE_JOB, ("taken", "fail"))


@dataclass(frozen=True)
class Fate:
    """A trial, and what has to become of it."""

    trial: Trial
    states: set[str]
    """Slurm's words for the components in the end."""
    attempts: tuple[tuple[str | None, str | None], ...]
    """Outcome and what followed, of each."""
    failure: tuple[str, set[int]] | None = None
    """Kind and possible ranks of the first attempt's record."""
    words: str = ""
    """In its error."""
    slurm_may_be_first: bool = False
    """To notice: who it is, is a race; that the run comes back once, is not."""

    def admits(self, attempts: Sequence[AttemptRecord]) -> bool:
        told = tuple((attempt.outcome, attempt.next) for attempt in attempts)
        by_slurm = [(first, *self.attempts[1:]) for first in SLURM_FIRST] if self.slurm_may_be_first else []
        return told in (self.attempts, *by_slurm)


def there(rank: int, act: Callable[[Box], Callable[[str], None]]) -> Callable[[Sent], None]:
    """Something that is done to the node of a rank."""
    return lambda sent: act(sent.box)(sent.host(rank))


def stop_the_controller(sent: Sent) -> None:
    """Longer than its clients try to reach it."""
    sent.box.stop_slurmctld()
    sent.signal(2, KILL)
    threading.Timer(14, sent.box.start_slurmctld).start()


def cancel_without_slurm(sent: Sent) -> None:
    """`cancel` was heard, but its scancel came to nothing."""
    sent.run.cancel_record.write_text(json.dumps({"job_id": sent.job, "time": 0.0}))


RANKS_FAIL = {
    "exit code 1": Fate(Trial({"1": {"1": ["exit", 1]}}), {"FAILED"}, STAYS, ("exited", {1}), "exit code 1"),
    "exit code 137": Fate(Trial({"1": {"4": ["exit", 137]}}), {"COMPLETED"}, COMES_BACK, ("killed", {4}), "SIGKILL"),
    "exception": Fate(Trial({"1": {"5": ["raise", "ValueError: x"]}}), {"FAILED"}, STAYS, ("raised", {5}), "Error: x"),
    "kill -9": Fate(Trial({"1": HOLD}, lambda s: s.signal(2, KILL)), {"COMPLETED"}, COMES_BACK, ("killed", {2})),
    "SIGSTOP": Fate(Trial({"1": HOLD}, lambda s: s.signal(3, STOP)), {"COMPLETED"}, COMES_BACK, ("silent", {3})),
    "dead slurmstepd": Fate(
        Trial({"1": HOLD}, lambda s: s.kill_stepd(4)), {"COMPLETED"}, COMES_BACK, ("orphaned", {4, 5})
    ),
    "endless loop": Fate(
        Trial({"1": {"0": ["hang"]}}), {"COMPLETED"}, COMES_BACK, ("stuck", {0}),
        "never entered the collective that ranks 1, 2, 3, 4 and 1 more wait in",
    ),
    "never joins": Fate(
        Trial({"1": {"5": ["absent"]}}, cluster={"heartbeat_timeout_s": 2.0}),
        {"COMPLETED"}, COMES_BACK, ("absent", {5}),
    ),
    "setup fails": Fate(
        Trial(pools=({}, {"setup": "echo no such module\nexit 3"})), {"FAILED"}, STAYS, ("exited", {4, 5}),
        "exit code 3; its last line: no such module",
    ),
    "no interpreter": Fate(Trial(pools=({}, {"python": "/nowhere"})), {"FAILED"}, STAYS, ("exited", {4, 5})),
    "two steps": Fate(
        Trial({"1": HOLD}, lambda s: s.signal(1, KILL), launch="two_steps"), {"COMPLETED"}, COMES_BACK, ("killed", {1})
    ),
    "two steps, the student": Fate(
        Trial({"1": {"5": ["exit", 3]}}, launch="two_steps"), {"FAILED"}, STAYS, ("exited", {5})
    ),
    "one step": Fate(Trial({"1": {"4": ["exit", 3]}}, launch="ranks"), {"FAILED"}, STAYS, ("exited", {4})),
    "two parts": Fate(
        Trial({"1": {"4": ["signal", 11]}}, launch="hetstep"), {"COMPLETED"}, COMES_BACK, ("killed", {4}), "SIGSEGV"
    ),
    "again and again": Fate(
        Trial({"*": {"4": ["signal", 9]}}, cluster={"max_failures_without_progress": 2}),
        {"FAILED"}, (("failed", "requeue"), ("failed", "fail")), ("killed", {4}),
    ),
    "no requeue allowed": Fate(
        Trial({"*": {"4": ["signal", 9]}}, cluster={"max_requeues": 0}), {"FAILED"}, STAYS, ("killed", {4})
    ),
}  # fmt: skip

JOBS_END = {
    "nothing": Fate(Trial(), {"COMPLETED"}, (("done", "done"),)),
    "scancel": Fate(
        Trial({"1": HOLD}, lambda s: s.box.call("scancel", s.job)), {"CANCELLED"}, (ENDED_WITH_THE_JOB,)
    ),
    "scancel of the student": Fate(
        Trial({"1": HOLD}, lambda s: s.box.call("scancel", f"{s.job}+1")), {"FAILED", "CANCELLED"}, (("taken", "fail"),)
    ),
    "cancel": Fate(Trial({"1": HOLD}, cancel_without_slurm), {"FAILED"}, (("cancelled", "fail"),)),
    "near the student's time limit": Fate(
        Trial({"1": HOLD}, cluster=SOON, pools=MINUTE),
        {"COMPLETED"}, (("time_limit", "requeue"), ("done", "done")),
    ),
    "near it again": Fate(
        Trial({"*": HOLD}, cluster=SOON, pools=MINUTE),
        {"FAILED"}, (("time_limit", "requeue"), ("time_limit", "fail")),
    ),
    "over the student's time limit": Fate(
        Trial({"1": {str(rank): ["deaf"] for rank in range(6)}}, pools=MINUTE),
        {"FAILED", "TIMEOUT"}, (("taken", "fail"),),
    ),
}  # fmt: skip

NODES_FAIL = {
    "slurmd of the student": Fate(
        Trial({"1": HOLD}, there(4, lambda box: box.kill_slurmd), teacher_nodes=1, pools=ALONE),
        {"COMPLETED"}, (ENDED_WITH_THE_JOB, ("done", "done")),
    ),
    "slurmd of the batch script": Fate(
        Trial({"1": HOLD}, there(0, lambda box: box.kill_slurmd), teacher_nodes=1, pools=ALONE),
        {"COMPLETED"}, (("taken", "fail"), ("done", "done")),
    ),
    "node of the student": Fate(
        Trial({"1": HOLD}, there(4, lambda box: box.kill_node), teacher_nodes=1, pools=ALONE),
        {"COMPLETED"}, COMES_BACK, ("silent", {4, 5}), slurm_may_be_first=True,
    ),
    "node of the batch script": Fate(
        Trial({"1": HOLD}, there(0, lambda box: box.kill_node), teacher_nodes=1, pools=ALONE),
        {"COMPLETED"}, (ENDED_WITH_THE_JOB, ("done", "done")),
    ),
    "the teacher's second node": Fate(
        Trial({"1": HOLD}, there(3, lambda box: box.kill_node), pools=ALONE),
        {"COMPLETED"}, COMES_BACK, ("silent", {2, 3}), slurm_may_be_first=True,
    ),
    "ranks that ignore TERM": Fate(
        Trial({"1": {**{str(rank): ["deaf"] for rank in range(6)}, "4": ["signal", 9]}}),
        {"COMPLETED"}, COMES_BACK, ("killed", {4}),
    ),
}  # fmt: skip

CONTROLLER = {
    "slurmctld away": Fate(
        Trial({"1": HOLD}, stop_the_controller, teacher_nodes=1), {"COMPLETED"}, COMES_BACK, ("killed", {2})
    )
}

MODES = [("REQUEUE", 0), ("REQUEUE", 20), ("CANCEL", 0), ("CANCEL", 20)]


def preempted(number: int, role: str) -> Fate:
    """By a job that takes the whole node of a role; the other role is on a node that nobody wants."""
    mode, grace = MODES[number]
    nodes = {"t": "t5", "s": "s5", role[0]: f"{role[0]}{number + 1}"}
    wanted = nodes[role[0]]
    trial = Trial(
        {"1": HOLD},
        lambda s: s.box.sbatch("--partition=urgent", f"--nodelist={wanted}", "--exclusive", "--wrap=sleep 8"),
        teacher_nodes=1,
        pools=(
            {"partition": f"t{number}", "sbatch": [f"--nodelist={nodes['t']}"]},
            {"partition": f"s{number}", "sbatch": [f"--nodelist={nodes['s']}"]},
        ),
    )
    if grace:
        return Fate(trial, {"COMPLETED"}, (("preempted", "requeue"), ("done", "done")))
    if mode == "REQUEUE":
        return Fate(trial, {"COMPLETED"}, (ENDED_WITH_THE_JOB, ("done", "done")))
    return Fate(trial, {"PREEMPTED"}, (ENDED_WITH_THE_JOB,))


PREEMPTED = {
    f"{role} preempted, {mode} {grace}": preempted(number, role)
    for number, (mode, grace) in enumerate(MODES)
    for role in ("teacher", "student")
}

EVERY = {**RANKS_FAIL, **JOBS_END, **NODES_FAIL, **CONTROLLER, **PREEMPTED}


# What happens, all of it at once

ROOM = (Nodes("t", 4, cpus=64, memory_mb=64000), Nodes("s", 4, cpus=64, memory_mb=64000))


MANY = two_pools(*ROOM)
DYING = two_pools(Nodes("t", 10), Nodes("s", 8), kill_wait_s=30)
SMALL = two_pools(Nodes("t", 1), Nodes("s", 1))


def many(box: Box) -> dict[str, Sent]:
    return run_wave(box, {name: fate.trial for name, fate in {**JOBS_END, **RANKS_FAIL}.items()})


def dying(box: Box) -> dict[str, Sent]:
    return run_wave(box, {name: fate.trial for name, fate in NODES_FAIL.items()})


def preempting(box: Box) -> dict[str, Sent]:
    for number, (mode, grace) in enumerate(MODES):
        for prefix in "ts":
            box.ask(
                "scontrol", "create", f"PartitionName={prefix}{number}", f"Nodes={prefix}{number + 1},{prefix}5",
                "State=UP", "MaxTime=60", "PriorityTier=1", f"PreemptMode={mode}", f"GraceTime={grace}", as_root=True,
            )  # fmt: skip
    return run_wave(box, {name: fate.trial for name, fate in PREEMPTED.items()})


def uncontrolled(box: Box) -> dict[str, Sent]:
    return run_wave(box, {name: fate.trial for name, fate in CONTROLLER.items()})


@pytest.fixture(scope="module")
def sent(box_with: Callable[[Setup], Box]) -> Mapping[str, Sent]:
    """Every run, when Slurm has let go of it."""
    waves = {MANY: many, DYING: dying, PREEMPTING: preempting, SMALL: uncontrolled}
    with ThreadPoolExecutor(len(waves)) as pool:
        # A box is started by this thread alone; what happens on it, meanwhile.
        running = [pool.submit(wave, box_with(setup)) for setup, wave in waves.items()]
        return {name: one for future in running for name, one in future.result().items()}


# What has become of it


@pytest.mark.parametrize("name", EVERY)
def test_it_comes_back_once_or_stays(sent: Mapping[str, Sent], name: str) -> None:
    fate, one = EVERY[name], sent[name]
    assert set(one.states.values()) == fate.states, one.said()
    assert fate.admits(one.attempts), (fate.attempts, one.said())
    assert one.starts == len(fate.attempts), one.said()


@pytest.mark.parametrize("name", [name for name, fate in EVERY.items() if fate.failure is not None])
def test_the_first_failure_is_named(sent: Mapping[str, Sent], name: str) -> None:
    fate, one = EVERY[name], sent[name]
    assert fate.failure is not None
    record = one.attempts[0].failure
    assert record is not None, one.said()
    kind, ranks = fate.failure
    assert (record.kind, record.rank in ranks) == (kind, True), record
    assert record.role == ("teacher" if record.rank < 4 else "student")
    assert record.host in one.nodes_of(record.rank), (record, one.said())
    assert fate.words in record.error


@pytest.mark.parametrize("name", [name for name, fate in EVERY.items() if fate.failure is None])
def test_what_is_no_failure_leaves_no_record(sent: Mapping[str, Sent], name: str) -> None:
    assert [attempt.failure for attempt in sent[name].attempts] == [None] * len(sent[name].attempts)


@pytest.mark.parametrize("name", [name for name, fate in EVERY.items() if fate.failure is not None])
def test_an_attempt_ends_within_30_s_of_kill_wait(sent: Mapping[str, Sent], name: str) -> None:
    one = sent[name]
    attempt, *later = one.attempts
    # Ended by Slurm with its job, it could not write when; then it was over before the next one began.
    ended = attempt.ended or later[0].began
    assert ended is not None
    assert attempt.failure is not None
    limit = one.box.setup.kill_wait_s + 30
    assert ended - attempt.failure.time < limit, one.said()


def test_no_rank_is_left(sent: Mapping[str, Sent]) -> None:
    boxes = {one.box.folder: one.box for one in sent.values()}.values()
    lines = [read(pid, "cmdline") for box in boxes for pid in box.processes()]
    assert not [line for line in lines if str(RANKS).encode() in line]


def test_no_log_of_an_attempt_is_written_over(sent: Mapping[str, Sent]) -> None:
    one = sent["kill -9"]
    assert {path.name for path in one.run.logs.iterdir()} == {"batch.log", "attempt-1", "attempt-2"}
    assert "task" in one.run.srun_log(1).read_text()
    assert one.run.srun_log(2).read_text() == ""

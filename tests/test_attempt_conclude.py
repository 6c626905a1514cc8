"""The end of an attempt with a Slurm that answers from a list: what is asked, waited for, decided and written."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from render_cases import cluster_of, layout_of, pool, role, spec_of

from kd_launch.attempt.__main__ import main
from kd_launch.attempt.conclude import conclude
from kd_launch.attempt.dead_nodes import begin_again
from kd_launch.attempt.history import read_attempts
from kd_launch.attempt.outside import Outside
from kd_launch.attempt.place import Place, Seats, read_place
from kd_launch.commands import Completed
from kd_launch.errors import SpecError
from kd_launch.plan import RunPlan
from kd_launch.run_dir import RunDir, write_json

LAYOUT = layout_of("hetjob", role("a", 2, 2), role("b", 1, 2))
PLACE = Place("12", ("12", "13"), 0, "t1", (("t1", "t2"), ("s1",)), (2, 2))
KILLED = """\
srun: error: s1: task 1: Killed
srun: error: t1: tasks 0-1: Terminated
srun: error: t2: tasks 2-3: Terminated
"""
TOLD_TO_END = "srun: forcing job termination\nsrun: error: t1: tasks 0-1: Killed\nsrun: error: t2: tasks 2-3: Killed\n"


def components(*states: str, restarts: int = 0) -> str:
    """What squeue says."""
    return "".join(f"12+{i}|{state}|{restarts}|N/A|n{i}|run|None\n" for i, state in enumerate(states))


RUNNING = components("RUNNING", "RUNNING")
AWAY = Completed((), 1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")


class Slurm:
    """Answers each program's questions in order, the last answer for ever; and the clock, which only sleeping moves."""

    def __init__(self, **answers: Sequence[str | Completed]) -> None:
        self.answers, self.asked, self.seconds = {name: list(said) for name, said in answers.items()}, [], 0.0
        self.outside = Outside(self, lambda: 1000.0 + self.seconds, lambda: self.seconds, self.sleep)
        self.on_sleep: Callable[[], None] = lambda: None

    def __call__(self, argv: Sequence[str], **_: Any) -> Completed:
        self.asked.append(" ".join(argv))
        said = self.answers.get(argv[0], [""])
        answer = said.pop(0) if len(said) > 1 else said[0]
        return answer if isinstance(answer, Completed) else Completed(tuple(argv), 0, answer, "")

    def sleep(self, seconds: float) -> None:
        assert self.seconds < 10_000, "it waits for ever"
        self.seconds += seconds
        self.on_sleep()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path)
    for path in (found.attempt(1), found.heartbeats, found.srun_log(1).parent):
        path.mkdir(parents=True)
    found.plan.write_text(plan().model_dump_json())
    return found


def plan() -> RunPlan:
    cluster = cluster_of(pool("a"), pool("b"))
    return RunPlan(version="0", spec=spec_of(), cluster=cluster, layout=LAYOUT, tokens=None)


def end(run: RunDir, slurm: Slurm, status: int = 137, attempt: int = 1) -> tuple[str, str]:
    decision = conclude(run, plan(), attempt, PLACE, status, slurm.outside)
    return decision.next, decision.outcome


def test_a_killed_rank_is_recorded_and_comes_back(run: RunDir) -> None:
    run.srun_log(1).write_text(KILLED)
    run.metrics.write_text('{"step": 3, "attempt": 1}\n{"step": 4, "eval_loss": 2}\n{"step": 4, "atte')
    assert end(run, Slurm(squeue=[RUNNING])) == ("requeue", "failed")
    (found,) = read_attempts(run)
    assert (found.outcome, found.next, found.step) == ("failed", "requeue", 3)
    assert found.failure is not None
    assert (found.failure.kind, found.failure.rank, found.failure.host) == ("killed", 5, "s1")
    assert json.loads(run.end_record(1).read_text())["srun_status"] == 137


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (components("RUNNING", "CANCELLED"), "12+1 is CANCELLED"),
        ("12+0|RUNNING|0|N/A|n0|run|None\n", "1 of 2 components are gone"),
    ],
)
def test_a_job_that_slurm_ends_itself_is_let_go(run: RunDir, answer: str, words: str) -> None:
    """And its ranks, which Slurm has killed, did not fail."""
    run.srun_log(1).write_text(KILLED)
    slurm = Slurm(squeue=[answer])
    assert end(run, slurm) == ("fail", "taken")
    assert words in json.loads(run.end_record(1).read_text())["why"]
    assert not run.failure(1).exists()
    assert slurm.seconds == 0


@pytest.mark.parametrize(
    "answer",
    [
        components("PENDING", "RUNNING"),
        components("COMPLETING", "COMPLETING"),
        components("RUNNING", "RUNNING", restarts=1),
    ],
)
def test_a_script_whose_job_slurm_requeues_stays_until_it_is_ended(run: RunDir, answer: str) -> None:
    slurm = Slurm(squeue=[answer])
    slurm.on_sleep = lambda: run.attempt(2).mkdir() if slurm.seconds > 500 and not run.attempt(2).exists() else None
    assert end(run, slurm) == ("fail", "taken")
    assert 500 < slurm.seconds < 600


def test_so_does_the_script_of_a_done_run(run: RunDir) -> None:
    write_json(run.done_record(1), {"step": 9})
    slurm = Slurm(squeue=[components("PENDING", "PENDING"), components("PENDING", "PENDING"), ""], sacct=[""])
    assert end(run, slurm, 0) == ("done", "done")
    assert slurm.seconds == 10


def test_a_controller_that_restarts_is_asked_again(run: RunDir) -> None:
    run.srun_log(1).write_text(KILLED)
    slurm = Slurm(squeue=[AWAY, AWAY, RUNNING])
    assert end(run, slurm) == ("requeue", "failed")
    assert slurm.seconds == 20


def test_a_slurm_that_stays_silent_gets_no_requeue_but_the_failure_is_known(run: RunDir) -> None:
    run.srun_log(1).write_text(KILLED)
    slurm = Slurm(squeue=[AWAY])
    assert end(run, slurm) == ("fail", "taken")
    assert slurm.seconds == 300
    assert run.failure(1).exists()


def test_a_done_run_waits_for_no_answer(run: RunDir) -> None:
    write_json(run.done_record(1), {"step": 9})
    slurm = Slurm(squeue=[AWAY])
    assert end(run, slurm, 0) == ("done", "done")
    assert slurm.seconds == 0


def test_a_cancel_that_comes_while_slurm_is_asked_counts(run: RunDir) -> None:
    run.srun_log(1).write_text(KILLED)
    slurm = Slurm(squeue=[AWAY, RUNNING])
    slurm.on_sleep = lambda: write_json(run.cancel_record, {"job_id": "12", "time": 1.0})
    assert end(run, slurm) == ("fail", "cancelled")
    assert not run.failure(1).exists()


# Dead nodes


def silent_student(run: RunDir) -> None:
    run.srun_log(1).write_text(TOLD_TO_END)
    who = {"attempt": 1, "kind": "silent", "role": "student", "rank": 4, "host": "s1", "error": "gone", "time": 1.0}
    run.failures.mkdir(exist_ok=True)
    write_json(run.failure(1), who)


def test_the_requeue_is_left_to_a_slurm_that_misses_the_node(run: RunDir) -> None:
    silent_student(run)
    requeued = components("PENDING", "PENDING", restarts=1)
    slurm = Slurm(squeue=[RUNNING, RUNNING, RUNNING, requeued, ""], sinfo=["s1 allocated\n", "s1 allocated*\n"])
    assert end(run, slurm) == ("fail", "taken")
    assert json.loads(run.end_record(1).read_text())["next"] == "requeue"
    assert "sinfo -h -a -N -n s1 -o %N %T" in slurm.asked


def test_it_is_ours_where_the_node_answers(run: RunDir) -> None:
    """A dead slurmstepd, for one."""
    silent_student(run)
    slurm = Slurm(squeue=[RUNNING], sinfo=["s1 allocated\n"])
    assert end(run, slurm) == ("requeue", "failed")
    assert slurm.seconds == 20


def test_it_is_ours_where_the_node_comes_back_or_slurm_never_gives_it_up(run: RunDir) -> None:
    silent_student(run)
    slurm = Slurm(squeue=[RUNNING], sinfo=["s1 down*\n", "s1 down*\n", "s1 allocated\n"])
    assert end(run, slurm) == ("requeue", "failed")
    slurm = Slurm(squeue=[RUNNING], sinfo=["s1 allocated*\n"])
    assert end(run, slurm) == ("requeue", "failed")
    assert slurm.seconds == 900


def test_a_cancel_while_slurm_is_waited_for_counts(run: RunDir) -> None:
    silent_student(run)
    slurm = Slurm(squeue=[RUNNING], sinfo=["s1 allocated*\n"])
    slurm.on_sleep = lambda: write_json(run.cancel_record, {"job_id": "12", "time": 1.0})
    assert end(run, slurm) == ("fail", "cancelled")


# A requeued job's script begins


def test_steps_of_an_earlier_start_are_ended_and_its_ranks_told_to_leave(run: RunDir) -> None:
    run.attempt(2).mkdir()
    slurm = Slurm(squeue=["12.batch\n13.0\n", "12.batch\n13.0\n", "12.batch\n"])
    assert begin_again(run, 2, PLACE, slurm.outside) == "go"
    assert slurm.asked[:2] == ["squeue -h -s -j 12,13 -o %i", "scancel 13.0"]
    assert json.loads(run.leave_record(1).read_text())["signal"] == "TERM"


def test_ranks_that_have_been_seen_to_end_are_told_nothing(run: RunDir) -> None:
    run.attempt(2).mkdir()
    write_json(run.end_record(1), {"outcome": "failed", "next": "requeue"})
    slurm = Slurm(squeue=["12.batch\n"])
    assert begin_again(run, 2, PLACE, slurm.outside) == "go"
    assert len(slurm.asked) == 1
    assert not run.leave_record(1).exists()


def test_a_run_that_was_done_is_not_run_again(run: RunDir) -> None:
    run.attempt(2).mkdir()
    write_json(run.done_record(1), {"step": 9})
    slurm = Slurm()
    assert begin_again(run, 2, PLACE, slurm.outside) == "done"
    assert [attempt.done for attempt in read_attempts(run)] == [True, True]
    assert slurm.asked == []


def test_nor_one_that_was_cancelled(run: RunDir) -> None:
    run.attempt(2).mkdir()
    write_json(run.cancel_record, {"job_id": None, "time": 1.0})
    assert begin_again(run, 2, PLACE, Slurm().outside) == "fail"
    assert read_attempts(run)[1].outcome == "cancelled"


# Where the attempt is


def test_the_place_of_a_het_job_and_of_one_allocation() -> None:
    hetjob = {
        "SLURM_JOB_ID": "12", "SLURM_HET_SIZE": "2", "SLURM_RESTART_COUNT": "3", "SLURMD_NODENAME": "t1",
        "SLURM_JOB_ID_HET_GROUP_0": "12", "SLURM_JOB_NODELIST_HET_GROUP_0": "t[1-2]",
        "SLURM_JOB_ID_HET_GROUP_1": "13", "SLURM_JOB_NODELIST_HET_GROUP_1": "s1",
        "SLURM_NTASKS_PER_NODE_HET_GROUP_0": "2", "SLURM_NTASKS_PER_NODE_HET_GROUP_1": "2",
    }  # fmt: skip
    assert read_place(hetjob, "login") == Place("12", ("12", "13"), 3, "t1", PLACE.nodes, (2, 2))
    alone = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[08-10]", "SLURM_NTASKS_PER_NODE": "4"}
    assert read_place(alone, "here") == Place("12", ("12",), 0, "here", (("n08", "n09", "n10"),), (4,))
    with pytest.raises(SpecError, match="SLURM_JOB_ID is not set"):
        read_place({}, "here")


def test_seats_of_every_launch() -> None:
    nodes = ("n1", "n2", "n3")
    one = Place("12", ("12",), 0, "n1", (nodes,), (2,))
    for layout, place in ((LAYOUT, PLACE), (LAYOUT.model_copy(update={"launch": "hetstep"}), one)):
        seats = Seats(layout, place)
        every = place.nodes[0] + (place.nodes[1] if len(place.nodes) > 1 else ())
        assert [seats.host_of(rank) for rank in range(6)] == [host for host in every for _ in range(2)]
        assert [seats.rank_of(host, task) for host, task in ((every[0], 1), (every[1], 3), (every[2], 0))] == [1, 3, 4]
        assert seats.ranks_on(every[2]) == [4, 5]
    shared = layout_of("ranks", role("a", 1, 3), role("a", 1, 1), shares_nodes=True, nodes=1)
    seats = Seats(shared, Place("12", ("12",), 0, "n1", (("n1",),), (4,)))
    assert [seats.rank_of("n1", task) for task in range(4)] == [0, 1, 2, 3]
    assert [str(seats.role_of(rank)) for rank in range(4)] == ["teacher", "teacher", "teacher", "student"]


def test_outside_of_a_job_it_says_so(run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["decide", str(run.path), "1", "0"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("kd-launch: cannot decide: SLURM_JOB_ID is not set")


def test_where_a_full_disk_takes_no_words_all_goes_on(tmp_path: Path) -> None:
    say = "from kd_launch.attempt.say import say; say('something'); print('and goes on', flush=True)"
    ways = (("-c", say), ("-m", "kd_launch.attempt", "decide", str(tmp_path), "1", "0"))
    with Path("/dev/full").open("w") as full:
        said, outside = (
            subprocess.run([sys.executable, *way], env={}, stdout=subprocess.PIPE, stderr=full, text=True)
            for way in ways
        )
    assert said.stdout == "and goes on\n"
    assert outside.returncode == 1

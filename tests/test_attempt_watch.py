"""The watch beside a process that stands for srun: when it returns, what it ends and what it writes."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from render_cases import layout_of, role

from kd_launch.attempt.place import Place, Seats
from kd_launch.attempt.verdicts import Limits
from kd_launch.attempt.watch import Subject, subject_of, watch, write_job_record
from kd_launch.run_dir import RunDir, write_json

SEATS = Seats(
    layout_of("hetjob", role("a", 1, 1), role("b", 1, 1)),
    Place("12", ("12", "13"), 1, "n1", (("n1",), ("n2",)), (1, 1)),
)
LIMITS = Limits(silent=0.5, absent=60, stalled=60)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path)
    for path in (found.attempt(1), found.heartbeats, found.srun_log(1).parent):
        path.mkdir(parents=True)
    return found


class Sruns:
    """Programs that stand for srun; as bash does, they are reaped when they have ended."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self, script: str) -> int:
        self.all.append(subprocess.Popen(["bash", "-c", script]))
        return self.all[-1].pid

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / 4)
        for one in self.all:
            one.poll()


@pytest.fixture
def sruns() -> Iterator[Sruns]:
    found = Sruns()
    yield found
    for one in found.all:
        one.kill()
        one.wait()


def watched(run: RunDir, sruns: Sruns, *pids: int) -> Any:
    return watch(subject_of(run, 1, SEATS, LIMITS, pids), sleep=sruns.sleep)


def beat(run: RunDir, rank: int, moment: float, **changes: Any) -> None:
    who = {"rank": rank, "role": "any", "host": f"n{rank + 1}", "time": moment, "attempt": 1, "done": 0, "total": 1}
    write_json(run.heartbeat(rank), {**who, "unit": "steps", **changes})


def test_it_returns_when_srun_has_ended(run: RunDir, sruns: Sruns) -> None:
    assert watched(run, sruns, sruns.start("sleep 0.3")) is None
    assert sruns.all[0].returncode == 0
    assert watched(run, sruns, sruns.all[0].pid) is None


def test_a_silent_rank_is_recorded_and_srun_is_told_to_end(run: RunDir, sruns: Sruns) -> None:
    for rank in (0, 1):
        beat(run, rank, 5.0)
    reason = watched(run, sruns, sruns.start("exec sleep 60"))
    assert sruns.all[0].poll() == -15
    record = json.loads(run.failure(1).read_text())
    assert (record["kind"], record["rank"], record["role"], record["host"]) == ("silent", 0, "teacher", "n1")
    assert "silent" in reason.words


def test_an_srun_that_does_not_end_is_killed(run: RunDir, sruns: Sruns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_launch.attempt.watch.PATIENCE_S", 0.3)
    beat(run, 0, 5.0)
    watched(run, sruns, sruns.start("trap '' TERM; while :; do sleep 0.1; done"))
    assert sruns.all[0].wait(5) == -9


def test_what_srun_has_said_explains_the_silence(run: RunDir, sruns: Sruns) -> None:
    for rank in (0, 1):
        beat(run, rank, 5.0)
    run.srun_log(1).write_text("srun: error: n2: task 0: Killed\n")
    watched(run, sruns, sruns.start("exec sleep 60"))
    record = json.loads(run.failure(1).read_text())
    assert (record["kind"], record["rank"]) == ("killed", 1)


def test_heartbeats_of_an_earlier_attempt_are_nobodys(run: RunDir, sruns: Sruns) -> None:
    beat(run, 0, 5.0, attempt=0)
    assert watched(run, sruns, sruns.start("sleep 1")) is None


def test_a_full_disk_blames_nobody(run: RunDir, sruns: Sruns, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        if data:  # the name of an empty file still finds room
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("kd_launch.attempt.watch.write_whole", full)
    beat(run, 0, 5.0)
    assert watched(run, sruns, sruns.start("sleep 1.5")) is None
    assert not run.failure(1).exists()


@pytest.mark.parametrize(("job", "status"), [("12", -15), (None, -15), ("11", 0)])
def test_a_cancel_of_this_job_ends_it(run: RunDir, sruns: Sruns, job: str | None, status: int) -> None:
    write_json(run.cancel_record, {"job_id": job, "time": 1.0})
    watched(run, sruns, sruns.start("exec sleep 1"))
    assert sruns.all[0].wait(5) == status
    assert not run.failure(1).exists()


def test_a_script_left_over_kills_its_srun_which_would_end_the_later_attempts_step(run: RunDir, sruns: Sruns) -> None:
    run.attempt(2).mkdir()
    watched(run, sruns, sruns.start("exec sleep 60"))
    assert sruns.all[0].wait(5) == -9


def test_of_two_steps_one_that_fails_ends_the_other(run: RunDir, sruns: Sruns) -> None:
    pids = sruns.start("sleep 0.3; exit 1"), sruns.start("exec sleep 60")
    run.srun_log(1).write_text("srun: error: n1: task 0: Exited with exit code 1\n")
    began = time.monotonic()
    assert watched(run, sruns, *pids).words == "the other role's step has ended"
    assert time.monotonic() - began < 3
    assert sruns.all[1].wait(5) == -15


def test_of_two_steps_one_that_ends_well_leaves_the_other_its_time(run: RunDir, sruns: Sruns) -> None:
    assert watched(run, sruns, sruns.start("exit 0"), sruns.start("sleep 1")) is None
    assert sruns.all[1].wait(5) == 0


def test_a_step_that_ended_before_the_watch_began_counts(run: RunDir, sruns: Sruns) -> None:
    pids = sruns.start("exit 1"), sruns.start("exec sleep 60")
    sruns.all[0].wait()
    run.srun_log(1).write_text("srun: error: Unable to create step for job 12: Invalid\n")
    subject: Subject = subject_of(run, 1, SEATS, LIMITS, pids)
    assert watch(subject, sleep=sruns.sleep) is not None
    assert sruns.all[1].wait(5) == -15


def test_the_job_record(run: RunDir) -> None:
    write_job_record(run, 1, SEATS, 7.0)
    assert json.loads(run.job_record(1).read_text()) == {
        "job_id": "12", "components": {"0": "12", "1": "13"}, "restarts": 1, "host": "n1", "time": 7.0,
    }  # fmt: skip


def test_a_watcher_that_was_stopped_holds_it_against_nobody(run: RunDir, sruns: Sruns) -> None:
    """Its clock jumps; the ranks, stopped with it, had no time to give a sign of life."""
    for rank in (0, 1):
        beat(run, rank, 5.0)
    times = iter([0.0, 0.2])
    subject = subject_of(run, 1, SEATS, LIMITS, (sruns.start("sleep 0.5"),))
    assert watch(subject, clock=lambda: next(times, 1000.0), sleep=sruns.sleep) is None

"""How a rank ends before its loop does: told by a signal while it waits in C++, left by the others, or orphaned."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kd_launch.plan import Role
from kd_launch.run_dir import RunDir
from kd_launch.runtime.departure import Departure
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.heartbeat import Heartbeat, Progress
from tests.runtime.conftest import Material
from tests.runtime.harness import Ranks, make_layout, make_run, start_rank
from tests.runtime.test_failures import ONE_AND_ONE, start
from tests.runtime.test_layout_invariance import wait_for, wait_for_step

# Like the real one, it holds the other end of its rank's outputs.
SLURMSTEPD = """
import subprocess, sys
rank = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
print(rank.stdout.read())
"""


def beat(run_dir: RunDir, rank: int) -> dict[str, Any]:
    path = run_dir.heartbeat(rank)
    return json.loads(path.read_text()) if path.exists() else {"phase": None, "waiting_for": None}


def seconds_to_end(process: "subprocess.Popen[str]") -> float:
    started = time.monotonic()
    process.wait(20)
    return time.monotonic() - started


def kill(ranks: Ranks) -> None:
    for process in ranks.processes:
        process.kill()
        process.wait()


def test_a_rank_that_waits_for_another_is_told_at_once_and_the_other_follows(
    tmp_path: Path, material: Material
) -> None:
    ranks = start(tmp_path / "run", material, launcher="slurm", training__steps=5000)
    run_dir, (teacher, student) = ranks.run_dir, ranks.processes
    try:
        wait_for_step(run_dir, 2)
        student.send_signal(signal.SIGSTOP)
        wait_for(lambda: (beat(run_dir, 0)["waiting_for"] or "").startswith("a student to take"))
        assert "kd_launch/runtime/transport.py" in " ".join(beat(run_dir, 0)["where"])
        teacher.send_signal(signal.SIGUSR2)
        wait_for(run_dir.leave_record(1).exists, 2)
        student.send_signal(signal.SIGCONT)
        assert seconds_to_end(student) < 20
        assert seconds_to_end(teacher) < 20
    finally:
        kill(ranks)
    assert (teacher.returncode, student.returncode) == (0, 0), ranks.outputs()
    leave = json.loads(run_dir.leave_record(1).read_text())
    assert (leave["signal"], leave["reason"], leave["rank"], leave["role"]) == ("USR2", "time_limit", 0, "teacher")
    assert [beat(run_dir, rank)["ended"] for rank in (0, 1)] == ["USR2", "USR2"]
    assert not run_dir.failure(1).exists()
    assert run_dir.checkpoint_steps() == [ranks.steps()[-1]["step"]]


def test_a_signal_that_only_clears_up_after_a_failure_leaves_no_record(tmp_path: Path, material: Material) -> None:
    layout = make_layout(**ONE_AND_ONE)
    run_dir = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens)
    run_dir.failure(1).parent.mkdir()
    run_dir.failure(1).write_text("{}")
    teacher = start_rank(run_dir, layout, 0, launcher="slurm")
    wait_for(run_dir.heartbeat(0).exists)
    teacher.terminate()
    assert teacher.wait(10) == 0
    assert not run_dir.leave_record(1).exists()


def test_under_slurm_a_run_told_to_leave_in_its_export_is_done_first(tmp_path: Path, material: Material) -> None:
    ranks = start(tmp_path / "run", material, "slow_export", "slurm", training__steps=2)
    partial = ranks.run_dir.path / ".model.partial"
    wait_for(partial.exists)
    for process in ranks.processes:
        process.send_signal(signal.SIGUSR2)
    assert ranks.wait(60) == [0, 0], ranks.outputs()
    assert "USR2 after the training: this rank finishes first" in ranks.output(1)
    assert ranks.run_dir.done_record(1).exists()
    assert not ranks.run_dir.leave_record(1).exists()
    assert (ranks.run_dir.model / "model.safetensors").exists()
    assert not partial.exists()


def test_elsewhere_term_ends_an_export_at_once_and_nothing_half_written_has_the_models_name(
    tmp_path: Path, material: Material
) -> None:
    ranks = start(tmp_path / "run", material, "slow_export", training__steps=2)
    wait_for((ranks.run_dir.path / ".model.partial").exists)
    for process in ranks.processes:
        process.terminate()
    assert ranks.wait(5) == [143, 143], ranks.outputs()
    assert not ranks.run_dir.done_record(1).exists()
    assert not ranks.run_dir.model.exists()


FINISHING = """
import sys, time
from pathlib import Path
from kd_launch.plan import Role
from kd_launch.run_dir import RunDir
from kd_launch.runtime.departure import Departure
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.heartbeat import Heartbeat, Progress
run, place = RunDir(Path(sys.argv[1])), Environment("slurm", 0, 2, 0, 2, 1)
progress = Progress("steps", phase="finishing")
Departure(run, place, Role.STUDENT, Heartbeat(run, place, Role.STUDENT, progress), None).heed_signals()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["failures/attempt-1.json", "attempts/attempt-1/leave.json"])
def test_a_rank_that_finishes_first_leaves_when_another_has_failed_or_left(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    rank = subprocess.Popen([sys.executable, "-c", FINISHING, str(tmp_path)], stdout=subprocess.PIPE)
    assert rank.stdout is not None
    assert rank.stdout.readline() == b"ready\n"
    rank.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        rank.wait(0.5)
    (tmp_path / name).write_text("{}")
    assert rank.wait(5) == 0
    assert RunDir(tmp_path).leave_record(1).exists() == name.endswith("leave.json")


def test_a_rank_whose_run_was_removed_ends_but_not_where_its_disk_is_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place, ended = RunDir(tmp_path / "run"), Environment("slurm", 1, 2, 0, 2, 1), list[str]()
    rank = Departure(run, place, Role.STUDENT, Heartbeat(run, place, Role.STUDENT, Progress("steps")), None)
    monkeypatch.setattr(rank, "fail", lambda failure, _: ended.append(failure.error))
    rank._end_without_folder(1000.0)
    run.path.mkdir()
    rank._end_without_folder(1200.0)
    run.path.rmdir()
    rank._end_without_folder(1201.0)
    rank._end_without_folder(1500.0)
    assert not ended
    rank._end_without_folder(1502.0)
    assert ended == [f"{run.path}: has not been there for 300 s: nothing of the run could be kept"]


def test_a_rank_whose_slurmstepd_is_gone_records_it_and_ends(tmp_path: Path, material: Material) -> None:
    layout = make_layout(**ONE_AND_ONE)
    run_dir = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens)
    launcher = start_rank(run_dir, layout, 0, launcher="slurm", under=(sys.executable, "-c", SLURMSTEPD))
    wait_for(run_dir.heartbeat(0).exists)
    launcher.kill()
    launcher.wait()
    wait_for(run_dir.failure(1).exists, 10)
    record = json.loads(run_dir.failure(1).read_text())
    assert (record["kind"], record["role"], record["rank"]) == ("orphaned", "teacher", 0)
    wait_for(lambda: not Path(f"/proc/{beat(run_dir, 0)['pid']}").exists(), 5)
    assert beat(run_dir, 0)["ended"] == "orphaned"  # although nobody reads its log any more

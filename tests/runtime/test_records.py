"""What a rank leaves for others to read: the record of the first failure, and its signs of life."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kd_launch.plan import Role
from kd_launch.run_dir import RunDir, write_failure
from kd_launch.runtime import failures
from kd_launch.runtime.__main__ import _report
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.failures import record_error
from kd_launch.runtime.heartbeat import Heartbeat, Progress, read_beats, where

PLACE = Environment("slurm", 1, 3, 1, 3, 2, host="t1")
LOST = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1")


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(failures, "PATIENCE_SECONDS", 0.2)
    run = RunDir(tmp_path)
    run.attempt(2).mkdir(parents=True)
    run.failure(2).parent.mkdir()
    return run


def found(run_dir: RunDir) -> dict[str, Any]:
    return dict(json.loads(run_dir.failure(2).read_text()))


def beat(run_dir: RunDir, rank: int, age: float, **changes: object) -> None:
    values = {"rank": rank, "role": "teacher", "host": f"t{rank}", "attempt": 2, "ended": None, "where": ["a:1 f"]}
    run_dir.heartbeats.mkdir(exist_ok=True)
    run_dir.heartbeat(rank).write_text(json.dumps({**values, "time": time.time() - age, **changes}))


def test_an_exception_is_a_rank_that_raised(run_dir: RunDir) -> None:
    record_error(run_dir, PLACE, Role.STUDENT, ValueError("no"))
    record = found(run_dir)
    wanted = {"attempt": 2, "kind": "raised", "rank": 1, "role": "student", "host": "t1", "error": "ValueError: no"}
    assert {key: record[key] for key in wanted} == wanted
    assert "ValueError: no" in record["traceback"]


def test_what_the_file_system_refuses_is_one_line_and_no_secret_is_quoted(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEfGhIjKl")
    error = OSError(30, "Read-only file system", "/runs/hf_AbCdEfGhIjKl/store.json")
    assert _report(error, run_dir, PLACE, Role.STUDENT) == (1, "raised")
    said = "error: /runs/***/store.json: Read-only file system; mend that, then `kd-launch resume` goes on\n"
    assert capsys.readouterr().err == said
    record = run_dir.failure(2).read_text()
    assert "Read-only file system" in record
    assert "hf_AbCdEfGhIjKl" not in record


def test_a_lost_peer_that_nothing_explains_is_recorded_as_such(run_dir: RunDir) -> None:
    beat(run_dir, 0, 1)
    beat(run_dir, 2, 60, ended="done")
    record_error(run_dir, PLACE, Role.STUDENT, LOST)
    assert (found(run_dir)["kind"], found(run_dir)["rank"]) == ("lost_peer", 1)


def test_a_lost_peer_names_the_rank_whose_signs_of_life_have_ended_without_a_last_word(run_dir: RunDir) -> None:
    beat(run_dir, 0, 7)
    beat(run_dir, 2, 60, attempt=1)
    record_error(run_dir, PLACE, Role.STUDENT, LOST)
    record = found(run_dir)
    assert (record["kind"], record["rank"], record["role"], record["host"]) == ("killed", 0, "teacher", "t0")
    assert "rank 1 on t1 lost its connection to it: RuntimeError: [gloo]" in record["error"]


def test_a_lost_peer_says_nothing_where_the_ranks_were_told_to_leave(run_dir: RunDir) -> None:
    run_dir.leave_record(2).write_text("{}")
    record_error(run_dir, PLACE, Role.STUDENT, LOST)
    assert not run_dir.failure(2).exists()


def test_the_first_failure_stays_but_for_one_that_only_lost_a_peer(run_dir: RunDir) -> None:
    path = run_dir.failure(2)
    assert write_failure(path, {"kind": "lost_peer", "rank": 0})
    assert not write_failure(path, {"kind": "lost_peer", "rank": 1})
    assert write_failure(path, {"kind": "killed", "rank": 2})
    assert not write_failure(path, {"kind": "raised", "rank": 3})
    assert found(run_dir) == {"kind": "killed", "rank": 2}


def test_of_many_better_records_at_once_one_wins_and_no_half_of_one_is_left(run_dir: RunDir) -> None:
    path = run_dir.failure(2)
    write_failure(path, {"kind": "lost_peer"})
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda rank: write_failure(path, {"kind": "killed", "rank": rank}), range(8)))
    assert won.count(True) == 1
    assert found(run_dir)["rank"] == won.index(True)
    assert sorted(file.name for file in path.parent.iterdir()) == [".attempt-2.better", "attempt-2.json"]


def test_a_heartbeat_says_where_the_main_thread_is_and_what_it_waits_for(run_dir: RunDir) -> None:
    progress = Progress(unit="steps", total=9)
    heartbeat = Heartbeat(run_dir, PLACE, Role.STUDENT, progress)
    beaten = threading.Event()
    threading.Thread(target=heartbeat.keep_beating, args=(beaten.set,), daemon=True).start()
    assert beaten.wait(10)
    first = json.loads(run_dir.heartbeat(1).read_text())
    assert (first["attempt"], first["host"], first["ended"], first["phase"]) == (2, "t1", None, "starting")
    assert [line.split()[1] for line in first["where"]][:2] == ["wait", "wait"]  # of threading, the innermost first
    assert "threading.py:" in first["where"][0]
    assert not first["where"][0].startswith("/")
    progress.enter("training")
    with pytest.raises(ValueError, match="in vain"), progress.waiting("the others"):
        raise ValueError("in vain")
    heartbeat.end("raised")
    heartbeat.end("done")
    last = json.loads(run_dir.heartbeat(1).read_text())
    assert (last["ended"], last["waiting_for"], last["phase"]) == ("raised", "the others", "training")
    assert last["moved"] > first["moved"]
    assert read_beats(run_dir, 2)[1].ended == "raised"
    assert read_beats(run_dir, 1) == {}


def test_no_stack_is_longer_than_eight_lines() -> None:
    def deep(levels: int) -> list[str]:
        return deep(levels - 1) if levels else where(threading.get_ident())

    assert len(deep(20)) == 8


ABOVE = """
import os, sys
from kd_launch.runtime.lineage import is_below, launcher_above
launcher = int(sys.argv[1])
print(is_below(launcher), is_below(os.getppid()), is_below(os.getpid()), launcher_above() == os.getppid())
"""


def test_a_launcher_may_be_the_parent_of_a_parent_as_with_a_container() -> None:
    shell = ["bash", "-c", '"$@"; true', "container", sys.executable, "-c", ABOVE, str(os.getpid())]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "True", "False", "True"], done.stderr

"""Ranks on this machine that stand still are found by their signs of life, and named."""

import json
import time
from pathlib import Path

import pytest
from run_folders import make_run

from kd_launch.attempt import watch
from kd_launch.local.hanging import Hanging
from kd_launch.plan import read_run_plan
from kd_launch.run_dir import RunDir, write_json


def beat(run: RunDir, rank: int, role: str, moment: float) -> None:
    write_json(run.heartbeat(rank), {
        "rank": rank, "role": role, "host": "here", "pid": 1, "attempt": 1, "unit": "steps", "total": 9, "done": 1,
        "waiting_for": None, "since": 0.0, "phase": "training", "moved": moment, "time": moment, "ended": None,
        "where": ["a.py:1 f"],
    })  # fmt: skip


def looks(run: RunDir, until: float) -> str | None:
    """At every second; the student lives and moves, the teacher does neither."""
    hanging = Hanging(run, 1, read_run_plan(run.plan), 0.0)
    beat(run, 0, "teacher", 0.0)
    for now in range(int(until)):
        beat(run, 1, "student", float(now))
        if (words := hanging(float(now))) is not None:
            return f"{now} s: {words}"
    return None


def test_a_rank_without_a_sign_of_life_is_named_and_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    limit = read_run_plan(run.plan).cluster.heartbeat_timeout_s
    assert looks(run, limit) is None
    words = looks(run, limit + 10)
    assert words is not None
    assert f"{limit + 4:.0f} s: teacher rank 0 (silent): no sign of life for {limit + 2:.0f} s" in words
    record = json.loads(run.failure(1).read_text())
    assert (record["kind"], record["role"], record["rank"]) == ("silent", "teacher", 0)
    assert record["time"] == pytest.approx(time.time(), abs=60)


def test_on_a_full_disk_no_silence_is_held_against_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watch, "write_whole", full)
    assert looks(run, read_run_plan(run.plan).cluster.heartbeat_timeout_s + 10) is None

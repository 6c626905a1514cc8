"""What the records of a run amount to."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from run_folders import ELSEWHERE, GONE, HOST, alive, beat, end, failure, make_run, step

from kd_launch.cli.display import console, status_view
from kd_launch.cli.status_text import step_time_line
from kd_launch.errors import SpecError
from kd_launch.run_dir import RunDir
from kd_launch.runs.asking import look_at_all
from kd_launch.runs.facts import gather
from kd_launch.runs.status import Status, build

NEVER_STARTED = "made, but never started: its submission was cut off; remove the folder and submit again"


def no_program(*_: Any, **__: Any) -> Any:
    raise AssertionError("local runs start no program")


def status(run: RunDir, now: float | None = None) -> Status:
    return build(gather(run, time.time() if now is None else now))


@pytest.mark.parametrize(
    ("records", "state", "ended", "reason"),
    [
        ({"started": False}, "PENDING", False, "made, but not started"),
        ({"started": False, "made": 100.0}, "FAILED", True, NEVER_STARTED),
        ({"controller": alive()}, "RUNNING", False, None),
        ({"controller": alive(), "done": {"time": 1, "step": 1000}}, "RUNNING", False, None),
        ({"done": {"time": 1, "step": 1000}, "end": end()}, "COMPLETED", True, None),
        ({"done": {"time": 1, "step": 1000}}, "COMPLETED", True, None),
        ({"done": {}, "end": end(cancelled=True)}, "COMPLETED", True, None),
        ({"end": end(cancelled=True, exit_codes=[-15, -9])}, "CANCELLED", True, None),
        ({"end": end(timed_out=True, exit_codes=[-15, -15])}, "TIMEOUT", True, "its time limit was reached"),
        ({"end": end(exit_codes=[1, 1]), "failure": failure()}, "FAILED", True, None),
        ({"end": end()}, "FAILED", True, "every rank ended with 0, but without a finished student"),
        ({}, "FAILED", True, "its controller (process 1) is gone and left no end record"),
        (
            {"controller": alive(), "end": end()},
            "FAILED",
            True,
            "every rank ended with 0, but without a finished student",
        ),
    ],
)
def test_state(tmp_path: Path, records: dict[str, Any], state: str, ended: bool, reason: str | None) -> None:
    found = status(make_run(tmp_path / "run", **records))
    assert (found.state, found.ended) == (state, ended)
    assert [component.state for component in found.components] == [state, state]
    assert [component.reason for component in found.components] == [reason, reason]


def test_a_first_death_is_the_reason_where_its_record_is_missing(tmp_path: Path) -> None:
    """The disk may have been full when the controller wanted to write it."""
    first = {"rank": 1, "role": "student", "exit_code": 3}
    found = status(make_run(tmp_path / "run", end=end(exit_codes=[-15, 3], first=first)))
    assert found.components[0].reason == "student rank 1 ended first, with exit code 3"
    first = {"rank": 0, "role": "teacher", "signal": 9}
    found = status(make_run(tmp_path / "other", end=end(exit_codes=[-9, -15], first=first)))
    assert found.components[0].reason == "teacher rank 0 ended first, killed by signal 9"


def test_a_run_on_another_machine_lives_as_long_as_it_gives_signs_of_life(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ELSEWHERE, created=1000.0, heartbeats=[beat(0, "teacher", time=2000.0)])
    assert status(run, 2030.0).state == "RUNNING"
    later = status(run, 2090.0)
    assert (later.state, later.ended) == ("UNKNOWN", False)
    assert later.components[0].reason == "no sign of life for 90 s; ask on its machine, elsewhere"


def test_progress(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", alive(), metrics=[step(1), step(400)])
    found = status(run).progress
    assert found is not None
    assert found.model_dump() == {
        "step": 400, "steps": 1000, "loss": 2.5, "tokens_per_second": 1000.0, "eta_seconds": 300.0,
    }  # fmt: skip
    assert status(make_run(tmp_path / "new", alive())).progress is None


def test_a_step_takes_what_its_last_ones_took(tmp_path: Path) -> None:
    """Not the first two, in which memory is taken for the first time; nor those of an earlier attempt."""
    times = [(1, 40.0), (2, 20.0), (3, 0.5), (4, 0.7), (5, 0.6)]
    lines = [step(number, step_seconds=seconds) for number, seconds in times]
    found = status(make_run(tmp_path / "run", alive(), metrics=lines)).step_seconds
    assert found is not None
    assert (found.measured, found.ratio) == (0.6, 0.6 / found.predicted.p50)
    assert status(make_run(tmp_path / "first", alive(), metrics=lines[:1])).step_seconds.measured == 40.0
    many = [step(number, step_seconds=float(number)) for number in range(1, 41)]
    assert status(make_run(tmp_path / "many", alive(), metrics=many)).step_seconds.measured == 30.5
    assert status(make_run(tmp_path / "new", alive())).step_seconds is None


def test_what_a_step_takes_longer_than_planned_is_said(tmp_path: Path) -> None:
    found = status(make_run(tmp_path / "run", alive(), metrics=[step(1, step_seconds=5.0)]))
    planned = found.step_seconds.predicted
    words = f"step time 5 s, predicted {planned.p50:.3g} s: {5 / planned.p50:.2f} times as long"
    assert step_time_line(found) == f"{words}, outside its {planned.p10:.3g} to {planned.p90:.3g} s"
    near = status(make_run(tmp_path / "near", alive(), metrics=[step(1, step_seconds=planned.p50)]))
    assert str(step_time_line(near)).endswith("1.00 times as long")


def test_json_of_a_disjoint_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", GONE, end=end(exit_codes=[0, 1]), failure=failure(), metrics=[step(5)])
    predicted = json.loads(run.plan.read_text())["layout"]["step_seconds"]
    component = {"het_group": None, "job_id": "1", "state": "FAILED", "nodes": [HOST], "reason": None}
    assert json.loads(status(run).model_dump_json()) == {
        "run": "run",
        "run_dir": str(run.path),
        "job_id": "1",
        "state": "FAILED",
        "ended": True,
        "attempt": 1,
        "components": [{"role": role, **component, "start_estimate": None} for role in ("teacher", "student")],
        "progress": {"step": 5, "steps": 1000, "loss": 2.5, "tokens_per_second": 1000.0, "eta_seconds": 0.0},
        "failure": {"attempt": 1, "role": "student", "rank": 1, "host": "h", "error": "ValueError: no", "kind": None},
        "reason": None, "start_estimate": None, "way_on": None, "attempts": None,
        "step_seconds": {"predicted": predicted, "measured": 0.5},
    }  # fmt: skip


def test_colocated_ranks_are_one_component(tmp_path: Path) -> None:
    found = status(make_run(tmp_path / "run", alive(), colocated=True))
    assert [component.role for component in found.components] == ["both"]


def test_a_failure_shows_at_any_time(tmp_path: Path) -> None:
    found = status(make_run(tmp_path / "run", alive(), failure=failure()))
    assert found.state == "RUNNING"
    assert found.failure is not None
    assert found.failure.error == "ValueError: no"


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", alive(), metrics=[step(1, loss=float("nan"))])
    assert json.loads(status(run).model_dump_json())["progress"]["loss"] is None


@pytest.mark.parametrize(
    ("name", "text"), [("plan.json", "{}"), ("plan.json", ""), ("state.json", "[]"), ("state.json", "{}")]
)
def test_a_broken_folder_is_an_error_that_names_the_file(tmp_path: Path, name: str, text: str) -> None:
    run = make_run(tmp_path / "run", alive())
    (run.path / name).write_text(text)
    with pytest.raises(SpecError, match=name):
        status(run)
    listed = look_at_all([run], no_program)[0][0]
    assert listed.state == "UNKNOWN"
    assert name in str(listed.components[0].reason)


def test_view_shows_both_roles_and_what_went_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beats = [
        beat(0, "teacher", done=7, unit="micro-batches", waiting_for="rank 1 to take micro-batch 7"),
        beat(1, "student"),
    ]
    run = make_run(
        tmp_path / "[red]run", alive(), heartbeats=beats, metrics=[step(400)], failure=failure(error="[bold]no")
    )
    facts = gather(run, time.time())
    console().print(status_view(facts, build(facts)))
    shown = capsys.readouterr().out
    assert "[red]run  RUNNING  attempt 1" in shown
    assert "step 400 of 1000, loss 2.5000, 1,000 tokens/s, about 0:05:00 left" in shown
    assert "7 of 10 micro-batches" in shown
    assert "waits for rank 1 to take micro-batch 7" in shown
    assert "student rank 1 on h (attempt 1): [bold]no" in shown

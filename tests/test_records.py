"""Half-written, torn and foreign records."""

import json
from pathlib import Path

import pytest

from kd_launch.plan import Role
from kd_launch.run_dir import RunDir
from kd_launch.runs.records import Heartbeat, last_metrics, read_heartbeats
from kd_launch.runs.role_progress import role_progress


def line(step: int, **more: object) -> str:
    values = {"step": step, "loss": 1.5, "tokens_per_second": 9.0, "step_seconds": 0.5, "memory_gib": 1.0}
    return json.dumps({**values, **more}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_no_metrics_yet(run: RunDir) -> None:
    assert last_metrics(run, 1) is None
    run.metrics.write_text("")
    assert last_metrics(run, 1) is None
    run.metrics.write_text('{"step": 0, "eval_loss": 3.0}\n')
    assert last_metrics(run, 1) is None


def test_the_last_whole_line_of_a_step_counts(run: RunDir) -> None:
    run.metrics.write_text(line(1) + line(2) + '{"step": 2, "eval_loss": 3.0}\n' + line(3)[:-5])
    found = last_metrics(run, 1)
    assert found is not None
    assert found.step == 2


def test_a_whole_last_line_that_lacks_its_end_is_torn(run: RunDir) -> None:
    run.metrics.write_text(line(1) + line(20).rstrip("\n"))
    found = last_metrics(run, 1)
    assert found is not None
    assert found.step == 1


def test_an_attempt_that_starts_again_has_no_progress_yet(run: RunDir) -> None:
    run.metrics.write_text(line(400, attempt=1))
    assert last_metrics(run, 2) is None
    with run.metrics.open("a") as file:
        file.write(line(1, attempt=2))
    found = last_metrics(run, 2)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("evaluations", [1, 700, 5000])
def test_reads_back_over_many_lines(run: RunDir, evaluations: int) -> None:
    run.metrics.write_text(line(7) + '{"step": 7, "eval_loss": 3.0, "padding": "' + "x" * 100 + '"}\n' * 1)
    with run.metrics.open("a") as file:
        file.write(('{"step": 7, "eval_loss": 3.0, "padding": "' + "x" * 100 + '"}\n') * evaluations)
    found = last_metrics(run, 1)
    assert found is not None
    assert found.step == 7


def test_a_loss_that_is_no_number(run: RunDir) -> None:
    run.metrics.write_text(line(1, loss=float("nan")))
    found = last_metrics(run, 1)
    assert found is not None
    assert found.loss != found.loss


def beat(rank: int, role: str, done: int, total: int = 10, **more: object) -> dict[str, object]:
    record = {"rank": rank, "role": role, "host": "h", "pid": 1, "time": 100.0 + rank, "done": done, "total": total}
    return {**record, "unit": "steps", "waiting_for": None, "since": 0.0, **more}


def test_heartbeats_of_the_attempt_that_can_be_read(run: RunDir) -> None:
    run.heartbeats.mkdir()
    run.heartbeat(1).write_text(json.dumps(beat(1, "student", 3, attempt=2)))
    run.heartbeat(0).write_text(json.dumps(beat(0, "teacher", 4)))
    run.heartbeat(2).write_text("{")
    run.heartbeat(3).write_text('{"rank": 3}')
    run.heartbeat(4).write_text(json.dumps(beat(4, "student", 3, attempt=1)))
    assert [beat.rank for beat in read_heartbeats(run, 2)] == [0, 1]


def test_teachers_share_their_work_and_students_do_not() -> None:
    beats = [
        Heartbeat.model_validate(beat(0, "teacher", 4, waiting_for="rank 2", since=50.0)),
        Heartbeat.model_validate(beat(1, "teacher", 5, waiting_for="rank 3", since=40.0)),
        Heartbeat.model_validate(beat(2, "student", 3)),
        Heartbeat.model_validate(beat(3, "student", 2)),
    ]
    teacher, student = role_progress(Role.TEACHER, beats), role_progress(Role.STUDENT, beats)
    assert teacher is not None
    assert student is not None
    assert (teacher.done, teacher.total, teacher.ranks, teacher.oldest) == (9, 20, 2, 100.0)
    assert teacher.waiting_for == "rank 3"
    assert (student.done, student.total, student.waiting_for) == (2, 10, None)
    assert role_progress(Role.BOTH, beats) is None

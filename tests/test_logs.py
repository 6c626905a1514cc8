"""Logs: whose lines, of which attempt, and the ones still to come."""

from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import local_layout, make_run

from kd_launch.errors import UnknownNameError
from kd_launch.plan import Role
from kd_launch.run_dir import RunDir
from kd_launch.runs.logs import Wanted, check_attempt, check_rank, follow_logs, read_logs

DISJOINT, COLOCATED = local_layout(), local_layout(colocated=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path / "run")
    run.role_log(1, "teacher").write_bytes(b"0: a\n1: b\n")
    run.role_log(1, "student").write_bytes(b" 2: c\n12: d\n 2: 12: e\n")
    return run


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def text(wanted: Wanted) -> bytes:
    return b"".join(piece.text for piece in read_logs(wanted))


def begin(run: RunDir, attempt: int) -> None:
    run.attempt(attempt).mkdir()
    run.role_log(attempt, "any").parent.mkdir()


def test_files_of_roles(run: RunDir) -> None:
    assert names(Wanted(run, DISJOINT).files(1)) == ["teacher.log", "student.log"]
    assert names(Wanted(run, DISJOINT, Role.STUDENT).files(1)) == ["student.log"]
    for role in (None, Role.TEACHER, Role.STUDENT):
        assert names(Wanted(run, COLOCATED, role).files(1)) == ["student.log"]


def test_lines_of_a_rank(run: RunDir) -> None:
    assert text(Wanted(run, DISJOINT)) == b"0: a\n1: b\n 2: c\n12: d\n 2: 12: e\n"
    assert text(Wanted(run, DISJOINT, rank=2)) == b" 2: c\n 2: 12: e\n"


def test_the_newest_attempt_unless_another_is_named(run: RunDir) -> None:
    begin(run, 2)
    run.role_log(2, "student").write_bytes(b"2: again\n")
    assert text(Wanted(run, DISJOINT)) == b"2: again\n"
    assert text(Wanted(run, DISJOINT, Role.TEACHER, attempt=1)) == b"0: a\n1: b\n"


def test_where_no_rank_wrote_srun_and_the_batch_script_tell_why(run: RunDir) -> None:
    begin(run, 2)
    run.role_log(2, "teacher").touch()  # srun makes it before any rank runs
    run.srun_log(2).write_bytes(b"srun: error: no\n")
    run.batch_log.write_bytes(b"module: not found\n")
    assert text(Wanted(run, DISJOINT, rank=0)) == b"srun: error: no\nmodule: not found\n"
    followed = follow_logs(Wanted(run, DISJOINT), lambda: True, sleep=lambda _: None)
    assert [piece.log.name for piece in followed] == ["srun.log", "batch.log"]


def test_ranks_that_exist() -> None:
    check_rank(None, 2)
    check_rank(1, 2)
    with pytest.raises(UnknownNameError, match="--rank 2: the run has ranks 0 to 1"):
        check_rank(2, 2)


def test_attempts_that_were_begun(run: RunDir, tmp_path: Path) -> None:
    check_attempt(None, run)
    check_attempt(1, run)
    with pytest.raises(UnknownNameError, match="--attempt 2: the run has begun attempts 1 to 1"):
        check_attempt(2, run)
    with pytest.raises(UnknownNameError, match="the run has begun none"):
        check_attempt(1, RunDir(tmp_path))


def rounds(*additions: Callable[[], object]) -> Callable[[], bool]:
    """Each question whether the run has ended finds one thing more; after the last it has."""
    left = iter(additions)

    def ended() -> bool:
        step = next(left, None)
        if step is not None:
            step()
        return step is None

    return ended


def test_follows_whole_lines_to_the_end(run: RunDir) -> None:
    log = run.role_log(1, "student")
    log.unlink()
    ended = rounds(
        lambda: log.write_bytes(b"0: one\n0: tw"),
        lambda: log.open("ab").write(b"o\n0: three"),
        lambda: None,
    )
    pieces = list(follow_logs(Wanted(run, DISJOINT, Role.STUDENT, 0), ended, sleep=lambda _: None))
    assert [piece.text for piece in pieces] == [b"0: one\n", b"0: two\n", b"0: three"]
    assert not any(piece.several for piece in pieces)


def test_follows_a_requeued_run_into_its_next_attempt(run: RunDir) -> None:
    def again() -> None:
        begin(run, 2)
        run.role_log(2, "teacher").write_bytes(b"0: again\n")

    wanted = Wanted(run, DISJOINT, Role.TEACHER)
    pieces = list(follow_logs(wanted, rounds(again, lambda: None), sleep=lambda _: None))
    assert [(piece.log.parent.name, piece.text) for piece in pieces] == [
        ("attempt-1", b"0: a\n1: b\n"), ("attempt-2", b"0: again\n"),
    ]  # fmt: skip


def test_an_attempt_that_was_named_ends_with_the_next_one(run: RunDir) -> None:
    wanted = Wanted(run, DISJOINT, Role.TEACHER, attempt=1)
    pieces = list(follow_logs(wanted, rounds(lambda: begin(run, 2), *[lambda: None] * 9), sleep=lambda _: None))
    assert [piece.text for piece in pieces] == [b"0: a\n1: b\n"]

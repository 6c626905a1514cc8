"""Logs: whose lines, and the ones still to come."""

from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import make_run

from kd_launch.errors import UnknownNameError
from kd_launch.plan import Role
from kd_launch.run_dir import RunDir
from kd_launch.runs.logs import check_rank, follow_logs, log_files, read_logs


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path / "run")
    run.role_log(1, "teacher").write_bytes(b"0: a\n1: b\n")
    run.role_log(1, "student").write_bytes(b" 2: c\n12: d\n 2: 12: e\n")
    return run


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_files_of_roles(run: RunDir) -> None:
    assert names(log_files(run, 1, None, False)) == ["teacher.log", "student.log"]
    assert names(log_files(run, 1, Role.STUDENT, False)) == ["student.log"]
    for role in (None, Role.TEACHER, Role.STUDENT):
        assert names(log_files(run, 1, role, True)) == ["student.log"]


def test_lines_of_a_rank(run: RunDir) -> None:
    files = log_files(run, 1, None, False)
    assert b"".join(piece.text for piece in read_logs(files, None)) == b"0: a\n1: b\n 2: c\n12: d\n 2: 12: e\n"
    assert b"".join(piece.text for piece in read_logs(files, 2)) == b" 2: c\n 2: 12: e\n"
    assert b"".join(piece.text for piece in read_logs([run.batch_log], None)) == b""


def test_ranks_that_exist() -> None:
    check_rank(None, 2)
    check_rank(1, 2)
    with pytest.raises(UnknownNameError, match="--rank 2: the run has ranks 0 to 1"):
        check_rank(2, 2)


def test_follows_whole_lines_to_the_end(run: RunDir) -> None:
    log = run.role_log(1, "student")
    log.unlink()
    additions: list[Callable[[], object]] = [
        lambda: log.write_bytes(b"0: one\n0: tw"),
        lambda: log.open("ab").write(b"o\n0: three"),
        lambda: None,
    ]
    rounds = iter(additions)

    def ended() -> bool:
        step = next(rounds, None)
        if step is not None:
            step()
        return step is None

    pieces = list(follow_logs([log], 0, ended, sleep=lambda _: None))
    assert [piece.text for piece in pieces] == [b"0: one\n", b"0: two\n", b"0: three"]

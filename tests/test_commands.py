"""Programs that answer, and those that do not."""

import os
import signal
import sys
from pathlib import Path

from kd_launch.commands import end_session, run, start_rank, start_session


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_an_answer() -> None:
    done = run(python("print(input())"), timeout=30, stdin="hello")
    assert (done.ok, done.stdout, done.stderr) == (True, "hello\n", "")


def test_the_environment_is_the_given_one() -> None:
    assert run(python("import os; print(os.environ['A'])"), timeout=30, env={"A": "x y"}).stdout == "x y\n"


def test_a_failure_says_the_last_line() -> None:
    done = run(python("import sys; print('first\\nsecond', file=sys.stderr); sys.exit(7)"), timeout=30)
    assert (done.ok, done.returncode, done.why()) == (False, 7, "second")
    assert run(python("raise SystemExit(7)"), timeout=30).why() == "ended with exit code 7"


def test_a_program_that_shows_its_way_is_deaf_to_interrupts_until_it_listens() -> None:
    code = python("import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)")
    assert run(code, timeout=30, pass_stderr=True).stdout == "True\n"
    assert run(code, timeout=30).stdout == "False\n"


def test_no_program(tmp_path: Path) -> None:
    done = run([str(tmp_path / "nothing")], timeout=30)
    assert done.returncode is None
    assert done.why() == f"{tmp_path}/nothing cannot be started: No such file or directory"
    (tmp_path / "text").write_text("no program")
    assert "Permission denied" in run([str(tmp_path / "text")], timeout=30).why()
    assert "cannot be started" in run(["a\0b"], timeout=30).why()


def test_no_answer_in_time() -> None:
    done = run(python("import time; time.sleep(60)"), timeout=0.1)
    assert (done.returncode, done.ok) == (None, False)
    assert done.why().endswith("gave no answer within 0.1 s")


def test_bytes_that_are_no_text() -> None:
    assert run(python("import sys; sys.stdout.buffer.write(b'\\xff')"), timeout=30).stdout == "\ufffd"


def test_a_session_of_its_own(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getsid(0), sorted(os.listdir('/proc/self/fd')), flush=True); sys.stdin.read()"
    ours = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(ours, True)
    process = start_session(python(code), os.environ, tmp_path / "log")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0
    os.close(ours)
    # The fourth descriptor is the listing's own.
    assert (tmp_path / "log").read_text() == f"{process.pid} ['0', '1', '2', '3']\n"


def test_a_rank_is_the_leader_of_its_group() -> None:
    process = start_rank(
        python("import os, sys; print(os.getpgrp(), os.getsid(0), sys.stdin.read() == '')"), os.environ
    )
    assert process.stdout is not None
    assert process.stdout.read() == f"{process.pid} {os.getsid(0)} True\n".encode()
    assert process.wait(30) == 0


def test_ends_a_session_that_does_not_want_to(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); open('ready', 'w'); time.sleep(60)"
    process = start_session(["env", "-C", str(tmp_path), *python(code)], os.environ, tmp_path / "log")
    while not (tmp_path / "ready").exists():
        pass
    end_session(process, patience=0.1)
    assert process.wait() == -signal.SIGKILL

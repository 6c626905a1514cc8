"""The supervisor: labels, who ends whom, and when; with real processes where it matters."""

import io
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kd_launch.local.supervisor import Course, Death, LineLabeler, Patience, RankCommandLine, Supervisor

QUICK = Patience(peers=0.2, cancel=0.3, record=0.1)


def supervisor(
    scripts: Sequence[str], patience: Patience = QUICK, **options: Any
) -> tuple[Supervisor, io.BytesIO, list[Death]]:
    """A supervisor of one Python script per rank, their common log, and the deaths that it is told of."""
    log, deaths = io.BytesIO(), list[Death]()
    lines = [
        RankCommandLine(rank, "student", [sys.executable, "-c", script], dict(os.environ))
        for rank, script in enumerate(scripts)
    ]
    made = Supervisor(lines, {"student": log}, patience, on_death=deaths.append, say=lambda _: None, **options)
    return made, log, deaths


FOREVER = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


# Labels


def test_labels_whole_lines_of_any_chunks() -> None:
    labeler = LineLabeler(3)
    assert labeler.feed(b"one\ntw") == b"3: one\n"
    assert labeler.feed(b"o\n\nthree") == b"3: two\n3: \n"
    assert labeler.rest() == b"3: three\n"
    assert labeler.rest() == b""


def test_a_line_without_end_is_cut_rather_than_kept() -> None:
    labeler = LineLabeler(0)
    assert labeler.feed(b"x" * 100_000) == b"0: " + b"x" * 100_000 + b"\n"
    assert labeler.rest() == b""


# When


def test_the_earliest_reason_to_end_counts() -> None:
    course = Course().ending(10, 5)
    assert course == Course(10, 15)
    assert course.ending(2, 10) == Course(2, 12)
    assert course.ending(12, 1) == Course(10, 13)
    assert course.ending(20, 9) == course
    assert Course() == Course(math.inf, math.inf)


# Ends


def test_ranks_that_end_with_0() -> None:
    made, log, deaths = supervisor(["print('hello')", "import sys; print('error', file=sys.stderr)"])
    end = made.run()
    assert end.exit_codes == (0, 0)
    assert (end.cancelled, end.timed_out, end.first, deaths) == (False, False, None, [])
    assert sorted(log.getvalue().splitlines()) == [b"0: hello", b"1: error"]


def test_what_a_rank_writes_at_its_end_is_kept() -> None:
    made, log, _ = supervisor(["print('x' * 60000); print('last', end='')"])
    made.run()
    assert log.getvalue().endswith(b"\n0: last\n")


def test_a_rank_that_fails_ends_the_others() -> None:
    made, _, deaths = supervisor(["raise SystemExit(3)", FOREVER])
    end = made.run()
    assert end.exit_codes == (3, -signal.SIGTERM)
    assert end.first == Death(0, "student", 3)
    assert deaths == [end.first]
    assert not end.cancelled


def test_the_others_may_end_by_themselves_first() -> None:
    made, _, _ = supervisor(["raise SystemExit(3)", "import time; time.sleep(0.3)"], Patience(peers=30))
    assert made.run().exit_codes == (3, 0)


def test_a_rank_that_is_deaf_to_term_is_killed() -> None:
    made, _, _ = supervisor(["import time; time.sleep(0.3); raise SystemExit(3)", DEAF])
    assert made.run().exit_codes == (3, -signal.SIGKILL)


def test_a_killed_rank_is_reported_at_once() -> None:
    """It cannot have written a record; the others, which lost it, might write a worse one."""
    made, _, deaths = supervisor(["import os; os.kill(os.getpid(), 9)", FOREVER], Patience(peers=0.2, record=1e9))
    assert made.run().first == Death(0, "student", -9)
    assert deaths[0].words() == "killed by signal 9 (SIGKILL)"


def test_the_first_death_counts_and_is_told_once() -> None:
    made, _, deaths = supervisor(
        ["raise SystemExit(3)", "import time; time.sleep(0.4); raise SystemExit(4)"], Patience(peers=9)
    )
    assert made.run().first == Death(0, "student", 3)
    assert len(deaths) == 1


def test_ranks_that_hang_are_ended_and_none_of_them_counts_as_the_first_death() -> None:
    asked = list[float]()

    def hanging(now: float) -> str | None:
        asked.append(now)
        return "teacher rank 0 (silent)" if len(asked) == 3 else None

    made, _, deaths = supervisor([FOREVER, DEAF], hanging=hanging)
    end = made.run()
    assert end.exit_codes == (-signal.SIGTERM, -signal.SIGKILL)
    assert (end.first, deaths, end.cancelled, len(asked)) == (None, [], False, 3)


def test_cancel_ends_all() -> None:
    made, _, deaths = supervisor([FOREVER, DEAF])
    ticks = iter(range(10**9))

    def clock() -> float:
        if next(ticks) == 8:
            made.cancel()
        return time.monotonic()

    made._clock = clock
    end = made.run()
    assert end.exit_codes[0] == -signal.SIGTERM
    assert end.exit_codes[1] in (-signal.SIGTERM, -signal.SIGKILL)
    assert end.cancelled
    assert deaths == []


def test_the_time_limit_ends_all() -> None:
    made, _, deaths = supervisor([FOREVER], Patience(time_limit=0.2))
    end = made.run()
    assert end.exit_codes == (-signal.SIGTERM,)
    assert (end.timed_out, end.cancelled, deaths) == (True, False, [])


def test_a_rank_that_cannot_be_started_ends_the_others() -> None:
    def start(argv: Sequence[str], env: Any) -> Any:
        from kd_launch.commands import start_rank

        if "broken" in argv[-1]:
            raise OSError("no more processes")
        return start_rank(argv, env)

    made, _, deaths = supervisor([FOREVER, "broken"], start=start)
    end = made.run()
    assert end.exit_codes == (-signal.SIGTERM, None)
    assert [death.rank for death in deaths] == [1]


def test_what_an_ended_rank_left_behind_is_killed() -> None:
    """Its output too: a child that holds the pipe does not keep the run from ending."""
    child = "import os, sys, time; print('child', os.getpid(), flush=True); time.sleep(60)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(0.5)"
    made, log, _ = supervisor([parent])
    assert made.run().exit_codes == (0,)
    pid = int(log.getvalue().split()[-1])
    assert_gone(pid)


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} lives"
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return
        time.sleep(0.01)


def test_a_log_that_cannot_be_written_does_not_stop_the_run() -> None:
    made, _, _ = supervisor(["for i in range(50000): print('a line of this log')"])
    with open("/dev/full", "wb", buffering=0) as full:
        made._logs = {"student": full}
        assert made.run().exit_codes == (0,)


def test_no_rank_outlives_an_error_of_ours() -> None:
    made, _, _ = supervisor([FOREVER])
    pids: list[int] = []

    def act(_: float) -> None:
        pids.append(made._live[0].pid)
        raise RuntimeError("a bug")

    made._act = act  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a bug"):
        made.run()
    assert_gone(pids[0])

"""Processes: which one is meant, and no other one ever."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from kd_launch.local.processes import identify, is_alive, send, with_variable


def sleeper(**variables: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, **variables})


def test_knows_a_process_from_a_later_one_with_its_number() -> None:
    with sleeper() as process:
        identity = identify(process.pid)
        assert identity is not None
        assert is_alive(identity)
        earlier = replace(identity, start_time=identity.start_time - 1)
        assert is_alive(earlier) is False
        assert send(earlier, signal.SIGKILL) is False
        assert is_alive(replace(identity, boot_id="another")) is False
        assert is_alive(replace(identity, host="elsewhere")) is None
        assert process.poll() is None
        assert send(identity, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    assert is_alive(identity) is False
    assert send(identity, signal.SIGTERM) is False


def test_a_zombie_has_ended() -> None:
    with sleeper() as process:
        identity = identify(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}").exists()
        assert identity is not None
        assert is_alive(identity) is False


def test_the_command_may_hold_parentheses(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = " ".join(str(number) for number in range(4, 53))
    (tmp_path / "7" / "stat").write_text(f"7 (a (b) c) S {fields}")
    found = identify(7, tmp_path)
    assert found is not None
    assert found.start_time == 22
    assert identify(8, tmp_path) is None


def test_finds_processes_by_what_they_were_told() -> None:
    with sleeper(MARK="a b") as told, sleeper(MARK="a") as other:
        assert [found.pid for found in with_variable("MARK", "a b")] == [told.pid]
        assert with_variable("MARK", "nobody") == []
        told.kill()
        other.kill()

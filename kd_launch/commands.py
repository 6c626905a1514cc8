"""The only place that starts other programs: one that answers, a session that stays, a rank that is watched."""

import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol


@dataclass(frozen=True)
class Completed:
    """What became of a program."""

    argv: tuple[str, ...]
    returncode: int | None
    """Negative: ended by that signal. None: it could not be started, or gave no answer in time; see `problem`."""
    stdout: str
    stderr: str
    """Empty where the caller's stderr was passed on to the program."""
    problem: str | None = None
    """Why there is no exit code, in words."""

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    def why(self) -> str:
        """What went wrong, in one line: the problem, or the last line the program wrote, or its exit code."""
        said = [line for line in self.stderr.splitlines() if line.strip()]
        return self.problem or (said[-1].strip() if said else f"ended with exit code {self.returncode}")


class Runner(Protocol):
    """`run`, or what a test puts in its place."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        pass_stderr: bool = False,
    ) -> Completed: ...


def run(
    argv: Sequence[str],
    *,
    timeout: float | None,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    pass_stderr: bool = False,
) -> Completed:
    """Runs a program to its end and returns what it wrote.

    Never raises for what the program does: not found, not executable, silent and failing are all answers.

    Args:
        timeout: seconds after which the program is killed; None: never.
        stdin: what it reads.
        env: its whole environment; None: ours.
        pass_stderr: its stderr is ours, for programs that show how far they are. Such a one starts deaf to Ctrl-C:
            what interrupts us must not show the traceback of its half-done imports. It may listen when it is ready.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=None if pass_stderr else subprocess.PIPE,
            env=None if env is None else dict(env),
            timeout=timeout,
            encoding="utf-8",
            errors="replace",
            check=False,
            preexec_fn=_ignore_interrupts if pass_stderr else None,
        )
    except subprocess.TimeoutExpired:
        return Completed(tuple(argv), None, "", "", f"{argv[0]} gave no answer within {timeout:g} s")
    except (OSError, ValueError) as error:
        return Completed(tuple(argv), None, "", "", f"{argv[0]} cannot be started: {reason(error)}")
    return Completed(tuple(argv), done.returncode, done.stdout, done.stderr or "")


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Process(Protocol):
    """What submit and its controller use of a started program (`subprocess.Popen` has all of it)."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start_session(argv: Sequence[str], env: Mapping[str, str], log: Path) -> Process:
    """Starts a program that outlives us: a session of its own, output appended to `log`, none of our descriptors.

    Its stdin is a pipe, so that it can wait until we are ready and notice when we never are.

    Raises:
        OSError: it cannot be started, or the log cannot be written.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
            close_fds=True,
        )


def start_rank(argv: Sequence[str], env: Mapping[str, str]) -> Process:
    """Starts one rank in our session and a process group of its own; both its outputs are one pipe to us.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        process_group=0,
        close_fds=True,
        bufsize=0,
    )


def end_session(process: Process, patience: float) -> None:
    """Tells a session's leader to end, waits for its end, and kills it when that takes too long."""
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def reason(error: BaseException) -> str:
    """The words of an error without its number and its traceback."""
    return str(getattr(error, "strerror", None) or error)

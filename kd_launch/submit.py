"""The submitit adapters. Here the local one: a controller in a session of its own, and one process per rank.

submitit's LocalExecutor surprises in four ways, all seen in 1.5.4 and all answered here: its controller inherits our
session, stdin and outputs (a captured submit waits for the run; Ctrl-C takes it along); it ends every job after 2
minutes unless told otherwise; it waits for all tasks, so one dead rank hangs the rest; and cancel from another process
does nothing. Its private names are used below, which is why pyproject.toml pins the version.

`python -m kd_launch.submit control ORDER` is the controller; `... rank FOLDER` is a rank until its own command takes
its place.
"""

import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitit.core.utils import DelayedSubmission
from submitit.local.local import Controller, LocalExecutor, LocalJob, LocalJobEnvironment

from kd_launch.commands import Process, end_session, reason, start_session
from kd_launch.errors import CheckError
from kd_launch.local.processes import ProcessIdentity, identify
from kd_launch.local.supervisor import Death, End, Patience, RankCommandLine, Supervisor, signal_name
from kd_launch.local.surroundings import RUN_VARIABLE, with_setup, without_launchers
from kd_launch.ownership import refuse_others
from kd_launch.run_dir import RunDir, write_first_json, write_json

if TYPE_CHECKING:
    from kd_launch.scripts.script import Script  # not here: every rank waits for the imports of this module

_GO = b"go\n"


@dataclass(frozen=True)
class RankCommand:
    """What submitit pickles: it becomes the command of the rank that calls it, in the same process."""

    argv: tuple[tuple[str, ...], ...]
    """By rank."""
    variables: Mapping[str, str]

    def __call__(self) -> None:
        environment = LocalJobEnvironment()
        argv = self.argv[environment.global_rank]
        if os.getppid() != int(environment.job_id):
            sys.exit("the controller of this run is gone")  # nobody would watch this rank
        try:
            os.execvpe(argv[0], argv, {**os.environ, **self.variables})  # noqa: S606 - no shell is the point
        except OSError as error:
            sys.stderr.write(f"{argv[0]} cannot be started: {reason(error)}\n")
            sys.exit(127)


@dataclass(frozen=True)
class Order:
    """What a controller is told."""

    run_dir: str
    attempt: int
    roles: Sequence[str]
    """By rank."""
    patience: Patience

    @property
    def run(self) -> RunDir:
        return RunDir(Path(self.run_dir))

    @property
    def folder(self) -> Path:
        """Where submitit keeps its pickle."""
        return self.run.attempt(self.attempt) / "submitit"

    def log(self, role: str) -> Path:
        return self.run.role_log(self.attempt, role)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Order":
        values = json.loads(text)
        return Order(**{**values, "patience": Patience(**values["patience"])})


class LocalRunExecutor(LocalExecutor):  # type: ignore[misc]
    """submitit's local executor with a controller of our own, which outlives the command that starts it."""

    def __init__(self, order: "Order", environ: Mapping[str, str]) -> None:
        super().__init__(order.folder)
        self._order, self._environ = order, environ
        self.update_parameters(tasks_per_node=len(order.roles))

    @property
    def _submitit_command_str(self) -> str:
        # Not submitit's own program: that one ignores TERM and writes its own lines into the rank's log.
        return shlex.join([sys.executable, "-u", "-m", "kd_launch.submit", "rank", str(self.folder)])

    def _submit_command(self, command: str) -> Any:
        tasks = self._num_tasks()
        variables = {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": "0",  # read by submitit's constructor only; ours has Patience
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            RUN_VARIABLE: self._order.run_dir,
        }
        process = start_session(
            [sys.executable, "-u", "-m", "kd_launch.submit", "control", self._order.to_json()],
            {**without_launchers(self._environ), **variables},
            self._order.run.batch_log,
        )
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(tasks)))


class WaitingRun:
    """A controller that was started and waits for our word: nothing runs before the run folder says what does."""

    def __init__(self, process: Process, identity: ProcessIdentity) -> None:
        self._process, self.identity = process, identity

    @property
    def job_id(self) -> str:
        return str(self.identity.pid)

    def go(self) -> None:
        """Starts the ranks. Raises CheckError when the controller has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_GO)
            self._process.stdin.close()
        except BrokenPipeError as error:
            raise CheckError("the run's controller ended before the ranks were started") from error

    def abandon(self) -> None:
        """Ends the controller, and the ranks if the word was given already."""
        end_session(self._process, patience=20.0)


def start_waiting(
    run: RunDir, script: "Script", attempt: int, environ: Mapping[str, str], patience: Patience
) -> WaitingRun:
    """Starts the controller of an attempt of a local script; no rank starts before its `go`.

    Raises:
        OSError: a file cannot be written, or the controller cannot be started.
        CheckError: it ended at once.
    """
    role_of = {rank: str(part.role) for part in script.parts for rank in part.ranks}
    roles = [role_of[rank] for rank in range(script.world_size)]
    order = Order(str(run.path), attempt, roles, patience)
    order.folder.mkdir(mode=0o700)  # a pickle is code: whatever the umask, it is ours alone to write
    executor = LocalRunExecutor(order, environ)
    process: Process = executor.submit(rank_command(script, attempt))._process
    identity = identify(process.pid)
    if identity is None:
        end_session(process, patience=1.0)
        raise CheckError("the run's controller ended before the ranks were started")
    return WaitingRun(process, identity)


def rank_command(script: "Script", attempt: int) -> RankCommand:
    """What each rank of a local script becomes."""
    setup = "\n".join(script.setup)
    by_rank = {rank: tuple(with_setup(setup, part.command)) for part in script.parts for rank in part.ranks}
    argv = tuple(by_rank[rank] for rank in range(script.world_size))
    return RankCommand(argv, {**script.environment, "KD_LAUNCH_ATTEMPT": str(attempt)})


class RunController(Controller):  # type: ignore[misc]
    """Starts the ranks of one attempt, watches them, and writes how they ended."""

    def __init__(self, order: Order, logs: ExitStack) -> None:
        from kd_launch.local.hanging import Hanging  # not above: every rank waits for the imports of this module
        from kd_launch.plan import read_run_plan

        self._order = order
        self._supervisor: Supervisor | None = None
        super().__init__(order.folder)  # reads the SUBMITIT_ variables and takes SIGTERM
        signal.signal(signal.SIGINT, self._forward_signal)
        files = {
            role: logs.enter_context(order.log(role).open("ab", buffering=0)) for role in dict.fromkeys(order.roles)
        }
        lines = [
            RankCommandLine(rank, role, self.command, self._variables(rank)) for rank, role in enumerate(order.roles)
        ]
        hanging = Hanging(order.run, order.attempt, read_run_plan(order.run.plan), time.monotonic())
        self._supervisor = Supervisor(lines, files, order.patience, on_death=self._record, say=_say, hanging=hanging)

    def _forward_signal(self, signum: int, *_: object) -> None:
        """TERM means cancel: the ranks are ended and the end is recorded."""
        _say(f"asked to end by {signal_name(signum)}")
        if self._supervisor is None:
            sys.exit(1)
        self._supervisor.cancel()

    def _variables(self, rank: int) -> dict[str, str]:
        names = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID")
        return {**os.environ, "SUBMITIT_LOCAL_JOB_ID": self.pid, **dict.fromkeys(names, str(rank))}

    def run(self, max_retry: int = 1) -> None:  # noqa: ARG002 - submitit's signature
        """Returns when no rank is left and the end is on disk."""
        assert self._supervisor is not None
        try:
            self._supervisor.run()
        finally:
            write_json(self._order.run.end_record(self._order.attempt), end_json(self._supervisor.end()))

    def _record(self, death: Death) -> None:
        """Writes the failure record of a rank that could not write its own."""
        error = death.words() if death.exit_code < 0 else f"{death.words()}; its log has the reason"
        attempt, host = self._order.attempt, socket.gethostname()
        record: dict[str, object] = {"attempt": attempt, "role": death.role, "rank": death.rank, "host": host}
        record |= {"error": error, "traceback": None, "time": time.time()}
        try:
            write_first_json(self._order.run.failure(attempt), record)
        except OSError as problem:
            _say(f"the failure record cannot be written: {problem}")


def end_json(end: End) -> dict[str, object]:
    """end.json: exit codes by rank (negative: killed by that signal; null: not known) and the first death."""
    first: dict[str, object] | None = None
    if end.first is not None:
        how = {"signal": -end.first.exit_code} if end.first.exit_code < 0 else {"exit_code": end.first.exit_code}
        first = {"rank": end.first.rank, "role": end.first.role, **how}
    return {
        "exit_codes": list(end.exit_codes),
        "cancelled": end.cancelled,
        "timed_out": end.timed_out,
        "time": time.time(),
        "first": first,
    }


def _say(line: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {line}\n")


def _control(order: str) -> None:
    if sys.stdin.buffer.readline() != _GO:
        return  # whoever started us has given up
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    with ExitStack() as logs:
        RunController(Order.from_json(order), logs).run()


def _become_rank(folder: str) -> None:
    os.environ["SUBMITIT_FOLDER"] = folder
    pickle = Path(LocalJobEnvironment().paths.submitted_pickle)
    try:
        refuse_others(pickle)
    except (CheckError, OSError) as error:
        sys.exit(f"error: {error}")
    DelayedSubmission.load(pickle).result()


def main(mode: str, argument: str) -> None:
    if mode == "control":
        _control(argument)
    else:
        _become_rank(argument)


if __name__ == "__main__":
    main(*sys.argv[1:])

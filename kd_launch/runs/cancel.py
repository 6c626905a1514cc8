"""Ends a run from any shell, and leaves no process of it behind: here one on this machine, in cancel_job on Slurm."""

import signal
import time
from collections.abc import Callable

from kd_launch.commands import Runner
from kd_launch.errors import CheckError, SpecError
from kd_launch.local.processes import ProcessIdentity, is_alive, send, with_variable
from kd_launch.local.surroundings import RUN_VARIABLE
from kd_launch.plan import read_run_plan
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runs.cancel_job import Outcome, cancel_job
from kd_launch.runs.state import RunState, read_state

# The controller gives the ranks 10 s between TERM and KILL.
CONTROLLER_S = 20.0
KILLED_S = 5.0


def cancel(run: RunDir, runner: Runner, sleep: Callable[[float], None] = time.sleep) -> Outcome:
    """Ends a run, unless it has ended.

    Raises:
        CheckError: it runs on another machine, or is another user's.
        SlurmSilentError: Slurm does not answer.
        SpecError: the run folder cannot be read or written.
    """
    state = read_state(run)
    if state is None:
        return Outcome(had_ended=True)  # never started: there is nothing to end
    if state.scheduler == "slurm":
        return cancel_job(run, state, runner, sleep)
    return Outcome(had_ended=_cancel_here(run, state, sleep))


def has_ended_here(run: RunDir, state: RunState) -> bool | None:
    """Whether a local run has ended; None where only the machine that it runs on can tell."""
    if state.controller is None:
        return True
    # In this order: what a controller wrote before its end is there once the end was seen.
    lives = is_alive(state.controller)
    attempt = max(run.attempt_numbers(), default=0)
    if run.end_record(attempt).exists() or lives is False:
        return True
    return False if lives else (run.done_record(attempt).exists() or None)


def leftovers(state: RunState) -> list[ProcessIdentity]:
    """Every process on this machine that was started for a local run, in whatever session or group it is now."""
    return list(with_variable(RUN_VARIABLE, state.run_dir))


def _cancel_here(run: RunDir, state: RunState, sleep: Callable[[float], None]) -> bool:
    """Returns whether the run had ended already."""
    had_ended = has_ended_here(run, state)
    attempt = max(run.attempt_numbers(), default=0)
    if had_ended is None:
        assert state.controller is not None
        raise CheckError(f"{run.name} runs on {state.controller.host}: give `kd-launch cancel {run.name}` there")
    if not had_ended:
        assert state.controller is not None
        _end_controller(run, state.controller, attempt, sleep)
    _kill_leftovers(state, sleep)
    if not had_ended and not run.end_record(attempt).exists():
        _write_end(run, attempt, _world_size(run))
    return had_ended


def _world_size(run: RunDir) -> int:
    """0 where the plan is damaged: that must keep nobody from ending a run."""
    try:
        return read_run_plan(run.plan).layout.world_size
    except SpecError:
        return 0


def _end_controller(run: RunDir, controller: ProcessIdentity, attempt: int, sleep: Callable[[float], None]) -> None:
    """Asks the controller to end the ranks and waits until it has written how they ended."""
    _send(run, controller, signal.SIGTERM)
    deadline = time.monotonic() + CONTROLLER_S
    while is_alive(controller) and time.monotonic() < deadline:
        sleep(0.05)
    if is_alive(controller) and not run.end_record(attempt).exists():
        _send(run, controller, signal.SIGKILL)


def _send(run: RunDir, process: ProcessIdentity, number: signal.Signals) -> None:
    try:
        send(process, number)
    except PermissionError as error:
        raise CheckError(f"{run.name} is another user's: process {process.pid} may not be signalled") from error


def _kill_leftovers(state: RunState, sleep: Callable[[float], None]) -> None:
    deadline = time.monotonic() + KILLED_S
    while (left := leftovers(state)) and time.monotonic() < deadline:
        for process in left:
            send(process, signal.SIGKILL)
        sleep(0.05)


def _write_end(run: RunDir, attempt: int, world_size: int) -> None:
    """In place of a controller that could not."""
    record = {"exit_codes": [None] * world_size, "cancelled": True, "timed_out": False, "time": time.time()}
    write_json(run.end_record(attempt), {**record, "first": None})

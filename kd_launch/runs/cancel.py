"""Ends a local run from any shell, and leaves no process of it behind."""

import signal
import time
from collections.abc import Callable

from kd_launch.errors import CheckError
from kd_launch.local.processes import ProcessIdentity, is_alive, send, with_variable
from kd_launch.local.surroundings import RUN_VARIABLE
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runs.state import RunState
from kd_launch.runs.status import Status, build, gather

# The controller gives the ranks 10 s between TERM and KILL.
CONTROLLER_S = 20.0
KILLED_S = 5.0


def cancel(run: RunDir, sleep: Callable[[float], None] = time.sleep) -> tuple[Status, bool]:
    """Ends a run and returns what became of it, and whether it had ended already.

    Raises:
        CheckError: it runs on another machine, or is another user's.
        SpecError: the run folder cannot be read or written.
    """
    facts = gather(run, time.time())
    state, before = facts.state, build(facts)
    if state is None or state.controller is None:
        return before, True  # never started: there is nothing to end
    if facts.controller_lives is None and not before.ended:
        raise CheckError(f"{run.name} runs on {state.controller.host}: give `kd-launch cancel {run.name}` there")
    if not before.ended:
        _end_controller(run, state.controller, facts.attempt, sleep)
    _kill_leftovers(state, sleep)
    if not before.ended and not run.end_record(facts.attempt).exists():
        _write_end(run, facts.attempt, facts.plan.layout.world_size)
    return build(gather(run, time.time())), before.ended


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
    """Kills every process that was started for the run, in whatever session or group it is now."""
    deadline = time.monotonic() + KILLED_S
    while (left := with_variable(RUN_VARIABLE, state.run_dir)) and time.monotonic() < deadline:
        for process in left:
            send(process, signal.SIGKILL)
        sleep(0.05)


def _write_end(run: RunDir, attempt: int, world_size: int) -> None:
    """In place of a controller that could not."""
    record = {"exit_codes": [None] * world_size, "cancelled": True, "timed_out": False, "time": time.time()}
    write_json(run.end_record(attempt), {**record, "first": None})

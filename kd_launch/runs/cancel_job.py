"""Ends the job of a run on Slurm so that nothing of it comes back: a record of ours, then scancel, then a look."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kd_launch.commands import Runner
from kd_launch.errors import CheckError, SlurmRefusedError, SlurmSilentError
from kd_launch.run_dir import RunDir, alone, read_json, write_json
from kd_launch.runs.lost_job import ask_about, with_job_id
from kd_launch.runs.state import RunState, read_state
from kd_launch.slurm.call import ask

# Slurm gives processes KillWait (30 s) between TERM and KILL, and a node UnkillableStepTimeout (60 s) after that.
GONE_S = 120.0
LOOK_S = 1.0
AGAIN_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """What a cancel came to."""

    had_ended: bool
    """Already, and nothing was done."""
    note: str | None = None
    """What is still to come."""


def cancel_job(run: RunDir, state: RunState, runner: Runner, sleep: Callable[[float], None] = time.sleep) -> Outcome:
    """Ends the job, whatever it does: waits, runs, saves, is requeued.

    Raises:
        CheckError: it is another user's, or is being sent just now.
        SlurmSilentError: Slurm does not answer. What runs is not requeued all the same.
    """
    try:
        if state.job_id is None:
            state = _with_job_id(run, state, runner)
        answer = ask_about(state, runner)
    except SlurmSilentError as error:
        _forbid_requeue(run, state.job_id)
        raise SlurmSilentError(
            f"{error}\n{run.name} is not cancelled yet, but no attempt follows the present one; "
            "give `kd-launch cancel` again when Slurm answers"
        ) from error
    if state.job_id is None or answer is None or not answer.held:
        return Outcome(had_ended=True)
    _forbid_requeue(run, state.job_id)
    _scancel(run, state.job_id, runner)
    return Outcome(had_ended=False, note=_wait_until_gone(run, state, runner, sleep))


def _with_job_id(run: RunDir, state: RunState, runner: Runner) -> RunState:
    with alone(run):  # not while it is being sent: Slurm might not have it yet
        return with_job_id(run, read_state(run) or state, runner)


def allow_requeue(run: RunDir, earlier: tuple[str, ...]) -> None:
    """Takes back what an earlier cancel wrote, for a run that is resumed; not what one of the new job has written."""
    record = read_json(run.cancel_record)
    if record is not None and record.get("job_id") in (None, *earlier):
        run.cancel_record.unlink(missing_ok=True)


def _forbid_requeue(run: RunDir, job_id: str | None) -> None:
    """Written before scancel: the batch script, which may be about to requeue, reads it."""
    try:
        write_json(run.cancel_record, {"job_id": job_id, "time": time.time()})
    except PermissionError as error:
        raise CheckError(f"{run.name} is another user's: {run.path} may not be written") from error


def _scancel(run: RunDir, job_id: str, runner: Runner) -> None:
    """The leader's id, which ends every component."""
    try:
        ask(runner, ["scancel", job_id])
    except SlurmRefusedError as error:
        run.cancel_record.unlink(missing_ok=True)
        raise CheckError(f"{run.name}: job {job_id} may not be cancelled: {error}; is it another user's?") from error


def _wait_until_gone(run: RunDir, state: RunState, runner: Runner, sleep: Callable[[float], None]) -> str | None:
    """Returns when Slurm has let go of the job, or after long enough; then with what it still holds."""
    slept = since_asked = 0.0
    while (answer := ask_about(state, runner)) is not None and answer.held:
        words = ", ".join(dict.fromkeys(component.slurm_state for component in answer.components))
        if slept >= GONE_S:
            return f"Slurm has accepted it, but still holds job {answer.leader} ({words}); nothing of it is requeued"
        if since_asked >= AGAIN_S and any(component.slurm_state != "COMPLETING" for component in answer.components):
            _scancel(run, answer.leader, runner)  # it was being requeued just then, and has come back
            since_asked = 0.0
        sleep(LOOK_S)
        slept, since_asked = slept + LOOK_S, since_asked + LOOK_S
    return None

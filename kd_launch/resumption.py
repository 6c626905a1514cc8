"""A run that has ended goes on: the same script as another job, or the next attempt on this machine."""

import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kd_launch.commands import Runner
from kd_launch.errors import CheckError, MaybeSentError
from kd_launch.local.supervisor import Patience
from kd_launch.plan import RunPlan, read_run_plan
from kd_launch.run_dir import RunDir, alone, write_whole
from kd_launch.runs.cancel import has_ended_here, leftovers
from kd_launch.runs.cancel_job import allow_requeue
from kd_launch.runs.lost_job import ask_about, with_job_id
from kd_launch.runs.state import RunState, read_state, write_state
from kd_launch.scripts.render import render
from kd_launch.sending import Sleep, send_job, token_of
from kd_launch.slurm.states import worst
from kd_launch.submission import Caller, Submitted, start_local, submitted
from kd_launch.tokens import read_header


@dataclass(frozen=True)
class _Ended:
    """A run that may go on."""

    run: RunDir
    state: RunState
    plan: RunPlan


def resume(
    run: RunDir, caller: Caller, runner: Runner, sleep: Sleep = time.sleep, patience: Patience | None = None,
    replan: Callable[[RunPlan], RunPlan] | None = None,
) -> Submitted:  # fmt: skip
    """Starts a run again that has ended before it was done. Attempts count on, and nothing is overwritten.

    Args:
        replan: makes another plan of the run's; the one before is kept under another name.

    Raises:
        CheckError: it runs, is completed, was moved or was never started.
        SpecError: a file that it needs is gone.
        SlurmRefusedError: sbatch said no. The run is as it was.
        SlurmSilentError: Slurm does not answer. The run is as it was, unless it is a MaybeSentError.
    """
    with alone(run), ExitStack() as stack:
        ended = _read(run)
        if replan is not None:
            _refuse_unended(ended, runner)
            ended = stack.enter_context(_replanned(ended, replan(ended.plan)))
        started = (
            _send_again(ended, caller, runner, sleep)
            if ended.state.scheduler == "slurm"
            else _start_again(ended, caller, patience)
        )
    return submitted(ended.run, started.job_id, ended.plan.layout)


def _read(run: RunDir) -> _Ended:
    """What the folder says, if by that alone the run may go on."""
    plan, state = read_run_plan(run.plan), read_state(run)
    if state is None:
        raise CheckError(f"{run.name}: was made but never started; remove it and submit again")
    if Path(state.run_dir).resolve() != run.path.resolve():
        raise CheckError(f"{run.path}: was moved here from {state.run_dir}, which its script names; move it back")
    if any(run.done_record(attempt).exists() for attempt in run.attempt_numbers()):
        raise CheckError(f"{run.name} is COMPLETED: its student is {run.model}")
    return _Ended(RunDir(Path(state.run_dir)), state, plan)


def _refuse_unended(ended: _Ended, runner: Runner) -> None:
    if ended.state.scheduler == "slurm":
        _refuse_held(ended.run, with_job_id(ended.run, ended.state, runner), runner)
    else:
        _refuse_running(ended.run, ended.state)


@contextmanager
def _replanned(ended: _Ended, plan: RunPlan) -> Iterator[_Ended]:
    """The run with another plan and its script. Those before are kept, and come back if it is not started."""
    run, last = ended.run, max(ended.run.attempt_numbers(), default=0)
    script = render(plan.spec, plan.cluster, plan.layout, run.path, run.name, sys.executable)
    texts = {run.plan: plan.model_dump_json(indent=2) + "\n", run.script: script}
    before = {path: path.read_bytes() for path in texts}
    kept = {path.with_name(f"{path.stem}.until-attempt-{last}{path.suffix}"): data for path, data in before.items()}
    for path, data in kept.items():
        write_whole(path, data)
    with _replace_locked(run.plan, texts[run.plan].encode()):
        write_whole(run.script, texts[run.script].encode())
        try:
            yield _Ended(run, ended.state, plan)
        except MaybeSentError:
            raise
        except BaseException:
            for path, data in before.items():
                write_whole(path, data)
            for path in kept:
                path.unlink(missing_ok=True)
            raise


@contextmanager
def _replace_locked(path: Path, data: bytes) -> Iterator[None]:
    """Replaces a file that is locked by one that is, too: no other command comes between."""
    beside = path.with_name(f".{path.name}.next")
    write_whole(beside, data)
    with beside.open("r+b") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        beside.replace(path)
        yield


def _check_tokens(plan: RunPlan) -> None:
    """Raises SpecError where the stores that the run trains on are gone."""
    for store in (plan.tokens.train, plan.tokens.eval) if plan.tokens else ():
        if store is not None:
            read_header(Path(store))


def _known_jobs(state: RunState) -> tuple[str, ...]:
    """Of before the resume, the oldest first."""
    return (*state.earlier_jobs, *([state.job_id] if state.job_id else []))


# On Slurm


def _send_again(ended: _Ended, caller: Caller, runner: Runner, sleep: Sleep) -> RunState:
    run, before = ended.run, with_job_id(ended.run, ended.state, runner)
    _refuse_held(run, before, runner)
    _check_tokens(ended.plan)
    known = _known_jobs(before)
    changes = {"job_id": None, "earlier_jobs": known, "token": token_of(run, caller.now.timestamp())}
    try:
        sent = send_job(
            run, before.model_copy(update=changes), ended.plan.layout.world_size, caller.environ, runner, sleep
        )
    except MaybeSentError:
        raise
    except BaseException:
        write_state(run, before)
        raise
    allow_requeue(run, known)
    return sent


def _refuse_held(run: RunDir, state: RunState, runner: Runner) -> None:
    answer = ask_about(state, runner)
    if answer is not None and answer.held:
        word = worst(component.state for component in answer.components)
        raise CheckError(f"{run.name} has not ended: its job {state.job_id} is {word}; `kd-launch cancel` ends it")


# On this machine


def _start_again(ended: _Ended, caller: Caller, patience: Patience | None) -> RunState:
    run, before = ended.run, ended.state
    _refuse_running(run, before)
    _check_tokens(ended.plan)
    attempt = max(run.attempt_numbers(), default=0) + 1
    again = before.model_copy(update={"earlier_jobs": _known_jobs(before)})
    try:
        return start_local(run, ended.plan, again, attempt, caller.environ, patience)
    except BaseException:
        for folder in (run.attempt(attempt), run.role_log(attempt, "any").parent):
            shutil.rmtree(folder, ignore_errors=True)
        write_state(run, before)
        raise


def _refuse_running(run: RunDir, state: RunState) -> None:
    has_ended = has_ended_here(run, state)
    if has_ended is None:
        assert state.controller is not None
        raise CheckError(f"{run.name} runs on {state.controller.host}: only there it can be seen whether it has ended")
    if not has_ended or leftovers(state):
        raise CheckError(f"{run.name} has not ended; `kd-launch cancel` ends it")

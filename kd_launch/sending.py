"""A run folder becomes a job on Slurm, and the folder says which, even where sbatch does not."""

import time
from collections.abc import Callable, Mapping

from kd_launch.commands import Runner
from kd_launch.errors import MaybeSentError, SlurmRefusedError, SlurmSilentError
from kd_launch.run_dir import RunDir, job_name
from kd_launch.runs.lost_job import find_job
from kd_launch.runs.state import JobToken, RunState, write_state
from kd_launch.slurm.call import ask

# A job that sbatch has sent without hearing so shows up within seconds, once Slurm answers at all.
LOOKS_AFTER_S = (0.0, 1.0, 2.0, 4.0, 8.0)
SURE_LOOKS = 3
"""After so many answers without the job there is none."""

Sleep = Callable[[float], None]


def send_job(
    run: RunDir, state: RunState, world_size: int, environ: Mapping[str, str], runner: Runner, sleep: Sleep = time.sleep
) -> RunState:
    """Sends job.sbatch. The state's token is on disk before sbatch is called, and the id of the job after it.

    Raises:
        SlurmRefusedError: sbatch said no, and its words are in the message.
        SlurmSilentError: nobody answered it. A MaybeSentError where the job may be queued all the same; after any
            other error there is none.
    """
    assert state.token is not None
    write_state(run, state)
    try:
        sent = state.model_copy(update={"job_id": _send(run, state, world_size, environ, runner, sleep)})
        write_state(run, sent)
    except (SlurmRefusedError, SlurmSilentError):
        raise
    except BaseException:  # Ctrl-C, or a full disk
        _take_back(run, state, runner, sleep)
        raise
    return sent


def token_of(run: RunDir, now: float) -> JobToken:
    """By what the job of a run that is sent now is found again."""
    return JobToken(job_name=job_name(run.name), script=str(run.script), since=now)


def _send(
    run: RunDir, state: RunState, world_size: int, environ: Mapping[str, str], runner: Runner, sleep: Sleep
) -> str:
    """The id of the job, though sbatch may not have told it."""
    from kd_launch.slurm.executor import send  # here: only what sends needs submitit

    try:
        return send(run, world_size, environ, runner)
    except MaybeSentError as error:
        words = str(error)
    try:
        found = _look(state, runner, sleep)
    except SlurmSilentError as error:
        raise MaybeSentError(f"{words}\n{_way_out(run)}") from error
    if found is None:
        raise SlurmSilentError(f"{words}\nSlurm has no job of {run.name}: try again")
    return found


def _take_back(run: RunDir, state: RunState, runner: Runner, sleep: Sleep) -> None:
    """Cancels what may have been sent by now."""
    try:
        found = _look(state, runner, sleep)
        if found is not None:
            ask(runner, ["scancel", found])
    except (SlurmSilentError, SlurmRefusedError, KeyboardInterrupt) as error:
        words = str(error) or "interrupted"
        raise MaybeSentError(f"{words}, while a job was being taken back\n{_way_out(run)}") from error


def _look(state: RunState, runner: Runner, sleep: Sleep) -> str | None:
    """The id of the job, or None where Slurm says often enough that there is none. Raises SlurmSilentError."""
    assert state.token is not None
    answers, silence = 0, SlurmSilentError("not asked")
    for seconds in LOOKS_AFTER_S:
        sleep(seconds)
        try:
            found = find_job(state.token, state.earlier_jobs, runner)
        except SlurmSilentError as error:
            silence = error
            continue
        answers += 1
        if found is not None or answers == SURE_LOOKS:
            return found
    raise silence


def _way_out(run: RunDir) -> str:
    return (
        f"{run.path}: is kept, since Slurm may have taken the job all the same. When `sinfo` answers, "
        f"`kd-launch cancel` of that folder ends the job, `kd-launch status` finds it, and `kd-launch resume` sends "
        "it again if there is none"
    )

"""Which job is a run's: by its number where that is known, else by the token that was written before sbatch."""

from collections.abc import Collection
from contextlib import suppress

from kd_launch.commands import Runner
from kd_launch.run_dir import RunDir
from kd_launch.runs.state import JobToken, RunState, write_state
from kd_launch.slurm.jobs import JobAnswer, ask_by_name, ask_jobs


def find_job(token: JobToken, earlier: Collection[str], runner: Runner) -> str | None:
    """The id of the job that was sent with a token; None: Slurm knows of none.

    Args:
        earlier: jobs of the same run that are known already.

    Raises:
        SlurmSilentError: Slurm does not answer.
    """
    named = ask_by_name(runner, token.job_name, token.since)
    # The accounting does not tell the script of a job that has ended; its name holds the time of the run.
    ours = [job for job in named if job.script in (token.script, None) and job.job_id not in earlier]
    return max(ours, key=lambda job: (job.script is not None, job.submitted or 0.0)).job_id if ours else None


def with_job_id(run: RunDir, state: RunState, runner: Runner) -> RunState:
    """The state with the id of its job, where that was lost and Slurm knows it; state.json then has it too.

    Raises:
        SlurmSilentError: Slurm does not answer.
    """
    if state.job_id is not None or state.token is None:
        return state
    job_id = find_job(state.token, state.earlier_jobs, runner)
    if job_id is None:
        return state
    found = state.model_copy(update={"job_id": job_id})
    with suppress(OSError):  # of another user's run, say: the next one asks again
        write_state(run, found)
    return found


def ask_about(state: RunState, runner: Runner) -> JobAnswer | None:
    """What Slurm says of the run's job; None: it has no number, or Slurm does not know it.

    Raises:
        SlurmSilentError: Slurm does not answer.
    """
    answer = ask_jobs(runner, [state.job_id]).get(state.job_id) if state.job_id else None
    return answer if answer is not None and is_ours(state, answer) else None


def is_ours(state: RunState, answer: JobAnswer) -> bool:
    """Whether the job is not another's: a cluster that is set up anew counts from 1 again."""
    names = {component.name.strip() for component in answer.components if component.name}
    return not names or state.token is None or state.token.job_name.strip() in names

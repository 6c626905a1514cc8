"""Asks Slurm about jobs: squeue for what it holds, sacct for what it has let go of, at most one call of each."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kd_launch.commands import Runner
from kd_launch.errors import SlurmRefusedError, SlurmSilentError
from kd_launch.slurm.call import ask
from kd_launch.slurm.job_text import (
    SACCT_BY_NAME_FIELDS,
    SACCT_FIELDS,
    SQUEUE_BY_NAME_FIELDS,
    SQUEUE_FIELDS,
    ComponentAnswer,
    FoundJob,
    JobAnswer,
    read_sacct,
    read_sacct_by_name,
    read_squeue,
    read_squeue_by_name,
)

__all__ = ["ComponentAnswer", "FoundJob", "JobAnswer", "LookUp", "ask_by_name", "ask_jobs", "look_up"]

# The clocks of the machine that calls sbatch and of the controller may differ by so much.
_CLOCKS_S = 120.0


@dataclass(frozen=True)
class LookUp:
    """What Slurm answered about some jobs."""

    jobs: dict[str, JobAnswer]
    """By leader; of a job that is not here nothing is known: see `silent`."""
    silent: str | None
    """Why there may be more to know than Slurm has said; None: it does not know the others."""


def ask_jobs(run: Runner, leaders: Sequence[str]) -> dict[str, JobAnswer]:
    """What Slurm says of jobs, by leader; a job that neither squeue nor sacct knows is not in it.

    Raises:
        SlurmSilentError: Slurm, or the accounting that had to be asked, does not answer.
    """
    answer = look_up(run, leaders, leaders)
    if answer.silent is not None:
        raise SlurmSilentError(answer.silent)
    return answer.jobs


def look_up(run: Runner, leaders: Sequence[str], accounted: Collection[str]) -> LookUp:
    """Asks one squeue for all jobs, and one sacct for those of `accounted` that squeue does not know.

    Args:
        leaders: digits; of a het job its first component's number, which stands for all of them.
        accounted: the jobs whose end is worth a question to the accounting.
    """
    numbers = list(dict.fromkeys(leader for leader in leaders if leader.isdecimal()))
    if not numbers:
        return LookUp({}, None)
    jobs: dict[str, JobAnswer] = {}
    try:
        jobs = _wanted(read_squeue(_squeue(run, numbers)), numbers)
        left = [number for number in numbers if number not in jobs and number in accounted]
        if left:
            jobs |= _wanted(read_sacct(_sacct(run, left)), left)
    except SlurmSilentError as error:
        return LookUp(jobs, str(error))
    return LookUp(jobs, None)


def _wanted(found: dict[str, JobAnswer], numbers: Sequence[str]) -> dict[str, JobAnswer]:
    """A component's number brings its whole job, which nobody asked for."""
    return {leader: job for leader, job in found.items() if leader in numbers}


def ask_by_name(run: Runner, job_name: str, since: float) -> list[FoundJob]:
    """The jobs of a name that were submitted since: to find one whose number was lost.

    Args:
        since: Unix time before which the job was not sent.

    Raises:
        SlurmSilentError: Slurm does not answer.
    """
    told = _known(run, ["squeue", "-h", "-a", "-t", "all", "-n", job_name, "-O", _long_format(SQUEUE_BY_NAME_FIELDS)])
    found = read_squeue_by_name(told)
    if not found:
        start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since - _CLOCKS_S))
        argv = ["sacct", "-n", "-P", "-X", "-S", start, "--name", job_name]
        found = read_sacct_by_name(_accounted(run, [*argv, f"--format={','.join(SACCT_BY_NAME_FIELDS)}"]))
    return [job for job in found if job.submitted is None or job.submitted >= since - _CLOCKS_S]


def _squeue(run: Runner, numbers: Sequence[str]) -> str:
    return _known(run, ["squeue", "-h", "-t", "all", "-j", ",".join(numbers), "-O", _long_format(SQUEUE_FIELDS)])


def _long_format(fields: Sequence[str]) -> str:
    """Fields of any width with bars between them. -O, since -o has no letter for the restarts."""
    return ":0|,".join(fields) + ":0"


def _sacct(run: Runner, numbers: Sequence[str]) -> str:
    # Without -D, of a job that was requeued the last row only.
    return _accounted(run, ["sacct", "-n", "-P", "-X", "-j", ",".join(numbers), f"--format={','.join(SACCT_FIELDS)}"])


def _known(run: Runner, argv: Sequence[str]) -> str:
    """squeue's answer. It ends with an error when the only job it was asked for is unknown: an empty answer."""
    try:
        return ask(run, argv)
    except SlurmRefusedError as error:
        if "invalid job id" in str(error).lower():
            return ""
        raise SlurmSilentError(f"{error}; it answers no question now") from error


def _accounted(run: Runner, argv: Sequence[str]) -> str:
    """sacct's answer; an empty one where the cluster keeps no accounts."""
    try:
        return ask(run, argv)
    except SlurmRefusedError as error:
        if "accounting storage is disabled" in str(error).lower():
            return ""
        raise SlurmSilentError(f"{error}; it answers no question now") from error

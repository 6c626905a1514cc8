"""The text in which squeue and sacct tell of jobs becomes values. Nothing here asks them.

Both are asked for the fields below, with `|` between them, in words that mean the same from 20.11 to 25.11 (read in
src/squeue/opts.c and src/sacct/print.c of those branches); the fields that may hold anything stand last. Never --json:
its form depends on the version's plugins.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kd_launch.slurm.nodes import expand
from kd_launch.slurm.states import State, read_state_word

SQUEUE_FIELDS = ("JobArrayID", "State", "RestartCnt", "StartTime", "NodeList", "Name", "Reason")
SACCT_FIELDS = ("JobID", "State", "NodeList", "JobName")
SQUEUE_BY_NAME_FIELDS = ("JobArrayID", "SubmitTime", "Command")
SACCT_BY_NAME_FIELDS = ("JobID", "Submit")
# For seconds after the start sacct knows a job only by the step that asked for it.
_NO_NAME_YET = "allocation"

_JOB_ID = re.compile(
    r"(?P<leader>\d+)"
    r"(?:\+(?P<offset>\d+)|_(?P<task>\d+|\[[^\]]*\]?))?"  # of a het job, or of an array
    r"(?:\.(?P<step>[^.\s]+))?"
)


@dataclass(frozen=True)
class JobId:
    """A job's or a job step's number as Slurm prints it."""

    leader: str
    """Digits; of a het job its first component's."""
    offset: int | None
    """Of a component of a het job."""
    task: str | None
    """Of an array."""
    step: str | None
    """0, batch, or 0+1: a step's part in one component."""


def read_job_id(text: str) -> JobId | None:
    """None where it is no job id.

    >>> read_job_id("123+1"), read_job_id("123.0+1").step
    (JobId(leader='123', offset=1, task=None, step=None), '0+1')
    """
    match = _JOB_ID.fullmatch(text.strip())
    if match is None:
        return None
    offset = match["offset"]
    return JobId(match["leader"], None if offset is None else int(offset), match["task"], match["step"])


@dataclass(frozen=True)
class ComponentAnswer:
    """What Slurm says of one component; of a job that is no het job there is one."""

    job_id: str
    """123, or 123+1."""
    offset: int
    state: State
    slurm_state: str
    """Slurm's own word, in its long form: COMPLETING."""
    nodes: tuple[str, ...]
    reason: str | None
    start_estimate: str | None
    """Of a component that waits: local time, as Slurm writes it."""
    restarts: int | None
    """How often Slurm has started it again; sacct does not say."""
    source: Literal["squeue", "sacct"]
    name: str | None = None
    """The job's."""

    @property
    def held(self) -> bool:
        """Whether Slurm has not let go of it. What squeue does not know is held no more, whatever sacct still says."""
        return self.source == "squeue" and read_state_word(self.slurm_state).holds


@dataclass(frozen=True)
class JobAnswer:
    """What Slurm says of a job."""

    leader: str
    components: tuple[ComponentAnswer, ...]
    """By offset; at least one."""
    held: bool
    """Slurm holds the job: it waits, runs, is being ended or requeued."""


@dataclass(frozen=True)
class FoundJob:
    """A job of ours whose number was lost."""

    job_id: str
    """The leader's digits."""
    script: str | None
    """What was given to sbatch; None where only sacct knows the job."""
    submitted: float | None
    """Unix time; of a requeued job that of its last requeue."""


def read_squeue(text: str) -> dict[str, JobAnswer]:
    """Of squeue -O with SQUEUE_FIELDS, by leader. Lines that are torn, or not of this form, are passed over."""
    found = []
    for number, (state, restarts, start, nodes, name, reason) in _rows(text, len(SQUEUE_FIELDS)):
        meaning, names = read_state_word(state), expand(nodes)
        waits = meaning.state in ("PENDING", "REQUEUED") and not names
        answer = ComponentAnswer(
            job_id=_shown(number), offset=number.offset or 0, state=meaning.state, slurm_state=meaning.word,
            nodes=names, reason=_given(reason), start_estimate=_given(start) if waits else None,
            restarts=int(restarts) if restarts.isdecimal() else None, source="squeue", name=name,
        )  # fmt: skip
        found.append((number.leader, answer))
    return _by_leader(found)


def read_sacct(text: str) -> dict[str, JobAnswer]:
    """Of sacct -X -P with SACCT_FIELDS, by leader."""
    found = []
    for number, (state, nodes, name) in _rows(text, len(SACCT_FIELDS)):
        meaning = read_state_word(state)
        answer = ComponentAnswer(
            job_id=_shown(number), offset=number.offset or 0, state=meaning.state, slurm_state=meaning.word,
            nodes=expand(nodes), reason=None, start_estimate=None, restarts=None, source="sacct",
            name=None if name == _NO_NAME_YET else name,
        )  # fmt: skip
        found.append((number.leader, answer))
    return _by_leader(found)


def read_squeue_by_name(text: str) -> list[FoundJob]:
    """Of squeue -O with SQUEUE_BY_NAME_FIELDS: each job once."""
    rows = _rows(text, len(SQUEUE_BY_NAME_FIELDS))
    return _each_once(FoundJob(number.leader, _given(command), read_time(time)) for number, (time, command) in rows)


def read_sacct_by_name(text: str) -> list[FoundJob]:
    """Of sacct -X -P with SACCT_BY_NAME_FIELDS: each job once."""
    rows = _rows(text, len(SACCT_BY_NAME_FIELDS))
    return _each_once(FoundJob(number.leader, None, read_time(time)) for number, (time,) in rows)


def read_time(text: str) -> float | None:
    """Unix time of a moment that Slurm gives, which is this machine's local time; None where it gives none.

    >>> read_time("Unknown"), read_time("N/A")
    (None, None)
    """
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        return None


def _rows(text: str, fields: int) -> Iterator[tuple[JobId, list[str]]]:
    """The lines about jobs, not about their steps: the number, then the other fields."""
    for line in text.splitlines():
        first, *others = line.split("|", fields - 1)
        number = read_job_id(first)
        if number is not None and number.step is None and len(others) == fields - 1:
            yield number, others


def _shown(number: JobId) -> str:
    return number.leader if number.offset is None else f"{number.leader}+{number.offset}"


def _given(text: str) -> str | None:
    """None for Slurm's words for nothing."""
    return None if text.strip() in ("", "None", "N/A", "(null)", "Unknown") else text.strip()


def _by_leader(found: Sequence[tuple[str, ComponentAnswer]]) -> dict[str, JobAnswer]:
    """Of several rows about one component the last counts: an array's tasks, which are no jobs of ours, have many."""
    jobs: dict[str, dict[int, ComponentAnswer]] = {}
    for leader, component in found:
        jobs.setdefault(leader, {})[component.offset] = component
    return {leader: _job(leader, [parts[offset] for offset in sorted(parts)]) for leader, parts in jobs.items()}


def _job(leader: str, components: Sequence[ComponentAnswer]) -> JobAnswer:
    return JobAnswer(leader, tuple(components), held=any(component.held for component in components))


def _each_once(found: Iterable[FoundJob]) -> list[FoundJob]:
    jobs: dict[str, FoundJob] = {}
    for job in found:
        jobs.setdefault(job.job_id, job)
    return list(jobs.values())

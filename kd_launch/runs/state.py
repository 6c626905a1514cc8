"""state.json of a run folder: what was started, by which command, from which sources."""

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch import __version__
from kd_launch.commands import Runner
from kd_launch.errors import SpecError, first_problem
from kd_launch.local.processes import ProcessIdentity
from kd_launch.run_dir import RunDir, read_json, write_whole

_NAMED = ("submitit", "pydantic", "torch", "transformers", "datasets", "safetensors", "tokenizers")


class GitState(BaseModel):
    """The sources in the folder that the run was submitted from."""

    model_config = ConfigDict(frozen=True)

    sha: str
    dirty: bool
    """Whether tracked files differed from it, or untracked ones lay there."""


class JobToken(BaseModel):
    """By what a job of ours is found again where its id was lost: written before sbatch is called."""

    model_config = ConfigDict(frozen=True)

    job_name: str
    script: str
    """job.sbatch of the run folder, as Slurm shows the job's command."""
    since: float
    """Unix time; the job was not sent before."""


class RunState(BaseModel):
    """What was started."""

    model_config = ConfigDict(frozen=True)  # a later version may have written more

    run: str
    run_dir: str
    scheduler: Literal["slurm", "local"]
    job_id: str | None
    """The leader's digits; null while Slurm's answer is not known. Of a local run its controller's process."""
    token: JobToken | None = None
    """Of a job on Slurm."""
    earlier_jobs: tuple[str, ...] = ()
    """Of before each resume, the oldest first."""
    attempts: int
    """That were begun by kd-launch."""
    controller: ProcessIdentity | None
    """What watches the ranks of a local run."""
    created: float
    """Unix time."""
    command: list[str]
    folder: str
    """In which the command was given."""
    git: GitState | None
    """None: no repository there, or no git."""
    versions: dict[str, str]
    """Of the packages beside kd-launch, not of the job's interpreter where that is another."""


def read_state(run: RunDir) -> RunState | None:
    """The state of a run; None where it was made but not started.

    Raises:
        SpecError: the file cannot be read.
    """
    found = read_json(run.state)
    if found is None:
        return None
    try:
        return RunState.model_validate(found)
    except ValidationError as error:
        problem = first_problem(error.errors(), "the file")
        raise SpecError(f"{run.state}: {problem}; was it written by another version?") from error


def write_state(run: RunDir, state: RunState) -> None:
    write_whole(run.state, (json.dumps(state.model_dump(mode="json"), indent=2) + "\n").encode())


def git_state(folder: Path, run: Runner) -> GitState | None:
    """The commit that `folder` stands at; None where there is no repository, no commit or no git."""
    head = run(["git", "-C", str(folder), "rev-parse", "HEAD"], timeout=5)
    changes = run(["git", "-C", str(folder), "status", "--porcelain"], timeout=5)
    return GitState(sha=head.stdout.strip(), dirty=bool(changes.stdout.strip())) if head.ok and changes.ok else None


def versions(names: Sequence[str] = _NAMED) -> dict[str, str]:
    """Of kd-launch, Python and those of the packages that are installed here."""
    found = {"kd_launch": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

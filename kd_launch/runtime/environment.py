"""This process's place among the ranks, read once from the variables that its launcher set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kd_launch.errors import SpecError


@dataclass(frozen=True)
class Environment:
    """Who this process is."""

    launcher: Literal["torchrun", "submitit", "slurm", "single"]
    rank: int
    """Global, from 0."""
    world_size: int
    local_rank: int
    """Within the node; selects the GPU."""
    local_world_size: int
    """Ranks on this node."""
    attempt: int
    """Of the run, from 1."""
    launcher_pid: int | None = None
    """The process whose end this rank must not outlive, where the launcher names one."""


# Variables of each launcher: rank, world size, local rank. The first launcher whose rank is set counts: torchrun's
# names are also what a local script sets, and a rank started by hand inside a Slurm allocation sets them too.
_LAUNCHERS: tuple[tuple[Literal["torchrun", "submitit", "slurm"], str, str, str], ...] = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("submitit", "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
    ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


def read_environment(variables: Mapping[str, str]) -> Environment:
    """The environment of this process.

    Raises:
        SpecError: a launcher's variable is missing, no number, or out of range.
    """
    attempt = _number(variables, "KD_LAUNCH_ATTEMPT") if "KD_LAUNCH_ATTEMPT" in variables else 1
    for launcher, rank_name, world_name, local_name in _LAUNCHERS:
        if rank_name in variables:
            rank, world = _number(variables, rank_name), _number(variables, world_name)
            if rank >= world:
                raise SpecError(f"{rank_name} is {rank} but {world_name} is {world}; ranks count from 0")
            local = _number(variables, local_name)
            parent = _number(variables, "SUBMITIT_LOCAL_JOB_ID") if launcher == "submitit" else None
            return Environment(
                launcher, rank, world, local, _local_world_size(variables, launcher, world), attempt, parent
            )
    return Environment("single", 0, 1, 0, 1, attempt)


def _local_world_size(variables: Mapping[str, str], launcher: str, world: int) -> int:
    if launcher == "torchrun":
        return _number(variables, "LOCAL_WORLD_SIZE")
    if launcher == "slurm" and "SLURM_STEP_TASKS_PER_NODE" in variables:
        # Not tasks divided by nodes, which is wrong where the roles have different numbers of GPUs per node.
        counts = expand_tasks_per_node(variables["SLURM_STEP_TASKS_PER_NODE"])
        return counts[_number(variables, "SLURM_NODEID")]
    return world


def expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's compressed list of tasks per node, in full.

    >>> expand_tasks_per_node("4(x2),2")
    [4, 4, 2]
    """
    counts: list[int] = []
    for part in text.split(","):
        count, _, repeat = part.partition("(x")
        counts += [int(count)] * int(repeat.rstrip(")") or 1)
    return counts


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name)
    if text is None:
        raise SpecError(f"{name} is not set although this process was started as one of several ranks")
    if not text.isdigit():
        raise SpecError(f"{name} is '{text}' but must be a whole number")
    return int(text)

"""This process's place among the ranks, read once from the variables that its launcher set."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kd_launch.errors import SpecError

Launcher = Literal["torchrun", "submitit", "slurm", "single"]


@dataclass(frozen=True)
class Environment:
    """Who this process is."""

    launcher: Launcher
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
    host: str = field(default_factory=socket.gethostname)
    """This node, by the name that Slurm's commands take where Slurm started us."""
    het_groups: tuple[int, ...] = ()
    """Ranks of each het group, component 0 first, where Slurm tells them of this step."""


# Variables of each launcher: rank, world size, local rank. The first launcher whose rank is set counts: torchrun's
# names are also what a local script sets, and a rank started by hand inside a Slurm allocation sets them too.
_LAUNCHERS: tuple[tuple[Launcher, str, str, str], ...] = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("submitit", "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
    ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
_ATTEMPT = "KD_LAUNCH_ATTEMPT"


def read_environment(variables: Mapping[str, str]) -> Environment:
    """The environment of this process.

    Raises:
        SpecError: a launcher's variable is missing, no number, or out of range.
    """
    for launcher, rank_name, world_name, local_name in _LAUNCHERS:
        if rank_name in variables:
            rank, world = _number(variables, rank_name), _number(variables, world_name)
            if rank >= world:
                raise SpecError(f"{rank_name} is {rank} but {world_name} is {world}; ranks count from 0")
            local = _number(variables, local_name)
            if launcher == "slurm":
                return _slurm(variables, rank, world, local)
            size = _number(variables, "LOCAL_WORLD_SIZE") if launcher == "torchrun" else world
            parent = _number(variables, "SUBMITIT_LOCAL_JOB_ID") if launcher == "submitit" else None
            return Environment(launcher, rank, world, local, size, _attempt(variables), parent)
    return Environment("single", 0, 1, 0, 1, _attempt(variables))


def guess_environment(variables: Mapping[str, str], attempt: int) -> Environment:
    """For the failure record of a process whose variables are wrong: what of them can be read."""
    names = [rank for _, rank, _, _ in _LAUNCHERS if variables.get(rank, "").isdigit()]
    rank = int(variables[names[0]]) if names else 0
    given = variables.get(_ATTEMPT, "")
    return Environment("single", rank, rank + 1, 0, 1, int(given) if re.fullmatch("[1-9][0-9]*", given) else attempt)


def _attempt(variables: Mapping[str, str]) -> int:
    if _ATTEMPT not in variables:
        return 1
    attempt = _number(variables, _ATTEMPT)
    if attempt < 1:
        raise SpecError(f"{_ATTEMPT} is {attempt}; attempts count from 1")
    return attempt


# Slurm


def _slurm(variables: Mapping[str, str], rank: int, world: int, local: int) -> Environment:
    if "SLURM_STEP_TASKS_PER_NODE" not in variables:
        raise SpecError(
            "SLURM_STEP_TASKS_PER_NODE is not set: this process is in a Slurm job, but srun did not start it"
        )
    if _ATTEMPT not in variables:  # without it, a second attempt would write over the first
        raise SpecError(f"{_ATTEMPT} is not set: the job's script sets it; give srun --export=ALL to pass it on")
    host = variables.get("SLURMD_NODENAME") or socket.gethostname()
    size = _ranks_here(variables, rank) or _tasks_of_node(variables, host)
    if local >= size:
        raise SpecError(f"SLURM_LOCALID is {local} but {host} has {size} ranks of this step; local ranks count from 0")
    return Environment(
        "slurm", rank, world, local, size, _attempt(variables), None, host, _group_sizes(variables, world)
    )


def _ranks_here(variables: Mapping[str, str], rank: int) -> int:
    """How many ranks SLURM_GTIDS names, this node's; 0 where it is missing (some scripts unset it) or is not ours."""
    named = variables.get("SLURM_GTIDS", "").split(",")
    return len(named) if str(rank) in named else 0


def _tasks_of_node(variables: Mapping[str, str], node: str) -> int:
    """Of the step's list, whose order is that of its nodes' names.

    SLURM_NODEID is no index into it: that counts component by component, and a student's node may sort first.
    """
    counts = expand_tasks_per_node(variables["SLURM_STEP_TASKS_PER_NODE"])
    if len(set(counts)) == 1:
        return counts[0]
    listed = variables.get("SLURM_STEP_NODELIST", "")
    nodes = _node_names(listed)
    if len(nodes) != len(counts) or node not in nodes:
        raise SpecError(
            f"SLURM_STEP_NODELIST is '{listed}' and SLURM_STEP_TASKS_PER_NODE "
            f"'{variables['SLURM_STEP_TASKS_PER_NODE']}': they do not tell how many ranks {node} has"
        )
    return counts[nodes.index(node)]


def _node_names(listed: str) -> list[str]:
    """The names in the list's own order, which NodeSet would change."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException  # not above: hardly a rank needs it

    parts = re.findall(r"(?:[^,\[]|\[[^]]*\])+", listed)
    try:
        return [str(node) for part in parts for node in NodeSet(part)]
    except NodeSetException as error:
        raise SpecError(f"SLURM_STEP_NODELIST is '{listed}', which is no list of nodes: {error}") from error


def _group_sizes(variables: Mapping[str, str], world: int) -> tuple[int, ...]:
    """Ranks of each het group. Slurm tells those of the job; an uneven step has fewer, and then nothing is known."""
    sizes: list[int] = []
    while (name := f"SLURM_NTASKS_HET_GROUP_{len(sizes)}") in variables:
        sizes.append(_number(variables, name))
    return tuple(sizes) if sum(sizes) == world else ()


def expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's compressed list of tasks per node, in full.

    >>> expand_tasks_per_node("4(x2),2")
    [4, 4, 2]
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise SpecError(f"SLURM_STEP_TASKS_PER_NODE is '{text}' but must be a list such as '4(x2),2'")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name)
    if text is None:
        raise SpecError(f"{name} is not set although this process was started as one of several ranks")
    if not re.fullmatch("[0-9]{1,9}", text):
        raise SpecError(f"{name} is '{text}' but must be a whole number")
    return int(text)

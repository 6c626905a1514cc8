"""Which Slurm job an attempt is, and which of its nodes holds which rank: the batch script's variables and the plan."""

from collections.abc import Mapping
from dataclasses import dataclass

from kd_launch.errors import SpecError
from kd_launch.plan import Layout, Role
from kd_launch.slurm.nodes import expand


@dataclass(frozen=True)
class Place:
    """The job that this attempt is."""

    job_id: str
    """The leader's digits."""
    components: tuple[str, ...]
    """Slurm's numbers, by offset; a job that is no het job is one component."""
    restarts: int
    """How often Slurm had started the job before."""
    host: str
    """The batch script's."""
    nodes: tuple[tuple[str, ...], ...]
    """By component, in Slurm's order."""
    tasks_per_node: tuple[int, ...]
    """By component: of a full node; 0 where Slurm does not say."""


def read_place(variables: Mapping[str, str], host: str) -> Place:
    """What Slurm told the batch script.

    Args:
        host: for a Slurm that does not name the node.

    Raises:
        SpecError: this is no batch script of Slurm's.
    """
    if not variables.get("SLURM_JOB_ID", "").isdecimal():
        raise SpecError("SLURM_JOB_ID is not set: only the batch script of a run, inside its job, watches and decides")
    count = int(variables.get("SLURM_HET_SIZE") or 0)
    suffixes = [f"_HET_GROUP_{offset}" for offset in range(count)] or [""]
    return Place(
        job_id=variables["SLURM_JOB_ID"],
        components=tuple(variables.get(f"SLURM_JOB_ID{suffix}", "") for suffix in suffixes),
        restarts=int(variables.get("SLURM_RESTART_COUNT") or 0),
        host=variables.get("SLURMD_NODENAME") or host,
        nodes=tuple(expand(variables.get(f"SLURM_JOB_NODELIST{suffix}", "")) for suffix in suffixes),
        tasks_per_node=tuple(int(variables.get(f"SLURM_NTASKS_PER_NODE{suffix}") or 0) for suffix in suffixes),
    )


@dataclass(frozen=True)
class Part:
    """Ranks that srun numbers together, and the nodes that they fill one after another."""

    first: int
    """Global rank of its task 0."""
    ranks: int
    nodes: tuple[str, ...]
    per_node: int

    def host_of(self, rank: int) -> str | None:
        index = (rank - self.first) // self.per_node if self.per_node else 0
        return self.nodes[index] if index < len(self.nodes) else None


def parts_of(layout: Layout, place: Place) -> tuple[Part, ...]:
    """One part where one step finds each rank's role by its rank, else the teacher's and the student's."""
    if layout.colocated or layout.launch == "ranks":
        return (Part(0, layout.world_size, place.nodes[0], place.tasks_per_node[0]),)
    teacher, student = layout.teacher, layout.student
    if len(place.nodes) > 1:
        nodes = place.nodes[:2]
    else:  # one allocation with a part for each role, which takes the nodes in order
        nodes = (place.nodes[0][: teacher.nodes], place.nodes[0][teacher.nodes :])
    return (
        Part(0, teacher.gpus, nodes[0], teacher.gpus_per_node),
        Part(teacher.gpus, student.gpus, nodes[1], student.gpus_per_node),
    )


@dataclass(frozen=True)
class Seats:
    """Where each rank of the run sits."""

    layout: Layout
    place: Place

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts_of(self.layout, self.place)

    def role_of(self, rank: int) -> Role:
        return self.layout.role_of(rank)

    def host_of(self, rank: int) -> str:
        """The node of a rank; the batch script's where the node list does not tell."""
        part = next((part for part in self.parts if rank - part.first < part.ranks), self.parts[-1])
        return part.host_of(rank) or self.place.host

    def rank_of(self, host: str, task: int) -> int:
        """The global rank of a task as srun numbers it: from 0 within each part."""
        part = next((part for part in self.parts if host in part.nodes), self.parts[0])
        return min(part.first + task, self.layout.world_size - 1)

    def ranks_on(self, host: str) -> list[int]:
        return [rank for rank in range(self.layout.world_size) if self.host_of(rank) == host]

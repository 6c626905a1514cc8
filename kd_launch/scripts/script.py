"""Everything that a job's script shows, decided before any template sees it: a plan becomes a Script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_launch.cluster import Cluster
from kd_launch.errors import SpecError
from kd_launch.plan import Layout, Role, RoleLayout
from kd_launch.run_dir import RunDir, job_name, log_name
from kd_launch.scripts.directives import Allocation, batch_directives, component_directives, cores_per_rank
from kd_launch.scripts.rank_command import (
    Site,
    caretaker_command,
    check_length,
    check_line,
    container_options,
    rank_command,
    shared_by,
    site_of,
)
from kd_launch.spec import Spec

# Launches of heterogeneous jobs.
_COMPONENT_PER_ROLE = ("hetjob", "two_steps")


@dataclass(frozen=True)
class Part:
    """The ranks that one command line starts: one `:` part of the srun line, or one of two steps."""

    role: Role
    """`both` when colocated, and where one part starts the ranks of both roles."""
    ranks: range
    """Global ranks."""
    srun: tuple[str, ...]
    """Those of srun's options that are this part's own; none in a local script."""
    command: tuple[str, ...]
    """What each rank starts. The template of launch `ranks` adds --role and its value."""

    @property
    def log(self) -> str:
        """After which role its log is named."""
        return log_name(self.role)


@dataclass(frozen=True)
class Script:
    """The values of a template, as `job`. Directives are ready lines without "#SBATCH "; words are unquoted."""

    name: str
    """Of the run."""
    run_dir: str
    """Absolute."""
    components: tuple[tuple[str, ...], ...]
    """Directives of each component, component 0 first; none in a local script."""
    parts: tuple[Part, ...]
    """The teacher's, then the student's; a single one when colocated and with launch `ranks`."""
    world_size: int
    teacher_ranks: int
    """Global ranks below are teachers."""
    environment: Mapping[str, str]
    """Variables of every rank."""
    setup: tuple[str, ...]
    """Shell lines before the ranks start; none where the pools differ, and each rank runs its own."""
    caretaker: tuple[str, ...]
    """What watches the ranks of a Slurm job and decides what follows them; a verb and its words come after it."""


def decide(spec: Spec, cluster: Cluster, layout: Layout, run_dir: Path, run_name: str, python: str) -> Script:
    """The script of one run.

    Args:
        run_dir: absolute.
        python: the interpreter inside the job, where neither pool nor cluster names one.

    Raises:
        SpecError: a value or a layout that no script can hold; names the field.
    """
    slurm = cluster.scheduler == "slurm"
    assert run_dir.is_absolute(), run_dir
    check_line("run folder", str(run_dir), forbidden="%\\" if slurm else "")
    check_length("run folder", run_dir)
    check_line("name", run_name)
    sites = [site_of(cluster, cluster.pool(role.pool), python) for role in _roles(layout).values()]
    shared = shared_by(sites)
    commands = [rank_command(site, shared, str(run_dir)) for site in sites]
    return Script(
        name=run_name,
        run_dir=str(run_dir),
        components=_components(spec, cluster, layout, run_dir, run_name) if slurm else (),
        parts=_slurm_parts(layout, cluster, sites, commands) if slurm else _local_parts(layout, sites, commands),
        world_size=layout.world_size,
        teacher_ranks=len(layout.teacher_ranks),
        environment=shared.environment,
        setup=tuple(shared.setup.split("\n")) if shared.setup else (),
        caretaker=caretaker_command(sites, shared, python),
    )


# Where the ranks are


def _roles(layout: Layout) -> dict[Role, RoleLayout]:
    """The roles that ranks are started with, in rank order."""
    if layout.colocated:
        return {Role.BOTH: layout.student}
    return {Role.TEACHER: layout.teacher, Role.STUDENT: layout.student}


def _ranks(layout: Layout, role: Role) -> range:
    return layout.teacher_ranks if role is Role.TEACHER else layout.student_ranks


def _finds_role_by_rank(layout: Layout) -> bool:
    """Whether one part of the srun line starts the ranks of two roles."""
    return layout.launch == "ranks" and not layout.colocated


def _component_allocations(layout: Layout, cluster: Cluster) -> list[Allocation]:
    if layout.launch in _COMPONENT_PER_ROLE:
        return _own_nodes(layout, cluster)
    return [_joint_nodes(layout, cluster)]


def _part_allocations(layout: Layout, cluster: Cluster) -> list[Allocation]:
    if layout.launch == "ranks":
        return [_joint_nodes(layout, cluster)]
    return _own_nodes(layout, cluster)


def _own_nodes(layout: Layout, cluster: Cluster) -> list[Allocation]:
    """Nodes of its own for each role."""
    return [
        Allocation(cluster.pool(role.pool), role.nodes, role.gpus, role.gpus_per_node)
        for role in _roles(layout).values()
    ]


def _joint_nodes(layout: Layout, cluster: Cluster) -> Allocation:
    """One allocation for the ranks of both roles."""
    teacher, student = layout.teacher, layout.student
    if teacher.pool != student.pool:
        raise SpecError(
            f"launch: {layout.launch} takes both roles from one pool, but the teacher's is {teacher.pool} and the "
            f"student's {student.pool}; set launch: hetjob, or the same pool for both"
        )
    pool = cluster.pool(student.pool)
    per_node = max(teacher.gpus_per_node, student.gpus_per_node)
    if layout.shares_nodes and not layout.colocated:
        per_node = min(layout.world_size, pool.gpus_per_node)
    joint = Allocation(pool, layout.nodes, layout.world_size, per_node)
    if _finds_role_by_rank(layout):
        _check_filling(layout, joint)
    return joint


def _check_filling(layout: Layout, joint: Allocation) -> None:
    """One step fills node after node; refuses a layout whose nodes are filled in another way."""
    filled = [min(joint.ranks_per_node, joint.ranks - first) for first in range(0, joint.ranks, joint.ranks_per_node)]
    planned = [role.gpus_per_node for role in (layout.teacher, layout.student) for _ in range(role.nodes)]
    if len(filled) != joint.nodes or not (layout.shares_nodes or filled == planned):
        wanted = f"{joint.nodes} nodes" if layout.shares_nodes else f"nodes of {planned} ranks"
        raise SpecError(
            f"launch: ranks fills each node before the next, here to {filled} ranks, but the plan has {wanted}; "
            "set launch: hetstep or hetjob"
        )


# What the script says


def _components(
    spec: Spec, cluster: Cluster, layout: Layout, run_dir: Path, run_name: str
) -> tuple[tuple[str, ...], ...]:
    batch = batch_directives(cluster, str(RunDir(run_dir).batch_log))
    first, *others = (
        component_directives(allocation, cluster, spec.slurm, job_name(run_name))
        for allocation in _component_allocations(layout, cluster)
    )
    return ((*first, *batch), *others)


def _slurm_parts(
    layout: Layout, cluster: Cluster, sites: Sequence[Site], commands: Sequence[tuple[str, ...]]
) -> tuple[Part, ...]:
    allocations = _part_allocations(layout, cluster)
    _check_cores(allocations)
    if _finds_role_by_rank(layout):
        srun = _srun_options(allocations[0], sites[0])
        return (Part(Role.BOTH, range(layout.world_size), srun, commands[0]),)
    parts = []
    for i, role in enumerate(_roles(layout)):
        group = [f"--het-group={i}"] if layout.launch in _COMPONENT_PER_ROLE else []
        srun = (*group, *_srun_options(allocations[i], sites[i]))
        parts.append(Part(role, _ranks(layout, role), srun, (*commands[i], "--role", role.value)))
    return tuple(parts)


def _local_parts(layout: Layout, sites: Sequence[Site], commands: Sequence[tuple[str, ...]]) -> tuple[Part, ...]:
    for site in sites:
        if site.container is not None and site.container.is_srun_option:
            raise SpecError(
                f"container.runtime: {site.container.runtime} is a part of srun; with scheduler local use apptainer, "
                "singularity or none"
            )
    return tuple(
        Part(role, _ranks(layout, role), (), (*command, "--role", role.value))
        for role, command in zip(_roles(layout), commands, strict=True)
    )


def _srun_options(allocation: Allocation, site: Site) -> tuple[str, ...]:
    """Sizes in full, since srun takes the leader's for a part that leaves one out."""
    fill = allocation.ranks_per_node
    order = [f"--ntasks-per-node={fill}", "--distribution=block"]
    if not allocation.is_even:
        # Without it, srun puts 12 ranks on two nodes as 6 and 6 whatever --ntasks-per-node says; this makes 8 and 4.
        order = [f"--distribution=plane={fill}"]
    cores = cores_per_rank(allocation.pool)
    cpus = [f"--cpus-per-task={cores}"] if cores else []
    sizes = [f"--nodes={allocation.nodes}", f"--ntasks={allocation.ranks}"]
    return (*sizes, *order, *cpus, *container_options(site.container), *site.pool.srun)


def _check_cores(allocations: Sequence[Allocation]) -> None:
    """srun hands the cores per rank of one part on to a part that does not say its own."""
    known = {allocation.pool.cpus_per_node is not None: allocation.pool.name for allocation in allocations}
    if len(known) == 2:
        raise SpecError(
            f"pool {known[False]}: cpus_per_node is missing, but pool {known[True]} has one, and srun would hand its "
            "cores per rank on; write cpus_per_node of both pools or of neither"
        )

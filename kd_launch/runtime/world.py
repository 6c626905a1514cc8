"""All ranks as one world: how they meet, the groups of both roles, and how they part.

Every group and mesh is made here, on every rank, in the same order: torch numbers groups by the calls of each rank, so
a group made by its members alone would hang the next one that all make.
"""

import json
import resource
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.device_mesh import DeviceMesh

from kd_launch.errors import SpecError
from kd_launch.plan import Layout, Role, RunPlan
from kd_launch.run_dir import RunDir
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.links import Check, TeacherPlace, chains, fsdp_groups, lanes, tp_groups
from kd_launch.runtime.meeting import PATIENCE, meet
from kd_launch.runtime.preflight import Preflight, PreflightError


@dataclass(frozen=True)
class TeacherGroups:
    """A teacher rank's place, and what it shares with others of its role; None where there are no others."""

    place: TeacherPlace
    mesh: DeviceMesh | None
    """Axes "fsdp" and "tp", those of them with more than one rank."""
    chain: dist.ProcessGroup | None
    """The pipeline stages of its instance; only activations, forwards."""
    delivery: dist.ProcessGroup | None
    """The same ranks when colocated; only payloads, from the last stage to the others."""


@dataclass(frozen=True)
class World:
    """This rank's place, and the groups that it may use."""

    rank: int
    size: int
    role: Role
    role_rank: int
    """Within the role."""
    device: torch.device
    attempt: int
    store: Store
    checkpoint_group: dist.ProcessGroup | None = field(default=None, kw_only=True)
    """All student ranks on their CPUs: what a checkpoint's threads say to each other while the training goes on."""
    parting_group: dist.ProcessGroup | None = field(default=None, kw_only=True)
    """The same ranks: how they agree on the last step before they leave."""
    student_mesh: DeviceMesh
    """Axes "replicate" and "shard", or "shard" alone."""
    student_group: dist.ProcessGroup
    """All student ranks."""
    lane: dist.ProcessGroup | None
    """Only payloads between the teachers and students of one lane; None when colocated."""
    teacher: TeacherGroups | None
    """None on a rank that is a student only."""

    @property
    def is_first_student(self) -> bool:
        return self.role is not Role.TEACHER and self.role_rank == 0


def choose_device(run: RunPlan, role: Role, local_rank: int) -> torch.device:
    """The device of this rank: cpu in a CPU pool, else the GPU of its local rank."""
    layout = run.layout.teacher if role is Role.TEACHER else run.layout.student
    if run.cluster.pool(layout.pool).is_cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SpecError(
            f"pool {layout.pool} has {run.cluster.pool(layout.pool).gpu} GPUs but torch sees none on "
            f"{socket.gethostname()}; check the pool's gpu_directive and that torch was built for CUDA"
        )
    if local_rank >= torch.cuda.device_count():
        raise SpecError(
            f"{socket.gethostname()} shows {torch.cuda.device_count()} GPUs to local rank {local_rank}; "
            "the pool's gpus_per_node or gpu_directive is wrong"
        )
    return torch.device("cuda", local_rank)


def join(place: Environment, run: RunPlan, run_dir: RunDir, role: Role, preflight: Preflight) -> World:
    """Meets all other ranks, makes every group of the run, and tries each that this rank is in."""
    device = choose_device(run, role, place.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _allow_many_connections()
    with preflight.meeting():
        store, address = meet(place, run_dir, run.cluster)
        preflight.all_are_here(store, address)
    world = None
    for number, check in enumerate(preflight.checks):
        if place.rank in check.members and check.kind != "meeting":
            with preflight.check(number):
                if world is None:
                    world = _with_side_groups(_make_groups(place, run.layout, role, device, store), run.layout)
                else:
                    _try(check, world)
    assert world is not None, "the groups come first"
    return world


def _allow_many_connections() -> None:
    """Each is a file to the system, and of those a process may have 1,024 unless it asks for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems have a limit below the one they name
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def backend_of(device: torch.device) -> str:
    """Of the world and its groups. None of a GPU rank's exchanges tensors of its CPU: with gloo for these, too, each
    rank would open a connection to every other before the run begins."""
    return "gloo" if device.type == "cpu" else "cuda:nccl"


def _make_groups(
    place: Environment, layout: Layout, role: Role, device: torch.device, store: Store, backend: str | None = None
) -> World:  # fmt: skip
    """`backend`: of torch.distributed; None: that of the device."""
    backend = backend or backend_of(device)
    # No device_id: with it every new group would split the world's communicator, and unbatched sends would share it.
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=PATIENCE)
    teacher = _teacher_groups(layout, place.rank, device)
    student_mesh = _student_mesh(layout, device)
    student_group = dist.new_group(list(layout.student_ranks))
    lane = _own_group(((*teachers, *students) for teachers, students in lanes(layout)), place.rank)
    first = layout.student_ranks.start if role is not Role.TEACHER else 0
    return World(
        place.rank, place.world_size, role, place.rank - first, device, place.attempt, store, student_mesh,
        student_group, lane, teacher,
    )  # fmt: skip


def _with_side_groups(world: World, layout: Layout) -> World:
    """Groups of other threads than the main one: collectives of two threads on one group would mix."""
    groups = [dist.new_group(list(layout.student_ranks), backend="gloo") for _ in range(2)]
    if world.rank not in layout.student_ranks:
        return world
    return replace(world, checkpoint_group=groups[0], parting_group=groups[1])


def _own_group(groups: Iterable[tuple[int, ...]], rank: int) -> dist.ProcessGroup | None:
    """Makes every one of the groups; the one that this rank is in."""
    own = None
    for members in groups:
        group = dist.new_group(list(members))
        if rank in members:
            own = group
    return own


def _teacher_groups(layout: Layout, rank: int, device: torch.device) -> TeacherGroups | None:
    tp, fsdp = _own_group(tp_groups(layout), rank), _own_group(fsdp_groups(layout), rank)
    chain = _own_group(chains(layout), rank)
    delivery = _own_group(chains(layout), rank) if layout.colocated else None
    if rank not in layout.teacher_ranks:
        return None
    place = TeacherPlace.of(layout.teacher, rank)
    axes = {"fsdp": fsdp, "tp": tp}
    groups = {name: group for name, group in axes.items() if group is not None}
    mesh = None
    if groups:
        size = layout.teacher.fsdp * layout.teacher.tp
        first = rank // size * size
        ranks = torch.arange(first, first + size, dtype=torch.int).view([group.size() for group in groups.values()])
        own = list(groups.values())
        mesh = DeviceMesh.from_group(
            own if len(own) > 1 else own[0], device.type, ranks if len(own) > 1 else None, mesh_dim_names=tuple(groups)
        )
    return TeacherGroups(place, mesh, chain, delivery)


def _try(check: Check, world: World) -> None:
    """Opens the connections of a group or of a pair while nothing is in flight yet.

    With NCCL each pair has a communicator of its own, and pairs that are opened in different orders wait for ever.
    """
    value = torch.full((1,), float(world.rank), device=world.device)
    expected = float(check.members[0] if check.is_message else sum(check.members))
    group = _group_of(check, world)
    if not check.is_message:
        dist.all_reduce(value, group=group)
    elif world.rank == check.members[0]:
        dist.send(value, check.members[1], group=group)
    else:
        dist.recv(value, check.members[0], group=group)
    if value.item() != expected:  # waits for the device, too
        raise PreflightError(f"{check.what}: {value.item()} came instead of {expected}")


def _group_of(check: Check, world: World) -> dist.ProcessGroup | None:
    teacher = world.teacher
    match check.kind:
        case "lane":
            return world.lane
        case "students":
            return world.student_group
        case "shard" | "replicate":
            return world.student_mesh.get_group(check.kind)
    assert teacher is not None
    if check.kind in ("chain", "delivery"):
        return teacher.chain if check.kind == "chain" else teacher.delivery
    assert teacher.mesh is not None
    return teacher.mesh.get_group(check.kind)


def _student_mesh(layout: Layout, device: torch.device) -> DeviceMesh:
    """Shards are neighbours in rank, so that one shard group lies on as few nodes as possible."""
    student = layout.student
    ranks = torch.tensor(layout.student_ranks, dtype=torch.int)
    if student.replicas == 1:
        return DeviceMesh(device.type, ranks, mesh_dim_names=("shard",))
    return DeviceMesh(device.type, ranks.view(student.replicas, student.fsdp), mesh_dim_names=("replicate", "shard"))


def agree(world: World, facts: dict[str, object], progress: Progress) -> dict[str, object]:
    """Compares facts that every rank derived by itself with the first student's, which are returned: they may say more.

    Raises:
        SpecError: names the fact that differs: ranks would work on different data without a word.
    """
    mine = json.dumps(facts, sort_keys=True)
    if world.is_first_student:
        world.store.set("start", mine)
    with progress.waiting("the first student's facts"):
        theirs = json.loads(world.store.get("start").decode())
    for name, value in json.loads(mine).items():
        if theirs.get(name) != value:
            raise SpecError(f"rank {world.rank}: its {name} is {value} but the first student's is {theirs.get(name)}")
    return dict(theirs)


def leave(world: World, run_dir: RunDir, progress: Progress, settle: Callable[[], None]) -> None:
    """Parts from the others: nobody closes a connection before everybody is done with it; rank 0, which serves the
    store, goes last. Once the run is done, it does not matter who is gone already.

    Args:
        settle: ends what else of this rank waits at the store; called when every rank has left.
    """
    try:
        _part(world, progress, settle)
    except RuntimeError:
        if not run_dir.done_record(world.attempt).exists():
            raise
    if world.device.type == "cpu":
        with suppress(RuntimeError):
            dist.destroy_process_group()
    # NCCL's end with the process: to close the communicator of a pair, both must come to it in the same order.


def _part(world: World, progress: Progress, settle: Callable[[], None]) -> None:
    ranks = range(world.size)
    world.store.set(f"left/{world.rank}", "1")
    with progress.waiting("all ranks to be done"):
        world.store.wait([f"left/{rank}" for rank in ranks], PATIENCE)
    settle()
    world.store.set(f"gone/{world.rank}", "1")
    if world.rank == 0:
        with progress.waiting("all ranks to be gone"):
            world.store.wait([f"gone/{rank}" for rank in ranks], PATIENCE)

"""All ranks as one world: how they meet, the groups of both roles, and how they part.

Every group and mesh is made here, on every rank, in the same order: torch numbers groups by the calls of each rank, so
a group made by its members alone would hang the next one that all make.
"""

import json
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from math import gcd
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh

from kd_launch.cluster import Cluster
from kd_launch.errors import SpecError
from kd_launch.plan import Layout, Role, RunPlan, unsupported_by_runtime
from kd_launch.run_dir import RunDir, read_json, write_json
from kd_launch.runtime.environment import Environment

# Ranks may wait for each other while one of them loads a large model; death of a peer is noticed at once all the same.
PATIENCE = timedelta(minutes=30)


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
    student_mesh: DeviceMesh
    """Axes "replicate" and "shard", or "shard" alone."""
    student_group: dist.ProcessGroup
    """All student ranks."""
    lane: dist.ProcessGroup | None
    """Only payloads between the teachers and students of one lane; None when colocated."""

    @property
    def is_first_student(self) -> bool:
        return self.role is not Role.TEACHER and self.role_rank == 0


def lanes(layout: Layout) -> list[list[int]]:
    """The global ranks of each lane: teachers, then students, that exchange payloads only among themselves.

    There are gcd(teacher replicas, student ranks) lanes, as many as keep every replica equally busy.
    """
    if layout.colocated:
        return []
    teachers, students = layout.teacher_ranks, layout.student_ranks
    count = gcd(len(teachers), len(students))
    return [[*teachers[lane::count], *students[lane::count]] for lane in range(count)]


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


def check_place(environment: Environment, run: RunPlan, role: Role) -> None:
    """Refuses a rank that the plan does not have.

    Raises:
        SpecError: wrong number of ranks, wrong role for this rank, or a layout that this version does not run.
    """
    layout = run.layout
    if unsupported := unsupported_by_runtime(layout):
        raise SpecError(
            f"plan.json: this version's runtime does not run {unsupported}; submit again to get another plan"
        )
    if environment.world_size != layout.world_size:
        raise SpecError(f"{environment.world_size} ranks were started but the plan has {layout.world_size}")
    if role is not layout.role_of(environment.rank):
        planned = layout.role_of(environment.rank)
        raise SpecError(f"rank {environment.rank} was started as {role} but the plan makes it {planned}")


def join(environment: Environment, run: RunPlan, run_dir: RunDir, role: Role) -> World:
    """Meets all other ranks and makes every group of the run."""
    layout = run.layout
    device = choose_device(run, role, environment.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _meet(environment, run_dir, meeting_host(run.cluster))
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    # No device_id: with it every new group would split the world's communicator, and unbatched sends would share it.
    dist.init_process_group(
        backend, store=store, rank=environment.rank, world_size=environment.world_size, timeout=PATIENCE
    )
    student_mesh = _student_mesh(layout, device)
    student_group = dist.new_group(list(layout.student_ranks))
    lane = None
    for ranks in lanes(layout):
        group = dist.new_group(ranks)
        if environment.rank in ranks:
            lane = group
            _warm_up(group, device)
    first = layout.student_ranks.start if role is not Role.TEACHER else 0
    return World(
        environment.rank, environment.world_size, role, environment.rank - first, device, environment.attempt, store,
        student_mesh, student_group, lane,
    )  # fmt: skip


def _student_mesh(layout: Layout, device: torch.device) -> DeviceMesh:
    """Shards are neighbours in rank, so that one shard group lies on as few nodes as possible."""
    student = layout.student
    ranks = torch.tensor(layout.student_ranks, dtype=torch.int)
    if student.replicas == 1:
        return DeviceMesh(device.type, ranks, mesh_dim_names=("shard",))
    return DeviceMesh(device.type, ranks.view(student.replicas, student.fsdp), mesh_dim_names=("replicate", "shard"))


def _warm_up(group: dist.ProcessGroup, device: torch.device) -> None:
    """Opens the lane's connections while nothing is in flight yet."""
    dist.all_reduce(torch.zeros(1, device=device), group=group)


def meeting_host(cluster: Cluster) -> str:
    """How other ranks reach this one: its host name as the site resolves it; on a local cluster the loopback address,
    since the name of a laptop or container may resolve to nothing."""
    return "127.0.0.1" if cluster.scheduler == "local" else socket.gethostname() + cluster.host_suffix


def _meet(environment: Environment, run_dir: RunDir, host: str) -> Store:
    """The store of this attempt: rank 0 serves it on a free port and writes where, and a secret, to a file."""
    path = run_dir.store_address(environment.attempt)
    if environment.rank == 0:
        server = TCPStore(host, 0, is_master=True, timeout=PATIENCE, wait_for_workers=False)
        secret = secrets.token_hex(16)
        write_json(path, {"host": host, "port": server.port, "secret": secret}, mode=0o600)
        return PrefixStore(secret, server)
    address = _wait_for_address(path, environment.rank)
    client = TCPStore(str(address["host"]), int(str(address["port"])), is_master=False, timeout=PATIENCE)
    return PrefixStore(str(address["secret"]), client)


def _wait_for_address(path: Path, rank: int) -> dict[str, object]:
    deadline = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < deadline:
        if (address := read_json(path)) is not None:
            return address
        time.sleep(0.05)
    raise SpecError(f"rank {rank}: rank 0 has not written {path} after {PATIENCE}; does every node see the run root?")


def agree(world: World, facts: dict[str, object]) -> None:
    """Compares facts that every rank derived by itself with the first student's.

    Raises:
        SpecError: names the fact that differs: ranks would work on different data without a word.
    """
    mine = json.dumps(facts, sort_keys=True)
    if world.is_first_student:
        world.store.set("start", mine)
    theirs = json.loads(world.store.get("start").decode())
    for name, value in json.loads(mine).items():
        if theirs.get(name) != value:
            raise SpecError(f"rank {world.rank}: its {name} is {value} but the first student's is {theirs.get(name)}")


def leave(world: World) -> None:
    """Parts from the others: nobody closes a connection before everybody is done with it; rank 0, which serves the
    store, goes last."""
    ranks = range(world.size)
    world.store.set(f"left/{world.rank}", "1")
    world.store.wait([f"left/{rank}" for rank in ranks], PATIENCE)
    world.store.set(f"gone/{world.rank}", "1")
    if world.rank == 0:
        world.store.wait([f"gone/{rank}" for rank in ranks], PATIENCE)
    with suppress(RuntimeError):
        dist.destroy_process_group()

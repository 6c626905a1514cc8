"""What every layout of a search shares: the pair of models on their data (Setting), and a pool's hardware (Site)."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from kd_launch.architecture import Architecture
from kd_launch.catalog import Engine, Gpu
from kd_launch.cluster import Pool
from kd_launch.cost.collectives import Fabric, fabric_of
from kd_launch.cost.compute import WIDTH, Attention, Device, device_of, threads_of
from kd_launch.cost.constants import Constants
from kd_launch.cost.sizes import Sizes, sizes_of
from kd_launch.cost.trained import Trained
from kd_launch.cost.transport import payload_bytes_per_token
from kd_launch.plan import Payload
from kd_launch.spec import Dtype


class TeacherDegrees(NamedTuple):
    """How one copy of the teacher is split."""

    fsdp: int
    tp: int
    pp: int

    @property
    def sender_gpus(self) -> int:
        """GPUs that work on one micro-batch together; every fsdp rank has micro-batches of its own."""
        return self.tp * self.pp

    @property
    def gpus(self) -> int:
        return self.fsdp * self.tp * self.pp


class StudentDegrees(NamedTuple):
    """How the student's training state lies on its ranks, and what is computed or gathered twice."""

    replicas: int
    fsdp: int
    recompute: bool
    """Activations are computed again in the backward."""
    reshard: bool | None
    """Gathered layers are freed after the forward; None where nothing is gathered."""
    head_shards: int = 1
    """Ranks of a shard group over which the teacher's head is spread; 1: each that needs it holds it whole."""


@dataclass(frozen=True, eq=False)
class Setting:
    """A teacher and a student on sequences of one length. Compared by identity, which makes it a cheap cache key."""

    teacher: Architecture
    student: Architecture
    sequence_length: int
    teacher_dtype: Dtype | Literal["float8"]
    student_dtype: Dtype | Literal["float8"]
    top_k: int
    compiled: bool
    """The layers are."""
    engine: Engine
    constants: Constants
    attention: Attention = "flash"
    fused_loss: bool = False
    """The loss reads and writes each logit but a few times: compiled on a GPU, in blocks that a CPU's caches hold."""

    @cached_property
    def teacher_sizes(self) -> Sizes:
        return sizes_of(self.teacher)

    @cached_property
    def student_sizes(self) -> Sizes:
        return sizes_of(self.student)

    @cached_property
    def _trained(self) -> dict["Site", Trained]:
        return {}

    def trained(self, site: "Site") -> Trained:
        """The student on a pool's devices, one value per site."""
        found = self._trained.get(site)
        if found is None:
            assert site.student_device is not None
            found = self._trained[site] = Trained(
                model=self.student,
                sizes=self.student_sizes,
                device=site.student_device,
                fabric=site.fabric,
                engine=site.engine(self.engine),
                sequence_length=self.sequence_length,
                attention=self.attention,
                compiled=self.compiled,
                hiding=site.hiding(self.engine),
                copies=self.constants.links.cpu_copies if site.pool.is_cpu else 0.0,
            )
        return found

    @property
    def vocabulary(self) -> int:
        """Entries that both models have; what is more is padding."""
        return min(self.teacher.vocabulary, self.student.vocabulary)

    @property
    def loss_traffic(self) -> float:
        """Bytes per token and vocabulary entry of the loss's elementwise work."""
        time = self.constants.time
        return time.fused_loss_bytes if self.fused_loss else time.loss_bytes

    @property
    def teacher_width(self) -> int:
        return WIDTH[self.teacher_dtype]

    @property
    def student_width(self) -> int:
        return WIDTH[self.student_dtype]

    def payload_bytes_per_token(self, payload: Payload) -> float:
        return payload_bytes_per_token(
            payload,
            hidden=self.teacher.hidden,
            vocabulary=self.vocabulary,
            width=self.teacher_width,
            top_k=self.top_k,
        )


@dataclass(frozen=True, eq=False)
class Site:
    """A pool as the cost model sees it. Compared by identity, as Setting is."""

    pool: Pool
    gpu: Gpu
    fabric: Fabric
    teacher_device: Device | None
    """None: this hardware cannot compute in the role's dtype."""
    student_device: Device | None
    memory_limit_gib: float
    """What a GPU, or a process of a CPU pool, may use."""
    context_gib: float
    """Of it, what every process takes before any tensor."""
    loss_chunk_mib: float
    """Float32 logits that the loss multiplies at a time."""
    loss_block_mib: float
    """And compares at a time."""

    def hiding(self, engine: Engine) -> float:
        """Share of compute behind which communication can hide. On a CPU the same cores do both."""
        return 0.0 if self.pool.is_cpu else engine.overlap

    def engine(self, engine: Engine) -> Engine:
        """As calibrated on this pool."""
        factors = self.pool.calibration
        if factors is None:
            return engine
        return replace(
            engine,
            teacher_factor=engine.teacher_factor * factors.teacher,
            compute_factor=engine.compute_factor * factors.student,
            optimizer_bytes_per_parameter=engine.optimizer_bytes_per_parameter * factors.optimizer,
        )

    @property
    def loss_factor(self) -> float:
        """Of the loss's time, as calibrated."""
        return 1.0 if self.pool.calibration is None else self.pool.calibration.loss

    @property
    def fresh_memory_factor(self) -> float:
        """Of what memory costs that a process has not touched, as calibrated."""
        return 1.0 if self.pool.calibration is None else self.pool.calibration.fresh_memory

    @property
    def crowding(self) -> float:
        """Share of a node's CPU cores that one rank's threads take; 0 on GPUs, which no two ranks share."""
        if not self.pool.is_cpu:
            return 0.0
        return threads_of(self.pool) / (self.pool.cpus_per_node or self.pool.gpus_per_node)

    @property
    def can_compute(self) -> bool:
        """Both roles."""
        return self.teacher_device is not None and self.student_device is not None


def site_of(pool: Pool, gpu: Gpu, teacher_dtype: str, student_dtype: str, constants: Constants) -> Site:
    """The hardware of a pool: the catalog's GPU with what the cluster file says of it."""
    memory = constants.memory
    if gpu.memory_gib is not None:
        total = gpu.memory_gib
    else:
        total = memory.cpu_gib if pool.memory_gib is None else pool.memory_gib / pool.gpus_per_node
    return Site(
        pool=pool,
        gpu=gpu,
        fabric=fabric_of(pool, gpu, constants.links),
        teacher_device=device_of(pool, gpu, teacher_dtype, constants.time),
        student_device=device_of(pool, gpu, student_dtype, constants.time),
        memory_limit_gib=memory.usable * total,
        context_gib=memory.cpu_context_gib if pool.is_cpu else memory.context_gib,
        loss_chunk_mib=memory.cpu_loss_chunk_mib if pool.is_cpu else memory.loss_chunk_mib,
        loss_block_mib=memory.cpu_loss_block_mib if pool.is_cpu else memory.loss_block_mib,
    )

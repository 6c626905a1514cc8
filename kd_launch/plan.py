"""The planner's answer as values: a Plan holds Layouts, a Layout one RoleLayout per role; a job reads a RunPlan.

Field names are those of the JSON that programs read (`plan --json`, plan.json): keys are added, never renamed.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kd_launch import __version__
from kd_launch.cluster import Cluster, Factors
from kd_launch.errors import SpecError, first_problem
from kd_launch.probe import ProbeOrder
from kd_launch.spec import Spec

VALUE = ConfigDict(frozen=True, extra="forbid")

Payload = Literal["hidden_states", "logits", "top_k"]
Launch = Literal["hetjob", "hetstep", "ranks", "two_steps"]


class Role(StrEnum):
    """What a rank does. `BOTH` on the command line of a colocated rank."""

    TEACHER = "teacher"
    STUDENT = "student"
    BOTH = "both"


class Interval(BaseModel):
    """A predicted figure with its uncertainty."""

    model_config = VALUE

    p10: float
    p50: float
    p90: float


class RoleLayout(BaseModel):
    """How one role is laid over nodes and GPUs."""

    model_config = VALUE

    pool: str
    partition: str | None
    nodes: int
    gpus_per_node: int
    """GPUs of this role on each of its nodes."""
    gpus: int
    replicas: int
    fsdp: int
    tp: int = 1
    pp: int = 1
    reshard_after_forward: bool | None = None
    """Of the student's fsdp; null for the teacher, whose layers are always freed again."""
    activation_recompute: Literal["none", "full"] | None = None
    """Of the student; null for the teacher."""
    head_shards: int = 1
    """Of the student: ranks over which the teacher's head is spread; 1: each that needs it holds it whole."""
    micro_batch_size: int
    """Sequences in one forward."""
    memory_gib: float
    """Predicted peak per GPU (per process in a CPU pool)."""
    memory_limit_gib: float
    """What a GPU (a process) may use."""
    memory_parts_gib: dict[str, float] = {}
    """`memory_gib` by what it holds."""

    @property
    def data_parallel(self) -> int:
        """Ranks, or groups of tp * pp ranks, that each work on micro-batches of their own."""
        return self.replicas * self.fsdp

    @property
    def is_split(self) -> bool:
        """Whether no rank holds the whole model by itself."""
        return self.fsdp * self.tp * self.pp > 1


class Layout(BaseModel):
    """Both roles on a cluster, with what the cost model predicts."""

    model_config = VALUE

    placement: Literal["disjoint", "colocated"]
    launch: Launch | None
    """How Slurm starts both roles; null on a local cluster."""
    shares_nodes: bool
    """Whether one node holds ranks of both roles."""
    teacher: RoleLayout
    student: RoleLayout
    payload: Payload
    payload_bytes_per_token: float
    prefetch: int
    """Micro-batches that each teacher works ahead; 0 when colocated."""
    nodes: int
    gpus: int
    """Colocated GPUs count once."""
    global_batch_size: int
    grad_accumulation_steps: int
    step_seconds: Interval
    samples_per_second: float
    tokens_per_second: float
    gpu_hours: float
    """Of the whole run, over all allocated GPUs, idle ones too."""
    gpus_idle: int
    """Allocated GPUs without a rank."""
    teacher_seconds: float
    student_seconds: float
    transport_seconds: float
    limited_by: Literal["teacher", "student", "transport"]

    @property
    def colocated(self) -> bool:
        return self.placement == "colocated"

    @property
    def world_size(self) -> int:
        """Ranks of the run: every GPU of both roles; colocated GPUs hold one rank for both."""
        return self.student.gpus if self.colocated else self.teacher.gpus + self.student.gpus

    @property
    def teacher_ranks(self) -> range:
        """Global ranks of the teacher: the first ones."""
        return range(self.teacher.gpus)

    @property
    def student_ranks(self) -> range:
        """Global ranks of the student: after the teacher's, or the same when colocated."""
        return range(self.world_size - self.student.gpus, self.world_size)

    def role_of(self, rank: int) -> Role:
        """The role that global rank `rank` is started with."""
        if self.colocated:
            return Role.BOTH
        return Role.TEACHER if rank in self.teacher_ranks else Role.STUDENT


class Inflection(BaseModel):
    """Where the best regime changes."""

    model_config = VALUE

    quantity: str
    value: float
    below: str
    above: str


class Knee(BaseModel):
    """Where the front of step time and GPU-hours bends: beyond it, 1 % of time costs more than 1 % of GPU-hours."""

    model_config = VALUE

    layout: Layout
    settings: list[str]
    """What `--set` takes, one by one, to choose it; empty where it is chosen already."""


class PaperLayout(BaseModel):
    """A layout of arXiv 2606.27797, such as "(2-0)", on one engine, with the largest micro-batch that fits."""

    model_config = VALUE

    name: str
    engine: str
    """Of the catalog."""
    micro_batch_size: int
    step_seconds: float
    samples_per_second: float
    memory_gib: float
    fits: bool


class Explanation(BaseModel):
    """One candidate, explained."""

    model_config = VALUE

    number: int
    """Its place among the candidates, from 1."""
    layout: Layout
    terms: dict[str, float]
    """Seconds of a step by what they are spent on, "role: what"; roles apart spend theirs at the same time."""
    binding: str
    """The term that sets the pace."""
    waits: dict[str, float]
    """Seconds of a step that each role waits for the other."""
    against: str
    """Why the next best lost against the choice; of another candidate, why it lost."""
    placement: str
    """Why both roles on the same GPUs win, or lose."""
    distances: list[str]
    """How far the next change of regime is."""
    paper: list[PaperLayout] = []
    """Of the choice: the paper's layouts on all GPUs."""


class Calibrated(BaseModel):
    """The calibration that a plan's times contain."""

    model_config = VALUE

    file: str | None
    """None: the factors stand in the cluster file, or in the plan of an earlier run."""
    date: str | None
    """UTC."""
    pools: dict[str, Factors]
    """Factors of time, by pool."""


class Search(BaseModel):
    """How the choice was found."""

    model_config = VALUE

    evaluated: int
    rejected: dict[str, int]
    """Reason -> number of layouts."""
    seconds: float


class Plan(BaseModel):
    """The planner's whole answer."""

    model_config = VALUE

    name: str
    chosen: Layout
    candidates: list[Layout]
    """Best first."""
    baseline: Layout
    """TRL's layout on our engine."""
    baseline_engine_factor: float
    """TRL's engine against ours; not in the baseline's numbers."""
    pareto: list[Layout]
    """Layouts that no other beats in both step time and GPU-hours; fastest first."""
    knee: Knee
    """Of `pareto`."""
    explanation: Explanation | None = None
    """Where one was asked for."""
    inflections: list[Inflection]
    why: str
    warnings: list[str]
    calibrated: Calibrated | None = None
    """None: the times are those of the catalog."""
    search: Search


class TokenStores(BaseModel):
    """Folders of prepared sequences (see `tokens`), absolute."""

    model_config = VALUE

    train: str
    eval: str | None = None


class RunPlan(BaseModel):
    """plan.json of a run folder: all that a rank reads to know what to do."""

    model_config = VALUE

    version: str
    """The kd-launch that wrote it."""
    spec: Spec = Field(repr=False)
    """With absolute paths."""
    cluster: Cluster = Field(repr=False)
    layout: Layout
    tokens: TokenStores | None
    """null in a dry run and in a probe, where nothing is prepared."""
    probe: ProbeOrder | None = None
    """Of a probe, which measures and trains nothing."""


def read_run_plan(path: Path) -> RunPlan:
    """Reads plan.json.

    Raises:
        SpecError: it is missing, or this version cannot read it.
    """
    try:
        return RunPlan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}; is its folder a kd-launch run?") from error
    except ValidationError as error:
        problem = first_problem(error.errors(), "the file")
        raise SpecError(f"{path}: {problem}; {_written_by(path)}") from error


def _written_by(path: Path) -> str:
    """Which version a plan that this one cannot read is of, and the way out."""
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        version = str(json.loads(path.read_bytes())["version"])
        if version != __version__:
            return f"kd-launch {version[:20]} wrote it and this is {__version__}: use that one, or submit again"
    return "it is damaged: submit again"


def unsupported_by_runtime(layout: Layout) -> str | None:
    """What of a layout this version's runtime cannot run, in words; None when it runs.

    The one place that knows; `search` chooses by it and the world refuses by it.
    """
    teacher, student = layout.teacher, layout.student
    if layout.colocated and teacher.gpus != student.gpus:
        return "colocated roles with different numbers of GPUs"
    return None


def describe_role(role: RoleLayout) -> str:
    """The axes of a role that exceed 1, such as "2 replicas x tp 4"; "1 GPU" when none does."""
    axes: Sequence[tuple[str, int]] = (("fsdp", role.fsdp), ("tp", role.tp), ("pp", role.pp))
    words = [f"{name} {degree}" for name, degree in axes if degree > 1]
    if role.replicas > 1:
        words.insert(0, f"{role.replicas} replicas")
    return " x ".join(words) or "1 replica"

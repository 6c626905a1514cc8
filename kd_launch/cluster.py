"""The cluster as its file describes it: pools of equal nodes, and the site's settings; facts enter once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

CLOSED = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

# One line of text: a newline in a directive would start another one.
Line = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
PathText = Annotated[Line, Field(json_schema_extra={"format": "path"})]
ShellText = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# Also a folder's name, so neither "." nor "..", nothing hidden, and nothing that a command takes for an option.
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
_N = "[0-9]{1,2}"
TimeLimit = Annotated[
    str, StringConstraints(pattern=rf"^([0-9]{{1,7}}(:{_N}){{0,2}}|[0-9]{{1,5}}-{_N}(:{_N}){{0,2}})$")
]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
# More than any machine has: a slip of the finger must not become minutes of planning.
Nodes = Annotated[int, Field(ge=1, le=16_384)]
PerNode = Annotated[int, Field(ge=1, le=1024)]
# What is divided by, or waited for: bounds that nothing real comes near.
Bandwidth = Annotated[float, Field(ge=1e-3, le=1e6)]
Gibibytes = Annotated[float, Field(ge=1e-3, le=1e6)]
Factor = Annotated[float, Field(ge=1e-3, le=1e3)]
Seconds = Annotated[float, Field(ge=1e-3, le=1e7)]


class Container(BaseModel):
    """How the ranks start inside a container."""

    model_config = CLOSED

    runtime: Literal["pyxis", "apptainer", "singularity", "container_engine"]
    """The site's container runtime: pyxis and CSCS' Container Engine are options of srun, the others commands."""
    image: Line
    """An image as the runtime names it: a path or a registry reference; of container_engine a definition file."""
    mounts: tuple[Line, ...] = ()
    """Paths, or source:target pairs, that the container sees."""

    @property
    def is_srun_option(self) -> bool:
        """Whether srun starts the container; else its command stands before the rank's."""
        return self.runtime in ("pyxis", "container_engine")

    @model_validator(mode="after")
    def container_engine_mounts_by_its_definition(self) -> Self:
        if self.runtime == "container_engine" and self.mounts:
            raise ValueError(
                f"mounts is {list(self.mounts)} but container_engine reads its mounts from the definition file that "
                "image names; write them there"
            )
        return self


class Factors(BaseModel):
    """Factors of time against the cost model, measured on a pool's own hardware; 1 is the model itself."""

    model_config = CLOSED

    teacher: Factor = 1.0
    """Of the teacher's forward."""
    student: Factor = 1.0
    """Of the student's layers, forward and backward."""
    loss: Factor = 1.0
    """Of the student's head, the divergence and its gradient."""
    optimizer: Factor = 1.0
    """Of the update."""
    all_reduce: Factor = 1.0
    """Of all-reduces."""
    all_gather: Factor = 1.0
    """Of all-gathers."""
    reduce_scatter: Factor = 1.0
    """Of reduce-scatters."""
    tensor_parallel: Factor = 1.0
    """Of all-reduces within a layer, for which the ranks of a tensor-parallel teacher stop computing."""
    message: Factor = 1.0
    """Of messages from one rank to another."""
    fresh_memory: Factor = 1.0
    """Of writing to memory that a process has not touched, on CPUs."""


class Pool(BaseModel):
    """Equal nodes that one job component can be taken from."""

    model_config = CLOSED

    name: Name
    """How the spec names this pool."""
    partition: Line | None = None
    """Slurm's partition; with scheduler slurm null only if it is written: the site chooses, by qos and constraint."""
    nodes: Nodes
    """Nodes that one job may take from this pool."""
    gpus_per_node: PerNode
    """GPUs of a node. With gpu CPU: processes of a node."""
    gpu: Line
    """An id or alias of the GPU catalog, or CPU."""
    cpus_per_node: Positive | None = None
    """CPU cores of a node."""
    memory_gib: Gibibytes | None = None
    """Memory of a node, GiB."""
    inter_node_gb_per_s: Bandwidth | None = None
    """Network bandwidth per node and direction, GB/s."""
    intra_node_gb_per_s: Bandwidth | None = None
    """Bandwidth between two GPUs of a node and direction, GB/s; null: the catalog's."""
    gpu_directive: Line | None = "--gpus-per-node={n}"
    """How this site asks for n GPUs of a node; null where whole nodes come with their GPUs."""
    mem: Line | None = None
    """Value of --mem, such as "0" for all of a node's memory."""
    account: Line | None = None
    """Overrides the cluster's account."""
    qos: Line | None = None
    """Slurm's quality of service."""
    constraint: Line | None = None
    """Node features that are required."""
    sbatch: tuple[Line, ...] = ()
    """Extra directives, such as --exclusive."""
    srun: tuple[Line, ...] = ()
    """Extra options of srun for the ranks on this pool, such as --cpu-bind=none."""
    python: PathText | None = None
    """Overrides the cluster's python."""
    setup: ShellText | None = None
    """Overrides the cluster's setup."""
    environment: dict[VariableName, ShellText] = {}
    """Adds to the cluster's environment."""
    container: Container | None = None
    """Overrides the cluster's container."""
    calibration: Factors | None = None
    """Factors of predicted time; null: those that calibrate has written beside this file, where it has."""

    @property
    def is_cpu(self) -> bool:
        """Whether a "GPU" of this pool is a process on CPU cores."""
        return self.gpu.upper() == "CPU"

    @model_validator(mode="after")
    def gpu_directive_names_the_count(self) -> Self:
        if self.gpu_directive is not None and "{n}" not in self.gpu_directive:
            raise ValueError(
                f"gpu_directive is '{self.gpu_directive}' but must hold {{n}}, such as '--gres=gpu:{{n}}', or be null"
            )
        return self

    @model_validator(mode="after")
    def srun_options_are_single_words(self) -> Self:
        for option in self.srun:
            if not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", option):
                raise ValueError(
                    f"pool {self.name}: srun holds '{option}' but each must be one word, such as '--cpu-bind=none'"
                )
        return self


class Cluster(BaseModel):
    """One site: its scheduler, its pools, and how a rank finds its software there."""

    model_config = CLOSED

    name: Name | None = None
    """Shown in plans; null: the file's stem."""
    scheduler: Literal["slurm", "local"]
    """slurm: sbatch. local: processes on this machine."""
    hetjobs: Literal["auto"] | bool = "auto"
    """Whether heterogeneous jobs are allowed; auto: asked from scontrol, else assumed."""
    hetjob_steps: Literal["auto"] | bool = "auto"
    """Whether one job step may span components; auto: asked from scontrol, else assumed."""
    run_root: PathText = "runs"
    """Folder of all runs, on a file system that every node sees; relative to the current folder."""
    time_limit: TimeLimit | None = None
    """Slurm's forms, quoted: "90" (minutes), "08:00:00", "2-00:00:00"."""
    account: Line | None = None
    """Slurm's account."""
    python: PathText | None = None
    """The interpreter inside the job; null: the one that runs kd-launch."""
    pools: Annotated[tuple[Pool, ...], Field(min_length=1)]
    """Pools of equal nodes."""
    calibration: Literal["auto", "none"] = "auto"
    """auto: plan uses the calibration file beside this one, where there is one; none: it does not."""
    same_fabric: bool = True
    """Whether nodes of different pools reach each other at full speed."""
    environment: dict[VariableName, ShellText] = {}
    """Variables of every rank."""
    setup: ShellText = ""
    """Shell lines before the ranks start, such as module loads."""
    container: Container | None = None
    """A container for every rank."""
    host_suffix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]*$")] = ""
    """Appended to host names for the rendezvous (JSC: "i")."""
    template: PathText | None = None
    """A script template of the site's own; relative to this file."""
    signal_before_end_s: Annotated[int, Field(ge=0, le=65535)] = 120
    """Seconds before the time limit at which ranks are told to leave."""
    heartbeat_timeout_s: Seconds = 60.0
    """A rank that gives no sign of life for so long has failed."""
    stall_timeout_s: Literal["auto"] | Seconds = "auto"
    """A run that makes no progress for so long has failed; auto: max(300, 10 predicted steps)."""
    max_failures_without_progress: Positive = 3
    """Failures in a row, without the step advancing, after which the run is not requeued."""
    max_requeues: Annotated[int, Field(ge=0)] | None = None
    """Most requeues; null: no limit."""

    @model_validator(mode="after")
    def pool_names_differ(self) -> Self:
        names = [pool.name for pool in self.pools]
        if len(set(names)) != len(names):
            raise ValueError(f"pools must have different names; they are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def slurm_pools_have_partitions(self) -> Self:
        missing = [pool.name for pool in self.pools if "partition" not in pool.model_fields_set]
        if missing and self.scheduler == "slurm":
            raise ValueError(
                f"pool {', '.join(missing)} needs a partition, since scheduler is slurm (see `sinfo`); null where the "
                "site chooses it"
            )
        return self

    @model_validator(mode="after")
    def local_is_one_node(self) -> Self:
        if self.scheduler == "local" and (len(self.pools) != 1 or self.pools[0].nodes != 1):
            raise ValueError("scheduler local needs exactly one pool with nodes: 1, since it starts everything here")
        return self

    def pool(self, name: str) -> Pool:
        """The pool of that name; it must exist."""
        return next(pool for pool in self.pools if pool.name == name)


@dataclass(frozen=True)
class SiteFacts:
    """What the site itself answered, where it was asked; None: not asked or no answer."""

    hetjobs: bool | None = None
    hetjob_steps: bool | None = None
    no_answer: str | None = None
    """Why nothing is known, where it was asked."""


def resolve(cluster: Cluster, facts: SiteFacts) -> tuple[Cluster, tuple[str, ...]]:
    """Settles each `auto` of the cluster by what the site answered, else assumes yes and says so.

    Returns the cluster without `auto` in hetjobs and hetjob_steps, and the assumptions in words.
    """
    settled: dict[str, bool] = {}
    assumed: list[str] = []
    answers: Mapping[str, bool | None] = {"hetjobs": facts.hetjobs, "hetjob_steps": facts.hetjob_steps}
    for field, answer in answers.items():
        if getattr(cluster, field) == "auto":
            settled[field] = True if answer is None else answer
            if answer is None and cluster.scheduler == "slurm":
                assumed.append(field)
    why = facts.no_answer or "not asked from Slurm"
    notes = (f"assumed that the site allows {' and '.join(assumed)}: {why}",) if assumed else ()
    return cluster.model_copy(update=settled), notes


def time_limit_seconds(text: str) -> int:
    """Seconds of one of Slurm's time formats: m, m:s, h:m:s, d-h, d-h:m, d-h:m:s.

    >>> time_limit_seconds("08:00:00"), time_limit_seconds("90"), time_limit_seconds("1-12")
    (28800, 5400, 129600)
    """
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in re.split(":", rest)]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds

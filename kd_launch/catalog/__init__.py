"""The catalog: facts about GPUs, engines and well-known models, read from the YAML files beside this one."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from kd_launch.errors import UnknownNameError, nearest

# Without libyaml the same files load, ten times slower.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8": "fp8"}


@dataclass(frozen=True)
class BusBandwidth:
    """Measured bus bandwidths (nccl-tests' definition), large messages, some devices of one node; None: unknown."""

    gpus: int
    all_reduce_gb_per_s: float
    all_gather_gb_per_s: float | None
    reduce_scatter_gb_per_s: float | None
    latency_us: float | None
    """Of a small all-reduce, microseconds."""


@dataclass(frozen=True)
class Gpu:
    """One device as Slurm and torch count them. FLOP/s are dense, bandwidths one way, GB = 10^9 bytes."""

    id: str
    aliases: tuple[str, ...]
    vendor: str
    """nvidia, amd or cpu."""
    bf16_tflop_per_s: float | None
    """Peak 10^12 FLOP/s; None: not known, or not in the hardware (see `unsupported`)."""
    fp16_tflop_per_s: float | None
    fp32_tflop_per_s: float | None
    """Of plain float32 matrix products, without TF32."""
    fp8_tflop_per_s: float | None
    unsupported: tuple[str, ...]
    """Dtypes (bf16, fp16, fp32, fp8) that the hardware does not have."""
    memory_gb: float | None
    """As sold; None: the pool says it (CPU)."""
    memory_gib: float | None
    """What nvidia-smi shows as total, 2^30 bytes; more than memory_gb * 10^9 bytes. None: the pool says it (CPU)."""
    hbm_tb_per_s: float
    link: str
    """nvlink, xgmi, pcie or loopback: between the devices of a node."""
    link_gb_per_s: float
    """Out of one device to all others of its node together."""
    pair_gb_per_s: float | None
    """The same to one other device, where that is less."""
    gemm_efficiency: float
    """Fraction of peak that large matrix products reach."""
    fp8_gemm_efficiency: float
    """The same in 8 bits, of that peak."""
    attention_efficiency: float
    """The same for the forward of attention."""
    hbm_efficiency: float
    """Fraction of `hbm_tb_per_s` that elementwise work reaches."""
    launch_factor: float
    """Time of the CPU of such a node to launch a kernel, against a node with H100."""
    nic_gb_per_s: float | None
    """Network of a node as it is usually built, one way, per device; None: not known."""
    link_domain: int | None
    """Devices that the fast link joins, where they are more than a node's (NVL72)."""
    collectives: tuple[BusBandwidth, ...]
    """Measured in one node, by rising number of devices; may be empty."""
    per_core: bool
    """Speeds and memory bandwidth are of one core; a process has several."""
    assumed: tuple[str, ...]
    """Fields whose figure is an estimate."""
    source: str

    def peak_flops_per_s(self, dtype: str) -> float | None:
        """Dense peak of bfloat16 (or bf16), float16, float32, fp8; None: unknown, or the hardware lacks the dtype."""
        tflop: float | None = getattr(self, f"{_DTYPES.get(dtype, dtype)}_tflop_per_s", None)
        return None if tflop is None else tflop * 1e12

    def supports(self, dtype: str) -> bool:
        """False only where the hardware is known to lack the dtype."""
        return _DTYPES.get(dtype, dtype) not in self.unsupported


@dataclass(frozen=True)
class Engine:
    """How an engine's time relates to the cost formulas: factors of time, 1 being the formula itself."""

    name: str
    teacher_factor: float
    """Of a frozen teacher's forward, against SGLang in bf16."""
    compute_factor: float
    """Of the student's forward and backward."""
    data_parallel_factor: float
    gather_factor: float
    """Of all-gathers of sharded weights."""
    attention_speed: float
    """Of its flash attention, against the GPU's `attention_efficiency`."""
    elementwise: float
    """Of the memory traffic between products, against kernels that fuse nothing."""
    overlap: float
    """Share of sharded weights' communication that hides behind compute, 0 to 1."""
    contention: float
    """Of communication that hides behind compute, the share of its time that compute loses."""
    tensor_parallel_overlap: float
    """The same of tensor parallel traffic."""
    straggler: float
    """Spread of equal ranks' speed; a step waits for the slowest."""
    step_overhead_s: float
    step_overhead_fraction: float
    layer_floor_forward_s: float
    """Host time to launch one layer eagerly."""
    layer_floor_backward_s: float
    compiled_floor: float
    """Factor of the two floors under torch.compile."""
    optimizer_bytes_per_parameter: float
    """Memory traffic of one AdamW update per local parameter."""
    activations: float
    """What layers keep for the backward, against the tensors that the formula counts."""
    compiled_activations: float
    """The same under torch.compile."""
    kept_input_bytes: int
    """Of a number of an 8-bit product's input, as it is kept for the backward."""
    gradient_bytes: int
    """Per parameter, as gradients are kept and reduced."""
    half_gradient_bytes: int
    """The same where the compute dtype is float16, whose gradients are scaled instead."""
    assumed: tuple[str, ...]
    """Fields without a published measurement."""
    source: str


def find_gpu(name: str) -> Gpu:
    """The GPU of that id or alias. Case, blanks and punctuation do not count: nvidia_a100-sxm4-80gb is found.

    Raises UnknownNameError with the nearest and all legal ids.
    """
    found = _gpu_names().get(_letters(name))
    if found is None:
        raise UnknownNameError(f"unknown GPU {name!r}{_suggestion(name, _spelled())}; known: {', '.join(gpu_ids())}")
    return _gpu(found)


def gpu_ids() -> tuple[str, ...]:
    return tuple(_load("gpus.yaml"))


def find_engine(name: str) -> Engine:
    """The engine of that name; raises UnknownNameError."""
    entry = _load("engines.yaml").get(name)
    if entry is None:
        legal = engine_names()
        raise UnknownNameError(f"unknown engine {name!r}{nearest(name, legal)}; known: {', '.join(legal)}")
    return Engine(name=name, **{**entry, "assumed": tuple(entry["assumed"])})


def engine_names() -> tuple[str, ...]:
    return tuple(_load("engines.yaml"))


def model_config(hub_id: str) -> Mapping[str, object] | None:
    """The config.json keys of a well-known model, or None. Hub ids are case-sensitive on the hub, not here."""
    found = _models().get(hub_id.lower())
    return None if found is None else dict(found[1])


def model_ids() -> tuple[str, ...]:
    return tuple(hub_id for hub_id, _, _ in _models().values())


def published_parameters(hub_id: str) -> int | None:
    """The exact parameter count that the model was published with, a tied head counted once; None if not in here."""
    found = _models().get(hub_id.lower())
    return None if found is None else found[2]


@functools.cache
def _load(file: str) -> Mapping[str, Mapping[str, Any]]:
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    entries: Mapping[str, Mapping[str, Any]] = yaml.load(text, Loader=_Loader)  # noqa: S506  a safe loader
    return entries


def _letters(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())


def _spelled() -> dict[str, str]:
    """Every id and alias in lower case, with its id."""
    return {
        spelling.lower(): gpu_id
        for gpu_id, entry in _load("gpus.yaml").items()
        for spelling in (gpu_id, *entry["aliases"])
    }


def _suggestion(name: str, spelled: Mapping[str, str]) -> str:
    """nearest() does not know case: GPU names are compared in lower case and suggested by id."""
    clause = nearest(name.lower(), spelled)
    return next((clause.replace(f"'{s}'", f"'{i}'") for s, i in spelled.items() if f"'{s}'" in clause), clause)


@functools.cache
def _gpu_names() -> Mapping[str, str]:
    return {_letters(spelling): gpu_id for spelling, gpu_id in _spelled().items()}


_ABSENT: Mapping[str, Any] = {
    "pair_gb_per_s": None,
    "per_core": False,
    "launch_factor": 1.0,
    "nic_gb_per_s": None,
    "link_domain": None,
}


@functools.cache
def _gpu(gpu_id: str) -> Gpu:
    fields: dict[str, Any] = {**_ABSENT, **_load("gpus.yaml")[gpu_id]}
    fields |= {f"{dtype}_tflop_per_s": speed for dtype, speed in fields.pop("tflop_per_s").items()}
    efficiency = {"fp8_gemm": fields["efficiency"]["gemm"], **fields.pop("efficiency")}
    fields |= {f"{work}_efficiency": share for work, share in efficiency.items()}
    fields |= {name: tuple(fields.get(name, ())) for name in ("aliases", "unsupported", "assumed")}
    fields["collectives"] = tuple(_bus_bandwidth(row) for row in fields.get("collectives", ()))
    return Gpu(id=gpu_id, **fields)


def _bus_bandwidth(measured: Mapping[str, Any]) -> BusBandwidth:
    return BusBandwidth(
        gpus=measured["gpus"],
        all_reduce_gb_per_s=measured["all_reduce"],
        all_gather_gb_per_s=measured["all_gather"],
        reduce_scatter_gb_per_s=measured["reduce_scatter"],
        latency_us=measured["latency_us"],
    )


@functools.cache
def _models() -> Mapping[str, tuple[str, Mapping[str, object], int]]:
    """Lower-case id -> (id, config, parameters), the ids of the same shape included."""
    models: dict[str, tuple[str, Mapping[str, object], int]] = {}
    for hub_id, entry in _load("models.yaml").items():
        for name, differing in ((hub_id, {}), *entry.get("also", {}).items()):
            models[name.lower()] = (name, {**entry["config"], **differing}, entry["parameters"])
    return models

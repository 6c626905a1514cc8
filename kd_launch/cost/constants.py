"""The constants of the cost formulas, read from the catalog's cost_model.yaml."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

import yaml

from kd_launch.cost.kd_loss import LossImplementation

MICRO = 1e-6
GB = 1e9
MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Knee:
    """How a matrix product's speed rises with one of its sizes."""

    knee: float
    gain: float

    def share(self, size: float) -> float:
        """Of full speed."""
        return min(1.0, self.gain * size / (size + self.knee))


@dataclass(frozen=True)
class TimeConstants:
    """See cost_model.yaml."""

    kernel_us: float
    elementwise_kernels: int
    gemm_rows: Knee
    gemm_columns: Knee
    loss_bytes: float
    fused_loss_bytes: float
    cross_entropy_bytes: float
    fused_cross_entropy_bytes: float
    score_bytes: float
    conversion_bytes: float
    compiled_traffic: float
    launch_power: float
    grouped_speed: float
    routed_floor: float
    p10: float
    p90: float
    coupling_us: float


@dataclass(frozen=True)
class LinkConstants:
    """See cost_model.yaml."""

    ramp_inside_us: float
    ramp_between_us: float
    latency_us: float
    hop_us: float
    pair_us: float
    cpu_us: float
    cpu_hop_us: float
    cpu_stop_us: float
    cpu_copies: float
    cpu_fault_gb_per_s: float
    cpu_huge_page_mib: float
    efficiency: float
    network_gb_per_s: float
    foreign_gb_per_s: float


@dataclass(frozen=True)
class MemoryConstants:
    """See cost_model.yaml."""

    usable: float
    context_gib: float
    cpu_context_gib: float
    cpu_gib: float
    cross_entropy_bytes: float
    fused_cross_entropy_bytes: float
    teacher_activations: float
    loss_chunk_mib: float
    cpu_loss_chunk_mib: float
    loss_chunk_buffers: int
    loss_block_mib: float
    cpu_loss_block_mib: float
    loss_block_buffers: int
    optimizer_bytes: int
    tensor_parallel_buffers: float


@dataclass(frozen=True)
class BaselineConstants:
    """See cost_model.yaml."""

    engine: str
    master_bytes: int
    loss_bytes: float
    """Per token and vocabulary entry."""


@dataclass(frozen=True)
class Intervals:
    """Shares of the median between which 80 % of the measurements lie, by what is estimated and on how many nodes."""

    shares: Mapping[str, tuple[float, float]]

    def of(self, kind: str, *, several_nodes: bool) -> tuple[float, float]:
        """p10 and p90 over p50."""
        return self.shares[f"{kind}_{'several_nodes' if several_nodes else 'one_node'}"]


@dataclass(frozen=True, eq=False)
class Constants:
    """All of them; tests and a calibration may build others."""

    time: TimeConstants
    links: LinkConstants
    memory: MemoryConstants
    baseline: BaselineConstants
    intervals: Intervals
    kd_losses: Mapping[str, LossImplementation]


@functools.cache
def load_constants() -> Constants:
    """The shipped constants."""
    text = resources.files("kd_launch.catalog").joinpath("cost_model.yaml").read_text(encoding="utf-8")
    tables: Mapping[str, Mapping[str, Any]] = yaml.safe_load(text)
    time = dict(tables["time"])
    time |= {name: Knee(**time[name]) for name in ("gemm_rows", "gemm_columns")}
    losses = {name: LossImplementation(**row) for name, row in tables["kd_losses"].items()}
    baseline = tables["baseline"]
    return Constants(
        time=_read(TimeConstants, time),
        links=_read(LinkConstants, tables["links"]),
        memory=_read(MemoryConstants, tables["memory"]),
        baseline=_read(BaselineConstants, {**baseline, "loss_bytes": losses[baseline["loss"]].bytes_per_logit}),
        kd_losses=losses,
        intervals=Intervals({name: (low, high) for name, (low, high) in tables["intervals"].items()}),
    )


def _read(kind: type[Any], table: Mapping[str, Any]) -> Any:
    return kind(**{field.name: table[field.name] for field in fields(kind)})

"""Seconds of matrix products, attention and memory traffic on one device: a layer, a head, a loss, an update."""

import math
from dataclasses import dataclass

from kd_launch.architecture import Architecture
from kd_launch.catalog import Engine, Gpu
from kd_launch.cluster import Pool
from kd_launch.cost.constants import MICRO, TimeConstants

WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of one number."""


@dataclass(frozen=True, eq=False)
class Device:
    """What one rank computes with, in one dtype. Compared by identity, which makes it a cheap cache key."""

    flops_per_s: float
    """Dense peak."""
    gemm_efficiency: float
    attention_efficiency: float
    bytes_per_s: float
    """Memory bandwidth that elementwise work reaches."""
    width: int
    """Bytes of a number."""
    has_knees: bool
    """Small matrix products run below the efficiency; false for CPU cores."""
    constants: TimeConstants

    @property
    def kernel_s(self) -> float:
        return MICRO * self.constants.kernel_us

    def gemm_seconds(self, rows: float, columns: float, inner: float) -> float:
        """Of one product [rows, inner] x [inner, columns]: the slower of arithmetic and memory; cost-model 2.8b."""
        speed = self.flops_per_s * self.gemm_efficiency
        if self.has_knees:
            speed *= self.constants.gemm_rows.share(rows) * self.constants.gemm_columns.share(columns)
        moved = self.width * (rows * inner + inner * columns + rows * columns)
        return max(2.0 * rows * columns * inner / speed, moved / self.bytes_per_s) + self.kernel_s


def device_of(pool: Pool, gpu: Gpu, dtype: str, constants: TimeConstants) -> Device | None:
    """The device of one rank of `pool`; None where the hardware lacks the dtype or its speed is unknown."""
    peak = gpu.peak_flops_per_s(dtype)
    if peak is None or not gpu.supports(dtype):
        return None
    cores = (pool.cpus_per_node or pool.gpus_per_node) / pool.gpus_per_node if gpu.per_core else 1.0
    return Device(
        flops_per_s=peak * cores,
        gemm_efficiency=gpu.gemm_efficiency,
        attention_efficiency=gpu.attention_efficiency,
        bytes_per_s=gpu.hbm_tb_per_s * 1e12 * gpu.hbm_efficiency * cores,
        width=WIDTH[dtype],
        has_knees=not gpu.per_core,
        constants=constants,
    )


@dataclass(frozen=True)
class LayerSeconds:
    """One layer's work on one device, the mean over the layers."""

    gemms: float
    attention: float
    elementwise: float

    def forward(self, floor: float) -> float:
        """`floor`: the host's time to launch the layer."""
        return max(self.gemms + self.attention + self.elementwise, floor)

    def backward(self, floor: float) -> float:
        """Twice the products, 2.5 times the attention (flash attention computes scores again)."""
        return max(2 * self.gemms + 2.5 * self.attention + 2 * self.elementwise, floor)


def layer_seconds(device: Device, model: Architecture, tokens: float, sequence_length: int, tp: int) -> LayerSeconds:
    """One layer's forward of `tokens` tokens in sequences of `sequence_length`, split over `tp` ranks."""
    queries, keys = model.heads * model.head_dim / tp, model.kv_heads * model.head_dim / tp
    sparse = model.sparse_layers / model.layers
    dense_mlp = _mlp_seconds(device, model, tokens, model.intermediate / tp)
    sparse_mlp = _experts_seconds(device, model, tokens, tp) if sparse else 0.0
    projections = device.gemm_seconds(tokens, queries + 2 * keys, model.hidden)
    projections += device.gemm_seconds(tokens, model.hidden, queries)
    flops = model.attention_flops_per_token(sequence_length) / model.layers * tokens / tp
    width = (1 - sparse) * model.intermediate + sparse * _active_width(model)
    moved = device.width * tokens * (16 * model.hidden + 6 * width / tp + 4 * (queries + 2 * keys))
    return LayerSeconds(
        gemms=projections + (1 - sparse) * dense_mlp + sparse * sparse_mlp,
        attention=flops / (device.flops_per_s * device.attention_efficiency),
        elementwise=moved / device.bytes_per_s + device.constants.elementwise_kernels * device.kernel_s,
    )


def _mlp_seconds(device: Device, model: Architecture, tokens: float, width: float) -> float:
    up = device.gemm_seconds(tokens, (2 if model.gated_mlp else 1) * width, model.hidden)
    return up + device.gemm_seconds(tokens, model.hidden, width)


def _experts_seconds(device: Device, model: Architecture, tokens: float, tp: int) -> float:
    """Each expert gets its share of the tokens; few tokens touch few experts."""
    touched = model.experts * (1.0 - math.pow(1 - model.experts_per_token / model.experts, tokens))
    rows = max(1.0, tokens * model.experts_per_token / touched)
    experts = touched * _mlp_seconds(device, model, rows, model.expert_intermediate / tp)
    shared = model.shared_expert_intermediate
    router = device.gemm_seconds(tokens, model.experts, model.hidden)
    return experts + router + (_mlp_seconds(device, model, tokens, shared / tp) if shared else 0.0)


def _active_width(model: Architecture) -> float:
    return model.experts_per_token * model.expert_intermediate + model.shared_expert_intermediate


def head_seconds(device: Device, tokens: float, vocabulary: float, hidden: int) -> float:
    """Logits of `tokens` tokens, forward."""
    return device.gemm_seconds(tokens, vocabulary, hidden)


def loss_chunk_rows(tokens: int, vocabulary: int, chunk_mib: float) -> int:
    """Rows of the loss's chunks: their float32 logits stay at about `chunk_mib` MiB."""
    return max(1, min(tokens, int(chunk_mib * 2**20 // (4 * vocabulary))))


def loss_seconds(
    device: Device, tokens: int, rows: int, vocabulary: int, hidden: int, teacher_hidden: int | None, traffic: float
) -> float:
    """The student's head, the divergence and its gradient in chunks of `rows`, as the engine computes them.

    Every chunk reads the head for logits and for the hidden states' gradient, and adds to the head's float32 gradient.
    teacher_hidden: the teacher's logits come from its hidden states, one more product; None: they came as payload.
    traffic: bytes of elementwise work per token and vocabulary entry.
    """
    chunk = device.gemm_seconds(rows, vocabulary, hidden) + device.gemm_seconds(rows, hidden, vocabulary)
    chunk += device.gemm_seconds(vocabulary, hidden, rows) + 8.0 * vocabulary * hidden / device.bytes_per_s
    if teacher_hidden is not None:
        chunk += device.gemm_seconds(rows, vocabulary, teacher_hidden)
    return math.ceil(tokens / rows) * chunk + traffic * tokens * vocabulary / device.bytes_per_s


def optimizer_seconds(device: Device, local_parameters: float, engine: Engine) -> float:
    """One AdamW update of a rank's own parameters: memory traffic only."""
    return local_parameters * engine.optimizer_bytes_per_parameter / device.bytes_per_s


def floors(engine: Engine, *, compiled: bool) -> tuple[float, float]:
    """Host seconds to launch one layer, forward and backward."""
    factor = engine.compiled_floor if compiled else 1.0
    return factor * engine.layer_floor_forward_s, factor * engine.layer_floor_backward_s

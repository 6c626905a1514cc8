"""Seconds of matrix products, attention and memory traffic on one device: a layer, a head, a loss, an update."""

import math
from dataclasses import dataclass
from typing import Literal

from kd_launch.architecture import Architecture
from kd_launch.catalog import Engine, Gpu
from kd_launch.cluster import Pool
from kd_launch.cost.constants import MICRO, TimeConstants

WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4, "float8": 2}
"""Bytes of one number as it lies between kernels: 8-bit training converts at the matrix products only."""

Attention = Literal["flash", "eager"]
"""flash: one kernel that skips what the mask hides. eager: all scores are written and read, several times."""


@dataclass(frozen=True, eq=False)
class Device:
    """What one rank computes with, in one dtype. Compared by identity, which makes it a cheap cache key."""

    flops_per_s: float
    """Dense peak."""
    gemm_efficiency: float
    wide_flops_per_s: float
    """Dense peak of what 8-bit training leaves in 16 bits, attention and the head; else the same."""
    wide_efficiency: float
    attention_efficiency: float
    bytes_per_s: float
    """Memory bandwidth that elementwise work reaches."""
    width: int
    """Bytes of a number."""
    has_knees: bool
    """Small matrix products run below the efficiency; false for CPU cores."""
    converts: bool
    """Inputs of the layers' products are scaled and written once more, in 8 bits."""
    launch_factor: float
    """Time of the node's CPU to launch a kernel, against a node with H100."""
    constants: TimeConstants

    @property
    def kernel_s(self) -> float:
        return MICRO * self.constants.kernel_us

    def gemm_seconds(self, rows: float, columns: float, inner: float, *, wide: bool = False) -> float:
        """Of one product [rows, inner] x [inner, columns]: the slower of arithmetic and memory; cost-model 2.8b."""
        speed = self.wide_flops_per_s * self.wide_efficiency if wide else self.flops_per_s * self.gemm_efficiency
        if self.has_knees:
            constants = self.constants
            speed *= constants.gemm_rows.share(rows) * constants.gemm_columns.share(columns)
            speed *= constants.gemm_columns.share(inner)
        moved = self.width * (rows * inner + inner * columns + rows * columns)
        return max(2.0 * rows * columns * inner / speed, moved / self.bytes_per_s) + self.kernel_s


def device_of(pool: Pool, gpu: Gpu, dtype: str, constants: TimeConstants) -> Device | None:
    """The device of one rank of `pool`; None where the hardware lacks the dtype or its speed is unknown."""
    return device_with(gpu, dtype, constants, cores=threads_of(pool) if gpu.per_core else 1.0)


def threads_of(pool: Pool) -> int:
    """Threads of a process of a CPU pool: its share of the cores, and one where there are more processes than cores."""
    return max(1, (pool.cpus_per_node or pool.gpus_per_node) // pool.gpus_per_node)


def device_with(gpu: Gpu, dtype: str, constants: TimeConstants, *, cores: float = 1.0) -> Device | None:
    """One device of the catalog, or `cores` CPU cores; None where it lacks the dtype or its speed is unknown."""
    peak = gpu.peak_flops_per_s(dtype)
    if peak is None or not gpu.supports(dtype):
        return None
    narrow = dtype == "float8"
    wide = gpu.peak_flops_per_s("bfloat16") if narrow else peak
    assert wide is not None
    return Device(
        flops_per_s=peak * cores,
        gemm_efficiency=gpu.fp8_gemm_efficiency if narrow else gpu.gemm_efficiency,
        wide_flops_per_s=wide * cores,
        wide_efficiency=gpu.gemm_efficiency,
        attention_efficiency=gpu.attention_efficiency,
        bytes_per_s=gpu.hbm_tb_per_s * 1e12 * gpu.hbm_efficiency * cores,
        width=WIDTH[dtype],
        has_knees=not gpu.per_core,
        converts=narrow,
        launch_factor=gpu.launch_factor,
        constants=constants,
    )


@dataclass(frozen=True)
class LayerSeconds:
    """One layer's work on one device, the mean over the layers."""

    gemms: float
    attention: float
    """Forward."""
    attention_backward: float
    elementwise: float

    @property
    def is_flash(self) -> bool:
        """The backward computes the scores again by itself."""
        return self.attention_backward > 2 * self.attention

    def slower(self, factor: float) -> "LayerSeconds":
        """On an engine that takes `factor` times as long."""
        if factor == 1:
            return self
        parts = self.gemms, self.attention, self.attention_backward, self.elementwise
        return LayerSeconds(*(factor * part for part in parts))

    @property
    def forward(self) -> float:
        """On the device, without what its host may take longer (beside_host)."""
        return self.gemms + self.attention + self.elementwise

    @property
    def backward(self) -> float:
        """Twice the products and the traffic, and attention's own backward."""
        return 2 * self.gemms + self.attention_backward + 2 * self.elementwise


def layer_seconds(
    device: Device,
    model: Architecture,
    tokens: float,
    sequence_length: int,
    tp: int,
    *,
    attention: Attention = "flash",
    attention_speed: float = 1.0,
    passes: float = 1.0,
    splits_sequence: bool = True,
    expert_ranks: int = 1,
) -> LayerSeconds:
    """One layer's forward of `tokens` tokens in sequences of `sequence_length`, split over `tp` ranks.

    passes: over the tensors between products, against kernels that fuse nothing.
    splits_sequence: what is as wide as the hidden states is split along the sequence (sequence parallelism); else every
    rank computes all of it. expert_ranks: they divide the experts, and each gets the tokens of all for its own.
    """
    sparse = model.sparse_layers / model.layers
    queries, keys = model.heads * model.head_dim / tp, model.kv_heads * model.head_dim / tp
    gemms = device.gemm_seconds(tokens, queries + 2 * keys, model.hidden)
    gemms += device.gemm_seconds(tokens, model.hidden, queries)
    gemms += (1 - sparse) * _mlp_seconds(device, model, tokens, model.intermediate / tp)
    gemms += sparse * _experts_seconds(device, model, tokens, tp, expert_ranks) if sparse else 0.0
    kernel = 1 / attention_speed if attention == "flash" else None
    scores, scores_backward = _attention_seconds(device, model, tokens / tp, sequence_length, kernel)
    whole = 1 if splits_sequence else tp
    traffic = _elementwise_bytes(device, model, tokens / tp, whole, passes)
    kernels = device.constants.elementwise_kernels * device.kernel_s
    return LayerSeconds(gemms, scores, scores_backward, traffic / device.bytes_per_s + kernels)


def _elementwise_bytes(device: Device, model: Architecture, tokens: float, whole: int, passes: float) -> float:
    """Memory traffic of norms, activations and residuals, forward.

    whole: times as many tokens where the tensor is as wide as the hidden states.
    """
    width = mlp_width(model)
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim
    numbers = 16 * model.hidden * whole + (6 if model.gated_mlp else 4) * width + 4 * heads
    constants = device.constants
    traffic = device.width * numbers * passes
    if device.converts:  # read in 16 bits, written in 8, of every input of a product
        traffic += constants.conversion_bytes * (2 * model.hidden + model.heads * model.head_dim + width)
    return traffic * tokens


def forward_bytes(device: Device, model: Architecture, tokens: float, tp: int = 1) -> float:
    """What one layer's forward writes, whole hidden states on every one of `tp` ranks: half of its elementwise traffic,
    and what its products give."""
    heads = (model.heads + 2 * model.kv_heads) * model.head_dim
    products = 2 * model.hidden + (heads + (2 if model.gated_mlp else 1) * mlp_width(model)) / tp
    elementwise = _elementwise_bytes(device, model, tokens / tp, tp, passes=1.0)
    return elementwise / 2 + device.width * tokens * products


def _attention_seconds(
    device: Device, model: Architecture, tokens: float, sequence_length: int, flash: float | None
) -> tuple[float, float]:
    """Scores and their product with the values, forward and backward, all heads.

    flash: the time of the engine's kernel against the usual one's, which computes scores again in the backward; None:
    no such kernel, so that all scores pass through memory.
    """
    if flash is not None:
        flops = model.attention_flops_per_token(sequence_length) / model.layers * tokens
        seconds = flash * flops / (device.wide_flops_per_s * device.attention_efficiency)
        return seconds, 2.5 * seconds
    flops = model.attention_flops_per_token(sequence_length, causal=False) / model.layers * tokens
    moved = device.constants.score_bytes * model.heads * sequence_length * tokens
    seconds = flops / (device.wide_flops_per_s * device.wide_efficiency) + moved / device.bytes_per_s
    return seconds, 2 * seconds


def _mlp_seconds(device: Device, model: Architecture, tokens: float, width: float) -> float:
    up = device.gemm_seconds(tokens, (2 if model.gated_mlp else 1) * width, model.hidden)
    return up + device.gemm_seconds(tokens, model.hidden, width)


def _experts_seconds(device: Device, model: Architecture, tokens: float, tp: int, ranks: int) -> float:
    """Each expert gets its share of the tokens; few tokens touch few experts. ranks: that divide the experts."""
    shared = model.shared_expert_intermediate
    besides = device.gemm_seconds(tokens, model.experts, model.hidden)
    besides += _mlp_seconds(device, model, tokens, shared / tp) if shared else 0.0
    if ranks > 1:
        return besides + _grouped_seconds(device, model, tokens / tp, ranks)
    touched = model.experts * (1.0 - math.pow(1 - model.experts_per_token / model.experts, tokens))
    rows = max(1.0, tokens * model.experts_per_token / touched)
    return besides + touched * _mlp_seconds(device, model, rows, model.expert_intermediate / tp)


def _grouped_seconds(device: Device, model: Architecture, tokens: float, ranks: int) -> float:
    """A rank's own experts, in grouped products of one kernel each, and its tokens sorted by expert and back."""
    experts = model.experts / ranks
    rows = tokens * model.experts_per_token / experts
    each = _mlp_seconds(device, model, rows, model.expert_intermediate) - 2 * device.kernel_s
    sorting = 4 * device.width * tokens * model.experts_per_token * model.hidden / device.bytes_per_s
    return experts * each / device.constants.grouped_speed + 2 * device.kernel_s + sorting


def mlp_width(model: Architecture) -> float:
    """The mean over the layers of what one token passes through."""
    sparse = model.sparse_layers / model.layers
    experts = model.experts_per_token * model.expert_intermediate + model.shared_expert_intermediate
    return (1 - sparse) * model.intermediate + sparse * experts


def head_seconds(device: Device, tokens: float, vocabulary: float, hidden: int) -> float:
    """Logits of `tokens` tokens, forward."""
    return device.gemm_seconds(tokens, vocabulary, hidden, wide=True)


def cross_entropy_seconds(device: Device, tokens: float, vocabulary: float, hidden: int, *, fused: bool) -> float:
    """The head, forward and backward, and the traffic of softmax, loss and gradient."""
    traffic = device.constants.fused_cross_entropy_bytes if fused else device.constants.cross_entropy_bytes
    return 3 * head_seconds(device, tokens, vocabulary, hidden) + traffic * tokens * vocabulary / device.bytes_per_s


def most_loss_rows(tokens: int, vocabulary: int, chunk_mib: float) -> int:
    """Rows of a chunk of the loss, at most: their float32 logits stay within `chunk_mib` MiB."""
    return max(1, min(tokens, int(chunk_mib * 2**20 // (4 * vocabulary))))


def loss_chunk_rows(tokens: int, vocabulary: int, chunk_mib: float) -> int:
    """Rows of the chunks, which are about alike."""
    return math.ceil(tokens / math.ceil(tokens / most_loss_rows(tokens, vocabulary, chunk_mib)))


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


def gradient_sum_seconds(
    device: Device, local_parameters: float, vocabulary: float, hidden: int, times: int, *, tied: bool
) -> float:
    """Memory traffic of what `times` micro-batches of a step do with gradients beside computing them.

    The embedding's is dense and begins as zeros, and tied weights add the head's to it: in every micro-batch. All but
    the first are read, added in float32 to what a rank keeps, and written.
    """
    embedding = device.width * vocabulary * hidden * (4 if tied else 1)
    kept = (device.width + 8.0) * local_parameters
    return (times * embedding + (times - 1) * kept) / device.bytes_per_s


def optimizer_seconds(device: Device, local_parameters: float, engine: Engine) -> float:
    """One AdamW update of a rank's own parameters: memory traffic only."""
    return local_parameters * engine.optimizer_bytes_per_parameter / device.bytes_per_s


def passes_of(engine: Engine, device: Device, *, compiled: bool) -> float:
    """Of an engine over the tensors between products."""
    return min(engine.elementwise, device.constants.compiled_traffic if compiled else 1.0)


def beside_host(device: Device, work: float, host: float) -> float:
    """Seconds of a layer whose kernels take `work` and whose launches take the host `host`.

    The longer of the two, and more where they are about equal: stretches of small kernels, which wait for the host,
    alternate with large ones, behind which it gets ahead again. CPU cores launch nothing.
    """
    if host <= 0.0 or work <= 0.0 or not device.has_knees:
        return max(work, host)
    power = device.constants.launch_power
    longer, shorter = max(work, host), min(work, host)
    return float(longer * (1 + (shorter / longer) ** power) ** (1 / power))


def floors(engine: Engine, device: Device, *, compiled: bool) -> tuple[float, float]:
    """Host seconds to launch one layer, forward and backward."""
    factor = device.launch_factor * (engine.compiled_floor if compiled else 1.0)
    return factor * engine.layer_floor_forward_s, factor * engine.layer_floor_backward_s

"""Estimate: what `estimate` answers. Its JSON is a promise: keys are added, never renamed."""

from typing import Literal

from pydantic import BaseModel

from kd_launch.cost.constants import GIB, Constants
from kd_launch.cost.training_memory import Parts
from kd_launch.estimate.request import DTYPES, Request
from kd_launch.plan import VALUE, Interval

Loss = Literal["plain", "pieces", "fused"]


class Estimate(BaseModel):
    """One step, or one forward pass over the batch, on every GPU."""

    model_config = VALUE

    step_seconds: Interval
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    mfu: float
    """Model FLOPs over the peak of the dtype: no recomputation, attention over the whole square (arXiv 2204.02311)."""
    memory_gib: float
    """Of the fullest GPU, with what a process takes before any tensor."""
    memory_limit_gib: float
    memory_parts_gib: dict[str, float]
    fits: bool
    loss: Loss
    """plain: float32 copies of all logits; pieces: of so many at a time as fit; fused: of none."""
    breakdown: dict[str, float]
    """Seconds by term; they sum to the median step."""
    parameters: int
    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    data_parallel: int


def estimate_of(
    request: Request,
    constants: Constants,
    *,
    micro: int,
    accumulation: int,
    terms: dict[str, float],
    parts: Parts,
    loss: Loss,
    passes: int,
    spread: tuple[float, float],
) -> Estimate:
    """The answer from its parts. passes: of the forward's FLOPs, 3 with a backward. spread: p10 and p90 of p50."""
    seconds = sum(terms.values())
    batch = micro * accumulation * request.data_parallel
    tokens = batch * request.sequence_length
    flops = passes * tokens * request.model.forward_flops_per_token(request.sequence_length, causal=False)
    peak = request.gpu.peak_flops_per_s(DTYPES[request.dtype]) or float("nan")
    limit = constants.memory.usable * (request.gpu.memory_gib or constants.memory.cpu_gib)
    shown = {name: size / GIB for name, size in parts.items()}
    total = sum(shown.values())
    return Estimate(
        step_seconds=Interval(p10=spread[0] * seconds, p50=seconds, p90=spread[1] * seconds),
        tokens_per_second=tokens / seconds,
        tokens_per_second_per_gpu=tokens / seconds / request.gpus,
        mfu=flops / seconds / request.gpus / peak,
        memory_gib=total,
        memory_limit_gib=limit,
        memory_parts_gib=shown,
        fits=total <= limit,
        loss=loss,
        breakdown=terms,
        parameters=request.model.parameters,
        global_batch_size=batch,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        data_parallel=request.data_parallel,
    )


def in_pieces(whole: Estimate) -> Estimate:
    """The same with a loss that computes so many logits at a time as fill the memory."""
    parts = dict(whole.memory_parts_gib)
    parts["logits"] -= whole.memory_gib - whole.memory_limit_gib
    changes = {"memory_gib": whole.memory_limit_gib, "memory_parts_gib": parts, "fits": True, "loss": "pieces"}
    return whole.model_copy(update=changes)

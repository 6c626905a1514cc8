"""An Estimate as plain text for a terminal."""

from collections.abc import Callable, Mapping
from typing import Literal

from kd_launch.estimate.request import Request
from kd_launch.estimate.result import Estimate
from kd_launch.planner.reasons import figure, seconds_text

LEAST = 0.004
"""Share of a whole below which a part is not shown."""


def format_estimate(kind: Literal["train", "forward"], request: Request, estimate: Estimate) -> str:
    """A headline, what it stands on, and the parts of time and memory, largest first."""
    step, verdict = estimate.step_seconds, "fits" if estimate.fits else "does NOT fit"
    if estimate.loss == "pieces":
        verdict += ", if the loss is computed in pieces, or fused"
    name = "step" if kind == "train" else "pass"
    return "\n".join(
        [
            _layout(kind, request, estimate),
            f"{name}: {seconds_text(step.p50)} ({seconds_text(step.p10)} to {seconds_text(step.p90)} in 4 of 5 cases), "
            f"{figure(estimate.tokens_per_second)} tokens/s, {figure(estimate.tokens_per_second_per_gpu)} per GPU, "
            f"MFU {100 * estimate.mfu:.1f} %",
            f"memory: {estimate.memory_gib:.1f} of {estimate.memory_limit_gib:.1f} GiB per GPU: {verdict}",
            *_parts("time", estimate.breakdown, seconds_text),
            *_parts("memory", estimate.memory_parts_gib, lambda gib: f"{gib:.1f} GiB"),
            "",
        ]
    )


def _layout(kind: str, request: Request, estimate: Estimate) -> str:
    axes = {"data": estimate.data_parallel, "tp": request.tp, "pp": request.pp, "cp": request.cp}
    shown = " x ".join(f"{axis} {degree}" for axis, degree in axes.items() if degree > 1) or "one rank"
    shown += f", experts over {request.ep}" if request.ep > 1 else ""
    stage = f", ZeRO-{request.zero}" if request.zero and estimate.data_parallel > 1 else ""
    count = f"{estimate.parameters / 1e9:.3g}B parameters"
    batch = (
        f"{estimate.global_batch_size} sequences of {request.sequence_length} tokens "
        f"({estimate.gradient_accumulation_steps} x {estimate.micro_batch_size} per rank)"
    )
    return f"{kind}, {count}, {request.gpus} x {request.gpu.id} as {shown}{stage}, {request.dtype}, {batch}"


def _parts(title: str, parts: Mapping[str, float], words: Callable[[float], str]) -> list[str]:
    whole = sum(parts.values())
    shown = sorted(((size, name) for name, size in parts.items() if size > LEAST * whole), reverse=True)
    return [
        f"{title} by part:",
        *(f"  {name:<26} {words(size):>10} {100 * size / whole:5.1f} %" for size, name in shown),
    ]

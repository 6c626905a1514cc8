"""The fitted constants of the cost model, their priors, and the fit itself: what leave-one-source-out does again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from cost_model.rows import Case
from cost_model.scores import Scored

from kd_launch.catalog import Engine, find_engine, find_gpu
from kd_launch.cost.constants import Constants, load_constants
from kd_launch.estimate.request import Request
from kd_launch.estimate.result import Estimate
from kd_launch.estimate.train import estimate_training

Values = dict[str, float]


@dataclass(frozen=True)
class Free:
    """One fitted constant: its value before any measurement of the CSV, and how far that may be off (log)."""

    prior: float
    spread: float
    source: str


AMPERE = ("A100-SXM-40", "A100-SXM-80")
HOPPER = ("H100-SXM-80", "H200-SXM-141")
SLOW_HOPPER = ("H100-SXM-96-500W",)
BLACKWELL = ("B200-SXM-180", "GB200-186", "B300-SXM-288", "GB300-288")

_SCALED = "best measured product over peak (ml-engineering), scaled to training as A100"
FREE: dict[str, Free] = {
    "A100 gemm": Free(0.76, 0.15, _SCALED),
    "A100 attention": Free(0.45, 0.3, "FlashAttention 2's paper, forward with a mask"),
    "A100 launch": Free(1.5, 0.3, "single-thread speed of EPYC 7742 against Xeon 8480C"),
    "H100 gemm": Free(0.63, 0.15, _SCALED),
    "H100 attention": Free(0.28, 0.3, "FlashAttention 2 on H100, forward with a mask"),
    "H100 fp8": Free(0.63, 0.2, "as in 16 bits"),
    "H100-500W gemm": Free(0.58, 0.1, "H100's, by its lower clock"),
    "H100-500W fp8": Free(0.58, 0.2, "as in 16 bits"),
    "B200 fp8": Free(0.55, 0.2, _SCALED),
    "GB200 fp8": Free(0.55, 0.2, _SCALED),
    "GB300 fp8": Free(0.55, 0.2, _SCALED),
    "Blackwell attention": Free(0.25, 0.5, "a guess: H100's at twice the peak"),
    "megatron attention speed": Free(1.5, 0.4, "FlashAttention 3 and cuDNN against FlashAttention 2 on H100"),
    "megatron tensor overlap": Free(0.4, 0.5, "a guess: products of one half of each layer's traffic"),
    "fsdp tensor overlap": Free(0.3, 0.5, "a guess, between no overlap and torchtitan's asynchronous one"),
    "contention": Free(0.2, 0.5, "a guess: NCCL takes 16 to 24 of 132 multiprocessors"),
    "score bytes": Free(13.0, 0.2, "reads and writes of a fused softmax with dropout, counted"),
    "columns knee": Free(256.0, 1.0, "AIConfigurator's tables of H100"),
    "straggler": Free(0.01, 0.7, "5 % between GPUs of one node (ml-engineering)"),
}
NAMES = tuple(FREE)
NOISE = 0.08
"""Of a prediction's logarithm: how much a measurement weighs against a prior."""


def shipped() -> Values:
    """The values in the package."""
    a100, h100, slow = (find_gpu(name) for name in (AMPERE[0], HOPPER[0], SLOW_HOPPER[0]))
    b200, gb200, gb300 = (find_gpu(name) for name in ("B200-SXM-180", "GB200-186", "GB300-288"))
    megatron, fsdp, time = find_engine("megatron"), find_engine("torch-fsdp"), load_constants().time
    return {
        "A100 gemm": a100.gemm_efficiency,
        "A100 attention": a100.attention_efficiency,
        "A100 launch": a100.launch_factor,
        "H100 gemm": h100.gemm_efficiency,
        "H100 attention": h100.attention_efficiency,
        "H100 fp8": h100.fp8_gemm_efficiency,
        "H100-500W gemm": slow.gemm_efficiency,
        "H100-500W fp8": slow.fp8_gemm_efficiency,
        "B200 fp8": b200.fp8_gemm_efficiency,
        "GB200 fp8": gb200.fp8_gemm_efficiency,
        "GB300 fp8": gb300.fp8_gemm_efficiency,
        "Blackwell attention": b200.attention_efficiency,
        "megatron attention speed": megatron.attention_speed,
        "megatron tensor overlap": megatron.tensor_parallel_overlap,
        "fsdp tensor overlap": fsdp.tensor_parallel_overlap,
        "contention": fsdp.contention,
        "score bytes": time.score_bytes,
        "columns knee": time.gemm_columns.knee,
        "straggler": fsdp.straggler,
    }


def request_with(request: Request, values: Values) -> Request:
    """The same question of a GPU with these values."""
    gpu_id, new = request.gpu.id, {}
    if gpu_id in AMPERE:
        new = {"gemm": "A100 gemm", "attention": "A100 attention", "launch": "A100 launch"}
    elif gpu_id in HOPPER:
        new = {"gemm": "H100 gemm", "attention": "H100 attention", "fp8": "H100 fp8"}
    elif gpu_id in SLOW_HOPPER:
        new = {"gemm": "H100-500W gemm", "attention": "H100 attention", "fp8": "H100-500W fp8"}
    elif gpu_id in BLACKWELL:
        own = {"B200-SXM-180": "B200 fp8", "GB200-186": "GB200 fp8"}.get(gpu_id, "GB300 fp8")
        new = {"attention": "Blackwell attention", "fp8": own}
    fields = {
        "gemm": "gemm_efficiency", "attention": "attention_efficiency", "fp8": "fp8_gemm_efficiency",
        "launch": "launch_factor",
    }  # fmt: skip
    changed = {fields[what]: values[name] for what, name in new.items()}
    return replace(request, gpu=replace(request.gpu, **changed))


def constants_with(values: Values) -> Constants:
    shipped_constants = load_constants()
    time = replace(
        shipped_constants.time,
        score_bytes=values["score bytes"],
        gemm_columns=replace(shipped_constants.time.gemm_columns, knee=values["columns knee"]),
    )
    return replace(shipped_constants, time=time)


def engines_with(values: Values) -> dict[str, Engine]:
    contention = min(0.9, values["contention"])
    shared = {
        "contention": contention,
        "straggler": values["straggler"],
        "attention_speed": values["megatron attention speed"],
    }
    shared["tensor_parallel_overlap"] = min(0.9, values["megatron tensor overlap"])
    found = {name: replace(find_engine(name), **shared) for name in ("megatron", "megatron-fp8")}
    overlap = min(0.9, values["fsdp tensor overlap"])
    fsdp = replace(
        find_engine("torch-fsdp"), contention=contention, tensor_parallel_overlap=overlap, straggler=values["straggler"]
    )
    return {**found, "torch-fsdp": fsdp}


def estimated(case: Case, constants: Constants, engines: Mapping[str, Engine], values: Values) -> Estimate:
    return estimate_training(request_with(case.request, values), constants, engines[case.request.engine_name])


def predicted_with(scored: Sequence[Scored], values: Values) -> list[tuple[Scored, Estimate]]:
    """The same rows, with other values."""
    constants, engines = constants_with(values), engines_with(values)
    return [(one, estimated(one.case, constants, engines, values)) for one in scored]


def residuals(cases: Sequence[Case], values: Values) -> np.ndarray:
    """log(predicted / measured) of step times."""
    constants, engines = constants_with(values), engines_with(values)
    predicted = [estimated(case, constants, engines, values).step_seconds.p50 for case in cases]
    return np.log(np.array(predicted) / np.array([case.measured for case in cases]))


def fit(cases: Sequence[Case], rounds: int = 5) -> Values:
    """The most probable values: robust Gauss-Newton on logarithms, drawn to the priors.

    A source with many rows weighs more than one with few, but less than in proportion.
    """
    rows = Counter(case.source for case in cases)
    weight = np.array([rows[case.source] ** -0.3 for case in cases])
    prior = np.log([FREE[name].prior for name in NAMES])
    spread = np.array([FREE[name].spread for name in NAMES])
    point = prior.copy()
    for _ in range(rounds):
        point = _better(cases, weight, prior, spread, point)
    return dict(zip(NAMES, np.exp(point).tolist(), strict=True))


def _better(
    cases: Sequence[Case], weight: np.ndarray, prior: np.ndarray, spread: np.ndarray, point: np.ndarray
) -> np.ndarray:
    """One step, as long as it helps most."""

    def at(logarithms: np.ndarray) -> np.ndarray:
        return residuals(cases, dict(zip(NAMES, np.exp(logarithms).tolist(), strict=True)))

    base, step = at(point), 0.02
    slopes = np.stack([(at(point + step * unit) - base) / step for unit in np.eye(len(point))], axis=1)
    robust = weight * np.minimum(1, 0.12 / np.maximum(np.abs(base), 1e-9)) ** 0.5
    scaled = slopes * robust[:, None]
    hesse = scaled.T @ scaled + np.diag((NOISE / spread) ** 2)
    slope = scaled.T @ (robust * base) + (NOISE / spread) ** 2 * (point - prior)
    move = np.clip(-np.linalg.solve(hesse, slope), -0.35, 0.35)

    def loss(candidate: np.ndarray) -> float:
        return float(np.sum(weight * np.minimum(np.abs(at(candidate)), 0.5)))

    return min((point + length * move for length in (1.0, 0.5, 0.25)), key=loss)

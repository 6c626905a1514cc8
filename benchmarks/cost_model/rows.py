"""A row of a measurements CSV as a request to `kd-launch estimate`, and its measured figure in seconds or GiB."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd_launch.architecture import Architecture, from_config
from kd_launch.catalog import find_gpu, model_config
from kd_launch.estimate.request import Loss, Precision, Request, Stage

Row = Mapping[str, str]
Kind = Literal["step", "memory", "forward", "fit"]

MODELS = (  # what the model column begins with, in lower case
    ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    ("llama-3-8b", "meta-llama/Llama-3.1-8B"),
    ("llama3_8b", "meta-llama/Llama-3.1-8B"),
    ("llama-3.1-70b", "meta-llama/Llama-3.1-70B"),
    ("llama-3.3-70b", "meta-llama/Llama-3.1-70B"),
    ("llama-3-70b", "meta-llama/Llama-3.1-70B"),
    ("llama3_70b", "meta-llama/Llama-3.1-70B"),
    ("llama-3.1-405b", "meta-llama/Llama-3.1-405B"),
    ("llama-3-405b", "meta-llama/Llama-3.1-405B"),
    ("llama3.1_405b", "meta-llama/Llama-3.1-405B"),
    ("qwen3_30b_a3b", "Qwen/Qwen3-30B-A3B"),
    ("qwen3_235b_a22b", "Qwen/Qwen3-235B-A22B"),
    ("qwen/qwen3-32b", "Qwen/Qwen3-32B"),
    ("gpt oss 120b", "openai/gpt-oss-120b"),
)
GPT_VOCABULARY = 51200
"""Megatron's GPT, where a row does not say another."""
EAGER = ("vtrain", "no flash attention", "mt-nlg")
"""Engines of before flash attention, or rows that say so."""
KINDS_OF_PRECISION: tuple[tuple[str, Precision | None], ...] = (
    ("nvfp4", None),
    ("fp8", "fp8"),
    ("float8", "fp8"),
    ("fp16/bf16", "bf16"),
    ("fp16", "fp16"),
    ("bf16", "bf16"),
)


class SkippedError(Exception):
    """A row that no request can say; the text is the reason."""


@dataclass(frozen=True)
class Case:
    """One measured figure and the question that it answers."""

    source: str
    kind: Kind
    request: Request
    measured: float
    dense: bool
    model: str
    precision: str
    """As the row spells it."""
    ran_out: bool = False
    """Of memory."""
    states_recompute: bool = True
    """Else it is not known what was computed again, or kept in the host's memory."""

    @property
    def layout(self) -> str:
        request = self.request
        axes = {"data": request.data_parallel, "tp": request.tp, "pp": request.pp, "cp": request.cp}
        shown = " x ".join(f"{axis} {degree}" for axis, degree in axes.items() if degree > 1) or "one rank"
        return f"{shown}, ZeRO-{request.zero}, recompute {request.recompute}, micro-batch {request.micro_batch_size}"

    @property
    def group(self) -> str:
        """Of rows that differ in their layout: the same model, GPUs, sequences and precision."""
        request = self.request
        shared = self.model, request.gpu.id, f"x {request.gpus}", f"{request.sequence_length} tokens", self.precision
        return ", ".join((self.source, *shared))


def read(path: Path) -> tuple[list[Case], dict[str, int]]:
    """The cases of a CSV, and how many rows are left out for which reason."""
    cases: list[Case] = []
    skipped: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                cases.append(case_of(row))
            except SkippedError as reason:
                skipped[str(reason)] = skipped.get(str(reason), 0) + 1
    return cases, skipped


def case_of(row: Row) -> Case:
    """Raises SkippedError."""
    metric = row["metric"]
    if row["kind"] == "kd":
        raise SkippedError("reinforcement learning, or distillation of models that are no transformers")
    if row["kind"] == "decode" or metric == "output_tokens_per_s_total":
        raise SkippedError("generation of tokens")
    if metric in ("activation_mem_gib", "params_grads_opt_mem_gib", "kd_loss_fwd_bwd_peak_mib"):
        raise SkippedError("a part of memory, held by the tests")
    if "LoRA" in row["source"]:
        raise SkippedError("LoRA")
    if metric == "pct_of_peak":
        raise SkippedError("the layout is not stated")
    request = request_of(row)
    kind, measured = measured_of(row, request)
    return Case(
        row["source"],
        kind,
        request,
        measured,
        dense=request.model.sparse_layers == 0,
        model=row["model"],
        precision=row["precision"],
        ran_out=kind == "fit",
        states_recompute="not stated" not in row["recompute"],
    )


def measured_of(row: Row, request: Request) -> tuple[Kind, float]:
    """Seconds or GiB; 1 of a row that ran out of memory."""
    value = float(row["value"]) if row["metric"] != "oom" else 1.0
    if row["metric"] == "oom":
        return "fit", value
    if row["kind"] == "memory":
        return "memory", value * (1e9 / 2**30 if row["metric"].endswith("_gb") else 1.0)
    if row["kind"] == "prefill":
        return "forward", value / 1e3
    return "step", step_seconds(row, request)


def request_of(row: Row) -> Request:
    model, notes = model_of(row), row["notes"]
    tp, pp, cp = count(row, "tp"), count(row, "pp"), noted(notes, "cp")
    gpus = count(row, "num_gpus")
    data = gpus // (tp * pp * cp)
    micro, batch = micro_and_batch(row, data, pp)
    return Request(
        model=model,
        gpu=find_gpu(row["gpu"]),
        gpus=gpus,
        gpus_per_node=count(row, "gpus_per_node"),
        tp=tp,
        pp=pp,
        cp=cp,
        ep=noted(notes, "ep"),
        interleave=interleave_of(row, model, pp),
        zero=stage_of(row["sharding"]),
        sequence_length=count(row, "seq") - (10 if row["kind"] == "prefill" else 0),
        global_batch_size=batch,
        micro_batch_size=micro,
        recompute=recompute_of(row["recompute"]),
        dtype=dtype_of(row["precision"]),
        attention=attention_of(row),
        compile="torch.compile" in notes,
        loss=loss_of(row),
        engine="megatron" if "Megatron" in row["source"] else "auto",
        inter_node_gb_per_s=network_of(notes),
    )


def count(row: Row, column: str) -> int:
    try:
        return int(float(row[column]))
    except ValueError:
        raise SkippedError("the layout is not stated") from None


def noted(notes: str, name: str) -> int:
    found = re.search(rf"\b{name}=?(\d+)", notes)
    return int(found[1]) if found else 1


def micro_and_batch(row: Row, data: int, pp: int) -> tuple[int | None, int | None]:
    """torchtitan's micro-batch column is a rank's whole batch, split in as many micro-batches as stages."""
    micro = int(row["micro_batch"]) if row["micro_batch"] else None
    if row["global_batch"].endswith("M tokens"):
        tokens = int(row["global_batch"].split("M")[0]) * 2**20
        return 1, max(data, tokens // int(row["seq"]))
    batch = int(row["global_batch"]) if row["global_batch"] else None
    if "local batch" in row["notes"] or (batch is None and micro is not None and pp > 1):
        assert micro is not None
        return micro // pp, batch or micro * data
    return micro, batch


def model_of(row: Row) -> Architecture:
    name = row["model"].lower()
    found = next((hub_id for start, hub_id in MODELS if name.startswith(start)), None)
    if found is not None:
        config = model_config(found)
        assert config is not None
        return from_config(config, found)
    text = f"{row['model']} {row['notes']}"
    shape = re.search(r"\bd(\d+) L(\d+) a(\d+)", text)
    if shape is None:
        if name.startswith("13b gpt"):  # kipply's: GPT-13B of FasterTransformer
            return gpt(5120, 40, 40, GPT_VOCABULARY, 2048)
        raise SkippedError("the model's shape is not known, or not a transformer's")
    vocabulary = re.search(r"vocab ?(\d+)", text)
    hidden, layers, heads = (int(number) for number in shape.groups())
    return gpt(hidden, layers, heads, int(vocabulary[1]) if vocabulary else GPT_VOCABULARY, int(row["seq"]))


def gpt(hidden: int, layers: int, heads: int, vocabulary: int, positions: int) -> Architecture:
    config = {
        "n_embd": hidden, "n_layer": layers, "n_head": heads, "vocab_size": vocabulary, "n_positions": positions
    }  # fmt: skip
    return from_config(config, "the row")


def stage_of(sharding: str) -> Stage:
    if "zero3" in sharding or sharding == "fsdp":
        return 3
    if "zero2" in sharding:
        return 2
    return 1 if "distributed-optimizer" in sharding else 0


def recompute_of(text: str) -> Literal["none", "selective", "full"]:
    if text.startswith("full"):
        return "full"
    return "selective" if text.startswith(("selective", "per-op")) else "none"


def attention_of(row: Row) -> Literal["flash", "eager"]:
    return "eager" if any(word in f"{row['source']} {row['notes']}".lower() for word in EAGER) else "flash"


def interleave_of(row: Row, model: Architecture, pp: int) -> int:
    """As the row says it. Where it says nothing: engines since flash attention interleave pieces of two layers, as most
    of Megatron-Bridge's pipelines do (22 of 57; 19 have four, 10 one); older engines do not."""
    notes = row["notes"]
    stated = [noted(notes, name) for name in ("vp", "interleave") if re.search(rf"\b{name}=?\d", notes)]
    if stated or pp == 1:
        return max(stated, default=1)
    if "Interleaved" in notes:
        return 2
    if "1f1b" in notes.lower() or attention_of(row) == "eager" or "vp=n/a" in notes:
        return 1
    return max(1, model.layers // (2 * pp))


def loss_of(row: Row) -> Loss:
    """No row says it, so that it is the engine's default: llm-foundry's loss_fn is fused_crossentropy, and torchtitan
    compiles its loss beside the model since 2025."""
    recent = re.search(r"_2025", row["url"]) and "torch.compile" in row["notes"]
    return "fused" if recent or "llm-foundry" in row["source"] else "auto"


def dtype_of(text: str) -> Precision:
    for word, precision in KINDS_OF_PRECISION:
        if word in text.lower():
            if precision is None:
                raise SkippedError("4-bit training")
            return precision
    return "bf16"


def network_of(notes: str) -> float | None:
    """GB/s of a node of 8, as the notes say it."""
    node = re.search(r"(\d+) ?Gbps/node", notes)
    if node:
        return int(node[1]) / 8
    each = re.search(r"(\d+)Gb/s RDMA per GPU", notes)
    return int(each[1]) / 8 * 8 if each else None


def step_seconds(row: Row, request: Request) -> float:
    """Of an optimizer step, from whatever figure the row has."""
    metric, value = row["metric"], float(row["value"])
    if metric == "iter_time_s":
        return value
    if metric == "iter_time_ms":
        return value / 1e3
    assert request.global_batch_size is not None or request.micro_batch_size is not None
    batch = request.global_batch_size or (request.micro_batch_size or 1) * request.data_parallel
    tokens = batch * request.sequence_length
    if metric == "tokens_per_s_per_gpu":
        return tokens / value / request.gpus
    if metric in ("tflops_per_gpu", "model_tflops_per_gpu"):
        causal = "Megatron-Bridge" in row["source"]  # their tables count half of the square, others all of it
        flops = 3 * request.model.forward_flops_per_token(request.sequence_length, causal=causal)
        return flops * tokens / (value * 1e12) / request.gpus
    raise SkippedError(f"metric {metric}")

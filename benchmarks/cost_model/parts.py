"""Rows that measure a part of memory: the peak of a distillation loss, and the activations of a pipeline stage."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cost_model.rows import Row, count, model_of, noted

from kd_launch.cost.activations import kept_of, saved_of
from kd_launch.cost.constants import load_constants
from kd_launch.cost.trained import Split
from kd_launch.cost.training_memory import in_flight

LOSSES = {"kl_div": "kl", "jsd": "jsd", "fused_linear_jsd": "fused-linear-jsd", "distill_jsd_loss": "distill-jsd"}
"""Liger-Kernel's names, and those of cost_model.yaml."""


@dataclass(frozen=True)
class Part:
    """Bytes."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def losses(path: Path) -> list[Part]:
    return [_loss(row) for row in _rows(path, "kd_loss_fwd_bwd_peak_mib")]


def activations(path: Path) -> list[Part]:
    return [_activations(row) for row in _rows(path, "activation_mem_gib")]


def _rows(path: Path, metric: str) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from (row for row in csv.DictReader(file) if row["metric"] == metric)


def _loss(row: Row) -> Part:
    named = re.fullmatch(r"(\w+) \[(\w+)\]", row["model"].strip())
    config = re.search(r"config (\{.*?\});", row["notes"])
    assert named is not None
    assert config is not None
    shape = json.loads(config[1])
    name = f"{LOSSES[named[1]]}-{named[2]}"
    vocabulary = re.search(r"vocab size=(\d+)", row["notes"])
    tokens = re.search(r"(?:B x T|total tokens)=(\d+)", row["notes"])
    hidden = shape.get("H", 0)
    peak = (
        load_constants()
        .kd_losses[name]
        .peak_bytes(
            int(tokens[1]) if tokens else shape["B"] * shape["T"],
            int(vocabulary[1]) if vocabulary else shape.get("V") or shape["vocab_size"],
            student_hidden=hidden // 2 if name.startswith("distill") else hidden,
            teacher_hidden=hidden,
        )
    )
    return Part(name, peak, float(row["value"]) * 2**20)


def _activations(row: Row) -> Part:
    """On the first stage of a pipeline; a step has at least as many micro-batches as stages."""
    model, tp, pp = model_of(row), count(row, "tp"), count(row, "pp")
    length, micro = count(row, "seq"), count(row, "micro_batch")
    whole = row["recompute"].startswith("none")
    saved = saved_of(model, 2, "eager", length)
    if not whole:
        saved = kept_of(model, 2, "selective", "eager", length, by_operator=False)
    split = Split(tp=tp, pp=pp, interleave=noted(row["notes"], "interleave"))
    layers = model.layers / pp * in_flight(split, pp)
    predicted = saved.per_rank(tp, sequence_parallel=not whole) * length * micro * layers
    return Part(f"{row['model']}, {row['recompute']}", predicted, float(row["value"]) * 2**30)

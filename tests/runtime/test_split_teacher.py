"""A teacher split in every way gives the losses and gradient norms of a whole one, and everybody leaves in peace."""

from typing import Any

import pytest

from kd_launch.plan import Layout, TokenStores
from kd_launch.run_dir import RunDir
from tests.runtime.conftest import Material
from tests.runtime.harness import Ranks, make_layout, make_model, make_run
from tests.runtime.many_runs import run_all

# An architecture, its shape, and what travels. Gemma 2 ties its head and caps its logits.
TEACHERS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({}, "top_k"),
    "gemma2": (
        {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 8, "num_hidden_layers": 3,
         "tie_word_embeddings": True},
        "logits",
    ),
    "mixtral": ({"num_local_experts": 4}, "hidden_states"),
    "qwen3": ({"head_dim": 16, "tie_word_embeddings": True}, "hidden_states"),
    "gpt2": ({"n_embd": 32, "n_head": 4, "n_positions": 64, "tie_word_embeddings": True}, "logits"),
    "qwen2": ({}, "logits"),
    "mistral": ({"sliding_window": 8}, "top_k"),
    "phi3": ({}, "logits"),
    "gemma3_text": ({"head_dim": 8, "sliding_window": 8, "num_hidden_layers": 3, "tie_word_embeddings": True}, "top_k"),
    "qwen3_moe": (
        {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, "num_experts_per_tok": 2}, "hidden_states",
    ),
}  # fmt: skip
IN_EVERY_WAY = ("llama", "gemma2", "mixtral", "qwen3", "gpt2")
IN_ALL_AT_ONCE = ("tp 2 x fsdp 2", "2 replicas x pp 2")
"""Of the others: each split in two ways that hold all."""
WHOLE = "whole"
LAYOUTS: dict[str, dict[str, Any]] = {
    WHOLE: {"teachers": 1, "replicas": 1, "colocated": True, "micro_batch": 4},
    "tp 2": {"teachers": 2, "replicas": 1, "micro_batch": 4, "split": {"tp": 2}},
    "fsdp 2": {"teachers": 2, "replicas": 1, "micro_batch": 4, "split": {"fsdp": 2}},
    "pp 2": {"teachers": 2, "replicas": 1, "micro_batch": 4, "split": {"pp": 2}},
    "2 replicas x pp 2": {"teachers": 4, "replicas": 1, "micro_batch": 4, "split": {"pp": 2}},
    "tp 2 x fsdp 2": {"teachers": 4, "replicas": 1, "micro_batch": 4, "split": {"tp": 2, "fsdp": 2}},
    "colocated, tp 2 x pp 2": {
        "teachers": 4, "replicas": 2, "fsdp": 2, "colocated": True, "micro_batch": 1, "split": {"tp": 2, "pp": 2},
    },
    "colocated, fsdp 2": {
        "teachers": 2, "replicas": 2, "colocated": True, "micro_batch": 2, "split": {"fsdp": 2},
    },
}  # fmt: skip
DEPTHS = (1, 4, 8)
Curves = dict[tuple[str, str], list[tuple[float, float]]]


def suits(kind: str, name: str) -> bool:
    if kind not in IN_EVERY_WAY:
        return name in IN_ALL_AT_ONCE
    return kind != "gpt2" or "tp" not in name  # transformers has no plan for it


CASES = [(kind, name) for kind in TEACHERS for name in LAYOUTS if name != WHOLE and suits(kind, name)]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, material: Material) -> tuple[Curves, Ranks]:
    """Loss and gradient norm of each step of every case, and what their processes wrote."""
    folder = tmp_path_factory.mktemp("split")
    runs: dict[tuple[str, str], tuple[RunDir, Layout]] = {}

    def add(kind: str, name: str, key: str, steps: int, **more: Any) -> None:
        shape, payload = TEACHERS[kind]
        teacher = folder / kind
        if not teacher.exists():
            make_model(teacher, seed=1, kind=kind, **shape)
        # An evaluation ends with empty micro-batches.
        tokens = material.tokens if kind == "llama" else TokenStores(train=material.tokens.train)
        layout = make_layout(**LAYOUTS[name], accumulation=2, payload=payload, **more)
        path = folder / f"{kind}, {key}"
        runs[kind, key] = (
            make_run(path, layout, teacher, material.student, tokens, training__steps=steps),
            layout,
        )

    for kind, name in [*((kind, WHOLE) for kind in TEACHERS), *CASES]:
        add(kind, name, name, 2)
    for depth in DEPTHS:
        add("llama", "pp 2", f"depth {depth}", 1, prefetch=depth)
    most = max(layout.world_size for _, layout in runs.values())
    ranks = run_all(folder / "output", [run for run, _ in runs.values()], most)
    steps = {key: Ranks(run).steps() for key, (run, _) in runs.items()}
    return {key: [(line["loss"], line["grad_norm"]) for line in lines] for key, lines in steps.items()}, ranks


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_split_teacher_gives_the_curve_of_a_whole_one(ended: tuple[Curves, Ranks], kind: str, name: str) -> None:
    curves, _ = ended
    assert len(curves[kind, WHOLE]) == 2
    assert curves[kind, name] == [pytest.approx(step, rel=1e-5) for step in curves[kind, WHOLE]]


def test_the_end_is_quiet_however_far_the_teacher_is_ahead(ended: tuple[Curves, Ranks]) -> None:
    curves, ranks = ended
    for depth in DEPTHS:
        assert curves["llama", f"depth {depth}"] == [pytest.approx(curves["llama", WHOLE][0], rel=1e-5)]
    assert not any(words in ranks.outputs() for words in ("onnection", "Broken pipe"))

"""A teacher's head that lies over the student's shards gives the losses of a whole one on each rank."""

from pathlib import Path
from typing import Any

import pytest

from kd_launch.plan import TokenStores
from tests.runtime.harness import Ranks, make_layout, make_model, make_run, make_store, run_to_end
from tests.runtime.test_layout_invariance import WORKER

WAYS: dict[str, dict[str, Any]] = {
    "fsdp 2": {"replicas": 1, "fsdp": 2, "micro_batch": 2, "accumulation": 2},
    "fsdp 3, recomputed": {"replicas": 1, "fsdp": 3, "micro_batch": 1, "accumulation": 2, "reshard": True,
                           "recompute": "full"},
    "hsdp 2 x 2": {"replicas": 2, "fsdp": 2, "micro_batch": 1, "accumulation": 1},
}  # fmt: skip
# With a soft cap and a tied head, and with a scale. Whole chunks of five rows and of fewer.
TEACHERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 8, "tie_word_embeddings": True},
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
}
CASES = [("llama", "fsdp 2"), ("gemma2", "fsdp 3, recomputed"), ("cohere", "hsdp 2 x 2")]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStores:
    """Rows 0, 1 and 5 have no loss token: of the ranks that share a head some have nothing while others do."""
    folder = tmp_path_factory.mktemp("tokens")
    train = make_store(folder / "train", 24, empty_rows=(0, 1, 5))
    return TokenStores(train=str(train), eval=str(make_store(folder / "eval", 5, seed=3, empty_rows=(2,))))


def run(folder: Path, tokens: TokenStores, kind: str, way: str, shards: int, dtype: str = "float32") -> Ranks:
    layout = make_layout(teachers=1, **WAYS[way], head_shards=shards)
    teacher, student = folder.parent / "teacher", folder.parent / "student"
    if not teacher.exists():
        make_model(teacher, seed=1, kind=kind, **({"hidden_size": 48} if kind == "llama" else {}), **TEACHERS[kind])
        make_model(student, seed=2, vocabulary=112)
    run_dir = make_run(
        folder, layout, teacher, student, tokens, training__steps=6, training__eval_every_steps=3, teacher__dtype=dtype
    )
    return run_to_end(run_dir, layout, (WORKER, "few_rows"))


def figures(ranks: Ranks) -> list[dict[str, float]]:
    """Of each step and each evaluation."""
    names = ("loss", "grad_norm", "eval_loss", "eval_teacher_cross_entropy")
    return [{name: line[name] for name in names if name in line} for line in ranks.metrics()]


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_a_spread_head_gives_the_curve_of_a_whole_one(
    tmp_path: Path, tokens: TokenStores, kind: str, way: str
) -> None:  # fmt: skip
    whole, spread = (run(tmp_path / f"over {shards}", tokens, kind, way, shards) for shards in (1, WAYS[way]["fsdp"]))
    expected = figures(whole)
    assert sum("loss" in line for line in expected) == 6
    assert sum("eval_teacher_cross_entropy" in line for line in expected) >= 2
    assert figures(spread) == [pytest.approx(line, rel=1e-5) for line in expected]


def test_a_spread_head_of_a_teacher_in_bfloat16(tmp_path: Path, tokens: TokenStores) -> None:
    """Its logits are rounded alike, up to the order in which products are summed."""
    whole, spread = (
        run(tmp_path / f"over {shards}", tokens, "llama", "fsdp 2", shards, "bfloat16") for shards in (1, 2)
    )
    assert figures(spread) == [pytest.approx(line, rel=3e-3) for line in figures(whole)]

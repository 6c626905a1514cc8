"""Every way to hold and train the student gives the same losses and gradient norms: memory and time differ, no more."""

from typing import Any

import pytest

from kd_launch.run_dir import RunDir
from tests.runtime.conftest import Material
from tests.runtime.harness import Ranks, make_layout, make_model, make_run
from tests.runtime.many_runs import run_all

GLOBAL_BATCH = 8
# Two ranks keep gradients until the last micro-batch where they are replicas, and reduce in every micro-batch where
# weights are sharded; four are both at once.
ONE = "one rank"
WAYS: dict[str, dict[str, Any]] = {
    ONE: {"replicas": 1, "micro_batch": 8, "accumulation": 1},
    "ddp 2, gradients kept": {"replicas": 2, "micro_batch": 1, "accumulation": 4},
    "fsdp 2, reduced each time": {"replicas": 1, "fsdp": 2, "micro_batch": 1, "accumulation": 4},
    "fsdp 2, resharded, recomputed": {"replicas": 1, "fsdp": 2, "micro_batch": 2, "accumulation": 2, "reshard": True,
                                      "recompute": "full"},
    "hsdp 2 x 2": {"replicas": 2, "fsdp": 2, "micro_batch": 1, "accumulation": 2},
}  # fmt: skip
# Gemma 2 ties its head and caps its logits.
STUDENTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 8, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
}
LAYERS = {"student__start_from": {"teacher_layers": [1]}, "student__model": None}
STARTS: dict[str, dict[str, Any]] = {"random": {"student__start_from": "random"}, "teacher's layers": LAYERS}
CASES = [(kind, way) for kind in STUDENTS for way in WAYS if way != ONE]
Curve = list[tuple[float, float]]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory, material: Material) -> dict[tuple[str, str], Curve]:
    """Loss and gradient norm of each step, by what is trained or where it starts, and the way."""
    folder = tmp_path_factory.mktemp("ways")
    runs: dict[tuple[str, str], RunDir] = {}

    def add(what: str, way: str, kind: str = "llama", **changes: Any) -> None:
        shape = WAYS[way]
        layout = make_layout(teachers=shape["replicas"] * shape.get("fsdp", 1), colocated=True, **shape)
        assert layout.global_batch_size == GLOBAL_BATCH
        student = folder / kind
        if not student.exists():
            make_model(student, seed=2, kind=kind, **STUDENTS[kind])
        runs[what, way] = make_run(
            folder / f"{what}, {way}", layout, material.teacher, student, material.tokens, training__steps=6, **changes
        )

    for kind in STUDENTS:
        for way in WAYS:
            add(kind, way, kind)
    for start, changes in STARTS.items():
        for way in (ONE, "hsdp 2 x 2"):
            add(start, way, **changes)
    add("bfloat16", "fsdp 2, reduced each time", student__dtype="bfloat16")
    run_all(folder / "output", list(runs.values()), 4)
    return {key: [(line["loss"], line["grad_norm"]) for line in Ranks(run).steps()] for key, run in runs.items()}


def same(found: Curve, expected: Curve, rel: float = 1e-5) -> bool:
    return found == [(pytest.approx(loss, rel=rel), pytest.approx(norm, rel=rel)) for loss, norm in expected]


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_every_way_gives_the_same_curve(curves: dict[tuple[str, str], Curve], kind: str, way: str) -> None:
    expected = curves[kind, ONE]
    assert len({loss for loss, _ in expected}) == 6
    assert same(curves[kind, way], expected)


@pytest.mark.parametrize("start", STARTS)
def test_a_start_without_a_checkpoint_is_the_same_for_every_number_of_ranks(
    curves: dict[tuple[str, str], Curve], start: str
) -> None:
    assert same(curves[start, "hsdp 2 x 2"], curves[start, ONE])


def test_compute_in_bfloat16_follows_float32(curves: dict[tuple[str, str], Curve]) -> None:
    found, expected = curves["bfloat16", "fsdp 2, reduced each time"], curves["llama", ONE]
    assert same(found, expected, rel=0.03)
    assert not same(found, expected)

"""Every way to hold and train the student gives the same losses and gradient norms: memory and time differ, no more."""

from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import Material
from tests.runtime.harness import make_layout, make_run, run_to_end

GLOBAL_BATCH = 8
# Layout, then changes of the spec. Two ranks keep gradients until the last micro-batch where they are replicas, and
# reduce in every micro-batch where weights are sharded; four are both at once.
WAYS: dict[str, dict[str, Any]] = {
    "ddp 2, gradients kept": {"replicas": 2, "micro_batch": 1, "accumulation": 4},
    "fsdp 2, reduced each time": {"replicas": 1, "fsdp": 2, "micro_batch": 1, "accumulation": 4},
    "fsdp 2, resharded, recomputed": {"replicas": 1, "fsdp": 2, "micro_batch": 2, "accumulation": 2, "reshard": True,
                                      "recompute": "full"},
    "hsdp 2 x 2": {"replicas": 2, "fsdp": 2, "micro_batch": 1, "accumulation": 2},
}  # fmt: skip
BASE: dict[str, Any] = {"replicas": 1, "micro_batch": 8, "accumulation": 1}
STARTS: dict[str, Any] = {"random": "random", "teacher's layers": {"teacher_layers": [1]}}


def curve(folder: Path, material: Material, way: dict[str, Any], **overrides: Any) -> list[tuple[float, float]]:
    ranks = way["replicas"] * way.get("fsdp", 1)
    layout = make_layout(teachers=ranks, colocated=True, **way)
    assert layout.global_batch_size == GLOBAL_BATCH
    run_dir = make_run(
        folder, layout, material.teacher, material.untied_student, material.tokens, training__steps=6, **overrides
    )
    return [(line["loss"], line["grad_norm"]) for line in run_to_end(run_dir, layout).steps()]


def same(found: list[tuple[float, float]], expected: list[tuple[float, float]], rel: float = 1e-5) -> bool:
    return found == [(pytest.approx(loss, rel=rel), pytest.approx(norm, rel=rel)) for loss, norm in expected]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, material: Material) -> list[tuple[float, float]]:
    found = curve(tmp_path_factory.mktemp("base") / "run", material, BASE)
    assert len({loss for loss, _ in found}) == 6
    return found


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_curve(
    tmp_path: Path, material: Material, base: list[tuple[float, float]], way: str
) -> None:
    assert same(curve(tmp_path / "run", material, WAYS[way]), base)


@pytest.mark.parametrize("start", STARTS)
def test_a_start_without_a_checkpoint_is_the_same_for_every_number_of_ranks(
    tmp_path: Path, material: Material, start: str
) -> None:
    overrides = {"student__start_from": STARTS[start]}
    if start != "random":
        overrides["student__model"] = None
    one = curve(tmp_path / "one", material, BASE, **overrides)
    assert same(curve(tmp_path / "four", material, WAYS["hsdp 2 x 2"], **overrides), one)


def test_compute_in_bfloat16_follows_float32(
    tmp_path: Path, material: Material, base: list[tuple[float, float]]
) -> None:  # fmt: skip
    found = curve(tmp_path / "run", material, WAYS["fsdp 2, reduced each time"], student__dtype="bfloat16")
    assert same(found, base, rel=0.03)
    assert not same(found, base)

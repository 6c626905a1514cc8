"""Every layout gives the same losses and gradient norms, on ranks that the kernel shows to be what the plan says."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_launch.run_dir import RunDir
from tests.runtime.conftest import Material
from tests.runtime.harness import Ranks, make_layout, make_run, run_to_end, start_ranks
from tests.runtime.reference import first_step

LAYOUTS: dict[str, dict[str, Any]] = {
    "colocated-1": {"teachers": 1, "replicas": 1, "colocated": True, "micro_batch": 4},
    "colocated-2": {"teachers": 2, "replicas": 2, "colocated": True, "micro_batch": 2},
    "1+1": {"teachers": 1, "replicas": 1, "micro_batch": 4},
    "2+1": {"teachers": 2, "replicas": 1, "micro_batch": 4},
    "1+2": {"teachers": 1, "replicas": 1, "fsdp": 2, "micro_batch": 2},
}
BASE = "colocated-1"
WORKER = str(Path(__file__).with_name("worker.py"))


def run_layout(
    folder: Path, material: Material, name: str, payload: str, defect: str | None = None, **overrides: Any
) -> Ranks:
    layout = make_layout(**LAYOUTS[name], accumulation=2, payload=payload)
    student = overrides.pop("student", material.student)
    run_dir = make_run(folder, layout, material.teacher, student, material.tokens, **overrides)
    return run_to_end(run_dir, layout, ("-m", "kd_launch.runtime") if defect is None else (WORKER, defect))


def curve(ranks: Ranks) -> list[tuple[float, float]]:
    """Loss and gradient norm before clipping of each step."""
    return [(line["loss"], line["grad_norm"]) for line in ranks.steps()]


def same(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    return found == [(pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-5)) for loss, norm in expected]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, material: Material) -> list[tuple[float, float]]:
    """The curve that all others must equal; clipping is active in all of its steps but the one or other."""
    found = curve(run_layout(tmp_path_factory.mktemp("base") / "run", material, BASE, "hidden_states"))
    assert len(found) == 20
    assert sum(norm > 0.1 for _, norm in found) > 5
    return found


@pytest.mark.parametrize("payload", ["hidden_states", "logits"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_curve(
    tmp_path: Path, material: Material, base: list[tuple[float, float]], name: str, payload: str
) -> None:
    if (name, payload) == (BASE, "hidden_states"):
        loss, norm = first_step(material.teacher, material.student, material.train, slice(0, 8), beta=0.5)
        assert base[0] == (pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=1e-5))
        return
    ranks = run_layout(tmp_path / "run", material, name, payload)
    assert same(curve(ranks), base)


@pytest.mark.parametrize("student", ["student", "untied_student", "padded_student"])
def test_tied_untied_and_padded_heads_under_fsdp_equal_the_reference(
    tmp_path: Path, material: Material, student: str
) -> None:
    folder = getattr(material, student)
    ranks = run_layout(tmp_path / "run", material, "1+2", "hidden_states", student=folder, training__steps=2)
    loss, norm = first_step(material.teacher, folder, material.train, slice(0, 8), beta=0.5)
    assert curve(ranks)[0] == (pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=1e-5))


def test_sgd_which_hides_nothing_agrees_too(tmp_path: Path, material: Material) -> None:
    overrides = {"training__learning_rate": 1e-2, "training__max_grad_norm": None}
    runs = [run_layout(tmp_path / name, material, name, "hidden_states", "sgd", **overrides) for name in (BASE, "1+2")]
    curves = [curve(run) for run in runs]
    assert same(curves[1], curves[0])
    assert curves[0][-1] != curves[0][4]


@pytest.mark.parametrize("defect", ["mean_per_rank", "factor_two", "drop_second_micro_batch"])
def test_a_defect_is_seen(tmp_path: Path, material: Material, base: list[tuple[float, float]], defect: str) -> None:
    ranks = run_layout(tmp_path / "run", material, "1+2", "hidden_states", defect, training__steps=20)
    assert not same(curve(ranks), base)


def mapped_weights(pid: int) -> set[str]:
    """The safetensors that the kernel shows in a process's memory."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if line.endswith("model.safetensors")}


def test_the_kernel_shows_the_planned_processes_with_different_models(tmp_path: Path, material: Material) -> None:
    layout = make_layout(**LAYOUTS["2+1"], accumulation=2)
    models = (material.teacher, material.student)
    run_dir = make_run(tmp_path / "run", layout, *models, material.tokens, training__steps=400)
    ranks = start_ranks(run_dir, layout, launcher="torchrun")
    wait_for_step(run_dir, 3)
    roles = [Path(f"/proc/{p.pid}/cmdline").read_bytes().split(b"\0")[-2].decode() for p in ranks.processes]
    mapped = [mapped_weights(process.pid) for process in ranks.processes]
    codes = ranks.wait()
    assert codes == [0, 0, 0], ranks.outputs()
    assert roles == ["teacher", "teacher", "student"]
    teacher = str(material.teacher / "model.safetensors")
    assert [teacher in files for files in mapped] == [True, True, False]


def wait_for_step(run_dir: RunDir, steps: int) -> None:
    wait_for(lambda: run_dir.metrics.exists() and run_dir.metrics.read_text().count('"loss"') >= steps)


def wait_for(true: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {seconds:g} s"
        time.sleep(0.05)

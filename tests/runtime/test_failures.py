"""How a run ends when something is wrong: refused, recorded once, and every rank gone."""

import json
import signal
from pathlib import Path

import pytest

from kd_launch.plan import TokenStores
from tests.runtime.conftest import Material
from tests.runtime.harness import MODULE, Ranks, make_layout, make_model, make_run, make_store, start_ranks
from tests.runtime.test_layout_invariance import WORKER, wait_for_step

ONE_AND_ONE = {"teachers": 1, "replicas": 1, "micro_batch": 2, "accumulation": 2}


def start(
    folder: Path, material: Material, defect: str | None = None, launcher: str = "torchrun", **changes: object
) -> Ranks:
    layout = make_layout(**{**ONE_AND_ONE, **changes.pop("layout", {})})
    run_dir = make_run(folder, layout, material.teacher, material.student, material.tokens, **changes)
    return start_ranks(run_dir, layout, MODULE if defect is None else (WORKER, defect), launcher)


def failure(ranks: Ranks) -> dict[str, object]:
    return json.loads(ranks.run_dir.failure(1).read_text())


def test_a_teacher_one_micro_batch_off_is_refused(tmp_path: Path, material: Material) -> None:
    ranks = start(tmp_path / "run", material, "one_micro_batch_off")
    assert all(ranks.wait())
    record = failure(ranks)
    assert (record["role"], record["rank"]) == ("student", 1)
    assert "micro-batch 0 from teacher rank 0" in record["error"]
    assert "its micro-batch is 1 but must be 0" in record["error"]
    assert not ranks.run_dir.done_record(1).exists()


def test_a_student_that_raises_is_the_first_failure_not_the_teacher_that_lost_it(
    tmp_path: Path, material: Material
) -> None:
    ranks = start(tmp_path / "run", material, "die_in_step_three", training__steps=500)
    assert all(ranks.wait(60))
    record = failure(ranks)
    assert (record["role"], record["rank"], record["attempt"], record["kind"]) == ("student", 1, 1, "raised")
    assert record["error"] == "RuntimeError: the third step is one too many"
    assert "in dying" in record["traceback"]


def test_a_killed_teacher_ends_its_student_which_names_it(tmp_path: Path, material: Material) -> None:
    ranks = start(tmp_path / "run", material, training__steps=5000)
    wait_for_step(ranks.run_dir, 2)
    ranks.processes[0].send_signal(signal.SIGKILL)
    assert ranks.wait(60) == [-signal.SIGKILL, 1]
    record = failure(ranks)
    assert (record["role"], record["rank"], record["kind"]) == ("teacher", 0, "killed")
    assert "rank 1 on " in record["error"]
    words = [json.loads(ranks.run_dir.heartbeat(rank).read_text())["ended"] for rank in (0, 1)]
    assert words == [None, "lost_peer"]


def test_losses_that_stay_no_numbers_end_the_run(tmp_path: Path, material: Material) -> None:
    ranks = start(tmp_path / "run", material, "not_finite")
    assert all(ranks.wait())
    assert "3 steps in a row were not finite" in str(failure(ranks)["error"])
    assert len(ranks.steps()) == 5


@pytest.mark.parametrize(("variable", "value", "words"), [
    ("WORLD_SIZE", "3", "3 ranks were started but the plan has 2"),
    ("LOCAL_RANK", "x", "LOCAL_RANK is 'x'"),
])  # fmt: skip
def test_a_wrong_environment_is_refused_in_one_line(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    import kd_launch.runtime.__main__ as runtime

    layout = make_layout(**ONE_AND_ONE)
    run_dir = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens)
    for name, number in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, number)
    monkeypatch.setenv(variable, value)
    assert runtime.main([str(run_dir.path), "--role", "teacher"]) == 2
    assert words in json.loads(run_dir.failure(1).read_text())["error"]


def test_a_wrong_role_is_refused(tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    import kd_launch.runtime.__main__ as runtime

    layout = make_layout(**ONE_AND_ONE)
    run_dir = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens)
    for name, number in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, number)
    assert runtime.main([str(run_dir.path), "--role", "student"]) == 2
    assert "the plan makes it teacher" in json.loads(run_dir.failure(1).read_text())["error"]


def test_a_damaged_model_and_a_damaged_store_are_one_line(tmp_path: Path, material: Material) -> None:
    broken = make_model(tmp_path / "broken", seed=5)
    (broken / "model.safetensors").write_bytes(b"no weights at all")
    layout = make_layout(teachers=1, replicas=1, colocated=True, micro_batch=2, accumulation=1)
    cut = make_store(tmp_path / "cut", 4)
    (cut / "ids.npy").write_bytes((cut / "ids.npy").read_bytes()[:100])
    runs = [
        make_run(tmp_path / "a", layout, broken, material.student, material.tokens),
        make_run(tmp_path / "b", layout, material.teacher, material.student, TokenStores(train=str(cut))),
    ]
    for run_dir, words in zip(runs, ("broken", "ids.npy"), strict=True):
        ranks = start_ranks(run_dir, layout)
        assert ranks.wait() == [2]
        assert words in str(failure(ranks)["error"])
        assert "Traceback" not in ranks.output(0)


@pytest.mark.parametrize("prefetch", [1, 4])
def test_a_run_shorter_than_the_prefetch_ends_in_order(tmp_path: Path, material: Material, prefetch: int) -> None:
    changes = {"layout": {"prefetch": prefetch, "teachers": 2}, "training__steps": 1}
    ranks = start(tmp_path / "run", material, **changes)
    assert ranks.wait() == [0, 0, 0], ranks.outputs()
    assert "reset by peer" not in ranks.outputs()

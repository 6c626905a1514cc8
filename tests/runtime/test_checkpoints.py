"""A run that is killed, told to leave, or moved to another layout goes on as if nothing had happened."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from kd_launch.plan import Layout, RunPlan
from kd_launch.run_dir import RunDir
from tests.runtime.conftest import Material
from tests.runtime.harness import Ranks, make_layout, make_run, run_to_end, start_ranks
from tests.runtime.test_layout_invariance import WORKER, wait_for

STEPS = 16
SHARDED = make_layout(teachers=1, replicas=1, fsdp=2, micro_batch=2, accumulation=2)
OTHER = make_layout(teachers=1, replicas=1, micro_batch=4, accumulation=2)
SPEC: dict[str, Any] = {"training__steps": STEPS, "checkpoint__every_steps": 4, "training__eval_every_steps": 6}


def new_run(folder: Path, material: Material, layout: Layout = SHARDED, **changes: Any) -> RunDir:
    return make_run(folder, layout, material.teacher, material.student, material.tokens, **{**SPEC, **changes})


def copy_of(run: RunDir, folder: Path, layout: Layout) -> RunDir:
    """The run as it stands, with another layout."""
    shutil.copytree(run.path, folder, symlinks=True)
    copy = RunDir(folder)
    plan = RunPlan.model_validate_json(copy.plan.read_bytes())
    copy.plan.write_text(plan.model_copy(update={"layout": layout}).model_dump_json())
    return copy


def begin_of(run: RunDir, attempt: int) -> int:
    return int(json.loads(run.start_record(attempt).read_text())["step"])


def waits_for(run: RunDir, rank: int, words: str) -> bool:
    path = run.heartbeat(rank)
    return path.exists() and words in (json.loads(path.read_text())["waiting_for"] or "")


@pytest.fixture(scope="module")
def undisturbed(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return run_to_end(new_run(tmp_path_factory.mktemp("undisturbed") / "run", material), SHARDED)


@pytest.fixture(scope="module")
def left(material: Material, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of which one student was told to leave while both waited for a teacher that stood still."""
    run = new_run(tmp_path_factory.mktemp("left") / "run", material)
    ranks = start_ranks(run, SHARDED)
    wait_for(lambda: ranks.has_done(5))
    ranks.send(0, signal.SIGSTOP)
    wait_for(lambda: waits_for(run, 1, "payload"))
    ranks.send(2, signal.SIGTERM)
    wait_for(lambda: json.loads(run.heartbeat(1).read_text())["ended"] == "TERM")
    ranks.send(0, signal.SIGCONT)
    assert ranks.wait() == [0, 0, 0], ranks.outputs()
    return run


def test_a_student_that_is_told_to_leave_while_it_waits_saves_its_last_step(left: RunDir) -> None:
    done = [json.loads(line)["step"] for line in left.metrics.read_text().splitlines()][-1]
    assert left.checkpoint_steps()[-1] == done
    assert left.latest_checkpoint.readlink().name == left.checkpoint(done).name
    assert json.loads((left.checkpoint(done) / "state.json").read_text())["next_sequence"] == 8 * done
    assert json.loads(left.leave_record(1).read_text())["rank"] == 2
    assert not left.failure(1).exists()
    assert not list(left.checkpoints.glob(".step*"))


def test_it_goes_on_in_every_digit_even_when_killed_again_and_from_an_older_checkpoint(
    left: RunDir, undisturbed: Ranks, tmp_path: Path
) -> None:
    run = copy_of(left, tmp_path / "run", SHARDED)
    begun = left.checkpoint_steps()[-1]
    ranks = start_ranks(run, SHARDED, attempt=2)
    wait_for(lambda: ranks.has_done(begun + 3))
    for rank in range(3):
        ranks.send(rank, signal.SIGKILL)
    ranks.wait()
    assert begin_of(run, 2) == begun
    with run.metrics.open("a") as metrics:
        metrics.write('{"step": 99, "lo')
    newest, older = run.checkpoint_steps()[-1], run.checkpoint_steps()[-2]
    damaged = run.checkpoint(newest) / "model-optim" / "__1_0.distcp"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    ranks = run_to_end(run, SHARDED, attempt=3)
    assert begin_of(run, 3) == older
    assert f"step-{newest:08d} is not sound" in ranks.output(1)
    assert ranks.losses() == undisturbed.losses()
    assert run.checkpoint_steps()[-1] == STEPS
    ours, theirs = (one / "model.safetensors" for one in (run.model, undisturbed.run_dir.model))
    assert ours.read_bytes() == theirs.read_bytes()


def test_it_goes_on_with_other_shards(left: RunDir, undisturbed: Ranks, tmp_path: Path) -> None:
    run = copy_of(left, tmp_path / "run", OTHER)
    ranks = run_to_end(run, OTHER, attempt=2)
    assert begin_of(run, 2) == left.checkpoint_steps()[-1]
    expected = undisturbed.losses()
    assert ranks.losses() == {step: pytest.approx(values, rel=1e-6) for step, values in expected.items()}


def test_students_that_do_not_agree_leave_without_a_checkpoint(material: Material, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", material, checkpoint__every_steps=3, training__steps=5000)
    ranks = start_ranks(run, SHARDED, program=(WORKER, "impatient"))
    wait_for(lambda: run.latest_checkpoint.exists())
    ranks.send(2, signal.SIGSTOP)
    ranks.send(1, signal.SIGUSR2)
    wait_for(lambda: json.loads(run.heartbeat(1).read_text())["ended"] == "USR2", 30)
    ranks.send(2, signal.SIGCONT)
    assert ranks.wait() == [0, 0, 0], ranks.outputs()
    assert "leaves without a checkpoint of the last step" in ranks.output(1)
    assert json.loads(run.leave_record(1).read_text())["signal"] == "USR2"
    assert not run.failure(1).exists()


def test_losses_that_are_no_numbers_stop_it_with_a_checkpoint_from_before(material: Material, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", material, OTHER, checkpoint__every_steps=2)
    ranks = start_ranks(run, OTHER, program=(WORKER, "not_finite"))
    codes = ranks.wait()
    assert codes[1] == 5, ranks.outputs()
    assert "3 steps in a row were not finite" in ranks.outputs()
    assert [line["skipped_steps"] for line in ranks.metrics() if "loss" in line] == [0, 0, 0, 1, 2]
    assert run.checkpoint_steps() == [2, 3]
    state = json.loads((run.checkpoint(3) / "state.json").read_text())
    assert (state["step"], state["bad_steps"], state["skipped_steps"]) == (3, 0, 0)


def test_without_a_place_for_checkpoints_the_training_goes_on_and_says_so(material: Material, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", material, OTHER)
    run.checkpoints.write_text("no folder")
    ranks = run_to_end(run, OTHER)
    said = ranks.output(1)
    assert f"warning: {run.checkpoints}: the checkpoint of step 4 could not be written: " in said
    assert "File exists" in said
    assert len(ranks.losses()) == STEPS
    assert run.done_record(1).exists()

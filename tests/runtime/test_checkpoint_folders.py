"""A checkpoint's folder: it is read only if it is whole, ours, and what was written; a sound one always is there."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from run_folders import make_run

from kd_launch.errors import SpecError
from kd_launch.plan import read_run_plan
from kd_launch.run_dir import RunDir
from kd_launch.runtime.checkpoint import manifest
from kd_launch.runtime.checkpoint.choice import choose
from kd_launch.runtime.checkpoint.folders import begin, prune, publish, tidy
from kd_launch.runtime.checkpoint.manifest import (
    MANIFEST,
    TENSORS,
    UnreadError,
    UnsoundError,
    read_manifest,
    sum_of,
    verify,
)
from kd_launch.runtime.checkpoint.manifest import write_manifest as write
from kd_launch.runtime.checkpoint.saver import SaveError, Saver, Storage
from kd_launch.runtime.checkpoint.state import STATE, SavedState, read_state
from kd_launch.runtime.checkpoint.tensors import Copies, TrainState
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.metrics import MetricsFile
from kd_launch.runtime.record import Recorder


def make(run: RunDir, step: int, data: bytes = b"weights", attempt: int = 1) -> Path:
    """A checkpoint as the saver makes it."""
    folder = begin(run, step, attempt)
    (folder / TENSORS / "__0_0.distcp").write_bytes(data)
    (folder / TENSORS / "__0_0.distcp").chmod(0o644)
    name = f"{TENSORS}/__0_0.distcp"
    write(folder, step, {name: sum_of(folder / name)})
    publish(run, folder, step)
    return run.checkpoint(step)


def check(folder: Path) -> None:
    verify(folder, read_manifest(folder, late=0), late=0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    old = os.umask(0o002)  # as where every user has a group of his own
    (tmp_path / "run").mkdir()
    os.umask(old)
    return RunDir(tmp_path / "run")


def tensors(folder: Path) -> Path:
    return folder / TENSORS / "__0_0.distcp"


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda it: tensors(it).write_bytes(b"weighst"), "is not what was written: its sha256 is"),
    "a file cut short": (lambda it: tensors(it).write_bytes(b"w"), "has 1 bytes instead of 7"),
    "a missing file": (lambda it: tensors(it).unlink(), "is missing"),
    "a missing manifest": (lambda it: (it / MANIFEST).unlink(), "manifest.json is missing"),
    "half a manifest": (lambda it: (it / MANIFEST).write_text('{"files": {'), "manifest.json is damaged"),
    "a manifest of something else": (lambda it: (it / MANIFEST).write_text("[]"), "manifest.json is damaged"),
    "a file that others may write": (lambda it: tensors(it).chmod(0o666), "others may write __0_0.distcp (mode 0666)"),
    "a folder that others may write": (lambda it: it.chmod(0o775), "others may write step-00000003 (mode 0775)"),
    "a link": (lambda it: (tensors(it).rename(it / "x"), tensors(it).symlink_to(it / "x")), "is a link or a device"),
    "a file that was not there": (
        lambda it: (it / TENSORS / ".metadata").write_bytes(b"cos\nsystem\n"),
        "manifest.json does not name model-optim/.metadata",
    ),
    "a path out of it": (
        lambda it: (it / MANIFEST).write_text(json.dumps({"files": {"../x": {"bytes": 1, "sha256": ""}}})),
        "names ../x, which is not in the checkpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_or_may_be_anothers_is_not_read(run: RunDir, name: str) -> None:
    folder = make(run, 3)
    check(folder)
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(UnsoundError) as error:
        check(folder)
    # The link's own size is looked at first.
    assert words in str(error.value) or (name == "a link" and "instead of 7" in str(error.value))


@pytest.fixture
def alone() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def chosen(run: RunDir, group: dist.ProcessGroup) -> int:
    return choose(run, 2, 0, group, Progress("steps"))


def test_what_only_cannot_be_read_now_stays_and_the_training_does_not_begin_anew(
    run: RunDir, alone: dist.ProcessGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    make(run, 2)
    make(run, 3).chmod(0o775)  # as by somebody's chmod -R
    assert chosen(run, alone) == 2
    assert "step-00000003 is not sound and is passed over: others may write" in capsys.readouterr().err
    run.checkpoint(2).chmod(0o775)
    with pytest.raises(
        SpecError, match=r"no checkpoint can be read: others may write step-00000003 .* move the folder"
    ):
        chosen(run, alone)
    assert run.checkpoint_steps() == [2, 3]
    run.checkpoint(3).chmod(0o755)
    assert chosen(run, alone) == 3


def test_damaged_ones_stand_aside_and_the_training_begins_anew(run: RunDir, alone: dist.ProcessGroup) -> None:
    tensors(make(run, 3)).write_bytes(b"weighst")
    assert chosen(run, alone) == 0
    assert [path.name[:22] for path in run.checkpoints.glob(".step*")] == [".step-00000003.damaged"]


def test_a_disk_that_fails_is_no_damage(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(run, 3)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(manifest, "sum_of", fail)
    with pytest.raises(UnreadError, match="cannot be read: Input/output error"):
        check(folder)


def test_checkpoints_may_lie_on_another_disk(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    run.checkpoints.symlink_to(tmp_path / "scratch")
    check(make(run, 3))


def test_one_that_a_network_file_system_shows_late_is_waited_for(run: RunDir) -> None:
    folder = make(run, 3)
    folder.rename(folder.with_name("late"))
    shown = threading.Timer(0.2, lambda: folder.with_name("late").rename(folder))
    shown.start()
    verify(folder, read_manifest(folder))


def test_where_modes_come_out_otherwise_the_save_fails_and_not_the_next_attempt(
    run: RunDir, alone: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.plan.write_text("{}")
    model = torch.nn.Linear(2, 2)
    state = TrainState(model, torch.optim.SGD(model.parameters()))
    saver = Saver(Storage(run, 1, 2, 0, alone), state, Copies(torch.device("cpu")), 0, lambda: None)
    saved = SavedState(step=1, attempt=1, time=0.0, next_sequence=1, learning_rate=0.0, decides={})
    old = os.umask(0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", lambda *_: None)  # as some network file systems take it
        with pytest.raises(SaveError, match=r"could not be read again: others may write checkpoints \(mode 0777\)"):
            saver.save_now(lambda: saved)
    os.umask(old)
    assert run.checkpoint_steps() == []
    saver.save_now(lambda: saved)
    assert run.checkpoint_steps() == [1]


def test_a_checkpoint_of_another_training_is_refused(run: RunDir, tmp_path: Path) -> None:
    plan = read_run_plan(make_run(tmp_path / "made").plan)
    folder = begin(run, 3, 1)
    (folder / STATE).write_text(Recorder(plan, 1, torch.device("cpu"), None).state(3).model_dump_json())
    assert read_state(folder, plan).step == 3
    training = plan.spec.training.model_copy(update={"learning_rate": 0.5})
    other = plan.model_copy(update={"spec": plan.spec.model_copy(update={"training": training})})
    words = (
        r"was made with training\.learning_rate .* but the run has 0\.5; .* submit another run, or remove its checkp"
    )
    with pytest.raises(SpecError, match=words):
        read_state(folder, other)


def test_a_checkpoint_of_another_student_is_refused(run: RunDir, alone: dist.ProcessGroup) -> None:
    run.plan.write_text("{}")
    states = []
    for size in (2, 3):
        model = torch.nn.Linear(size, 2)
        states.append(TrainState(model, torch.optim.SGD(model.parameters())))
    saver = Saver(Storage(run, 1, 2, 0, alone), states[0], Copies(torch.device("cpu")), 0, lambda: None)
    saver.save_now(lambda: SavedState(step=1, attempt=1, time=0, next_sequence=1, learning_rate=0, decides={}))
    states[0].load(run.checkpoint(1) / TENSORS, alone)
    with pytest.raises(SpecError, match="is of another student: parameter weight differs"):
        states[1].load(run.checkpoint(1) / TENSORS, alone)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_belongs_to_another_user_is_not_read(run: RunDir) -> None:
    folder = make(run, 3)
    os.chown(tensors(folder), 12345, -1)
    with pytest.raises(UnsoundError, match=r"__0_0\.distcp belongs to user 12345, not to 0"):
        check(folder)


def test_a_sound_one_is_never_replaced_and_a_damaged_one_is(run: RunDir) -> None:
    make(run, 3)
    assert tensors(make(run, 3, b"another", attempt=2)).read_bytes() == b"weights"
    tensors(run.checkpoint(3)).write_bytes(b"damaged")
    assert tensors(make(run, 3, b"another", attempt=3)).read_bytes() == b"another"
    check(run.checkpoint(3))
    assert run.checkpoint_steps() == [3]


def test_the_newest_stay_and_what_was_half_done_goes(run: RunDir) -> None:
    for step in (1, 2, 3, 9):
        make(run, step)
    prune(run, newest=3, keep=2)
    assert run.checkpoint_steps() == [2, 3, 9]
    assert run.latest_checkpoint.readlink() == Path("step-00000009")
    begin(run, 4, attempt=1)
    own = begin(run, 5, attempt=2)
    tidy(run, attempt=2)
    assert [path.name for path in run.checkpoints.glob(".*")] == [own.name]


def test_killed_every_50_ms_of_a_write_the_newest_one_always_loads(tmp_path: Path) -> None:
    kills = 8
    command = [sys.executable, "-m", "tests.runtime.killed_saves", str(tmp_path), str(kills)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == kills, done.stderr
    assert [begin for begin, _ in found] == [named for _, named in found], done.stderr
    assert found[-1][0] > 0


def test_lines_wait_while_the_disk_is_full_and_a_torn_one_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    metrics = MetricsFile(path)
    write_ = os.write
    room = [4]

    def full(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        written = write_(descriptor, data[: room[0]])
        room[0] = 0
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        metrics.write({"step": 2})
        metrics.write({"step": 3})
        with pytest.raises(OSError, match="No space left on device: "):
            metrics.sync()
    assert capsys.readouterr().err.count("its lines wait, and the training goes on") == 1
    metrics.write({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_each_line_is_written_once_while_a_checkpoint_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    write_ = os.write

    def slow(descriptor: int, data: bytes) -> int:
        time.sleep(0.001)  # the other thread comes in between
        return write_(descriptor, data)

    monkeypatch.setattr(os, "write", slow)
    steps = range(100)
    with ThreadPoolExecutor(1) as saver:
        syncs = [saver.submit(metrics.sync) for _ in steps]
        for step in steps:
            metrics.write({"step": step})
    for sync in syncs:
        sync.result()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(steps)

"""Which run is meant."""

import json
from pathlib import Path

import pytest
from run_folders import alive, make_run
from slurm_runs import make_slurm_run

from kd_launch.errors import SpecError, UnknownNameError
from kd_launch.plan import read_run_plan
from kd_launch.runs.lookup import find_run, list_runs, run_root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for number, name in enumerate(["chat-20260101-000000", "chat-20260102-000000", "code-20260101-000000"]):
        make_run(root / name, created=100.0 + number)
    (root / "tokens").mkdir()
    (root / "file").write_text("")
    return root


def test_lists_runs_only_newest_first(root: Path) -> None:
    names = [run.name for run in list_runs(root)]
    assert names == ["code-20260101-000000", "chat-20260102-000000", "chat-20260101-000000"]
    assert list_runs(root / "nothing") == []


def test_finds_by_name_beginning_job_and_latest(root: Path, tmp_path: Path) -> None:
    running = make_run(root / "zeta-1", alive(), created=50.0)
    for text, name in {
        "code": "code-20260101-000000",
        "chat-20260102": "chat-20260102-000000",
        "chat-20260101-000000": "chat-20260101-000000",
        "latest": "code-20260101-000000",
        str(alive().pid): running.name,
    }.items():
        assert find_run(text, root, tmp_path).path == root / name


def test_finds_a_slurm_run_by_every_job_that_it_was(root: Path, tmp_path: Path) -> None:
    slurm_run = make_slurm_run(root / "slurm-1", job_id="612")
    state = json.loads(slurm_run.state.read_text())
    slurm_run.state.write_text(json.dumps({**state, "earlier_jobs": ["540", "577"]}))
    for text in ("612", "612+0", "612+1", "540", "577+1"):
        assert find_run(text, root, tmp_path).path == slurm_run.path
    for text in ("613", "612_1", "612.0"):
        with pytest.raises(UnknownNameError):
            find_run(text, root, tmp_path)


def test_a_whole_name_is_no_beginning(root: Path, tmp_path: Path) -> None:
    make_run(root / "chat-20260102-000000-2")
    assert find_run("chat-20260102-000000", root, tmp_path).name == "chat-20260102-000000"


@pytest.mark.parametrize(
    "text", ["runs/code-20260101-000000", "./runs/code-20260101-000000/", "{tmp}/runs/code-20260101-000000"]
)
def test_finds_a_folder(root: Path, tmp_path: Path, text: str) -> None:
    assert find_run(text.format(tmp=tmp_path), tmp_path / "elsewhere", tmp_path).path == root / "code-20260101-000000"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat", "chat: 2 runs match: chat-20260102-000000, chat-20260101-000000; write more of the name"),
        ("1", "1: 3 runs match"),
        ("char-20260102-000000", "did you mean 'chat-20260102-000000'"),
        ("", "no such run in"),
        ("zzz", "the newest: code-20260101-000000, chat-20260102-000000, chat-20260101-000000"),
        ("runs/tokens", "no run: it has no plan.json"),
        ("runs/nothing", "no such folder"),
        ("..", "no run"),
    ],
)
def test_unknown_and_ambiguous(root: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_run(text, root, tmp_path)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="--run-root"):
        find_run("latest", tmp_path / "runs", tmp_path)


def test_run_root(tmp_path: Path) -> None:
    assert run_root(None, {}, tmp_path) == tmp_path / "runs"
    assert run_root(None, {"KD_LAUNCH_RUNS": "a"}, tmp_path) == tmp_path / "a"
    assert run_root(None, {"KD_LAUNCH_RUNS": "~/a", "HOME": "/h"}, tmp_path) == Path("/h/a")
    assert run_root(Path("b"), {"KD_LAUNCH_RUNS": "/a"}, tmp_path) == tmp_path / "b"


def test_a_run_root_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(SpecError, match="Not a directory"):
        list_runs(tmp_path / "runs")


def test_a_broken_state_does_not_hide_other_runs(root: Path, tmp_path: Path) -> None:
    (root / "code-20260101-000000" / "state.json").write_text("{")
    assert len(list_runs(root)) == 3
    assert find_run("chat-20260101", root, tmp_path).name == "chat-20260101-000000"


def test_a_plan_of_another_version_says_which(root: Path) -> None:
    path = root / "chat-20260101-000000" / "plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({**plan, "version": "9.9", "launch_plan": {}}))
    with pytest.raises(SpecError, match=r"launch_plan: .*; kd-launch 9\.9 wrote it and this is .*: use that one, or"):
        read_run_plan(path)
    path.write_text("{")
    with pytest.raises(SpecError, match=r"plan\.json: .*; it is damaged: submit again"):
        read_run_plan(path)

"""The preflight: each thing that it looks at, found right and found wrong."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import Project

from kd_launch.checks.finding import Finding, Place
from kd_launch.checks.preflight import check
from kd_launch.commands import run
from kd_launch.errors import DoesNotFitError
from kd_launch.local.machine import Machine
from kd_launch.plan import Layout
from kd_launch.preparation import Source, load_inputs, plan_inputs

MACHINE = Machine(cores=2, memory_gib=8.0, gpus=())


def look(
    project: Project,
    *settings: str,
    machine: Machine = MACHINE,
    change: Callable[[Layout], Layout] = lambda layout: layout,
    **environ: str,
) -> dict[str, Finding]:
    source = Source(project.config, settings, None, {**project.environ, **environ}, project.folder)
    inputs = load_inputs(source)
    place = Place(machine, source.environ, project.folder, run)
    found = list(check(inputs, lambda: change(plan_inputs(inputs).chosen), place))
    return {finding.what: finding for finding in found}


def failed(found: dict[str, Finding]) -> dict[str, str]:
    return {what: finding.says for what, finding in found.items() if not finding.ok}


def test_all_is_well(project: Project) -> None:
    found = look(project)
    assert failed(found) == {}
    assert list(found) == [
        "teacher.model", "student.model", "data.sequence_length", "data.train", "tokens", "run_root", "layout",
        "pool here", "script", "python",
    ]  # fmt: skip
    assert found["tokens"].says.endswith("is not prepared yet; submit prepares it")
    assert found["layout"].line().startswith("ok   layout: disjoint, teacher on 1")


def test_it_leaves_nothing_behind(project: Project) -> None:
    before = sorted(project.folder.rglob("*"))
    look(project)
    assert sorted(project.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("missing", "words"),
    [("model.safetensors", "has no *.safetensors"), ("tokenizer.json", "has no tokenizer files")],
)
def test_a_model_folder_that_lacks_something(project: Project, missing: str, words: str) -> None:
    (project.folder / "teacher" / missing).unlink()
    assert words in failed(look(project))["teacher.model"]


def test_a_shard_of_the_weights_that_is_missing(project: Project) -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    folder = project.folder / "student"
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert failed(look(project)) == {
        "student.model": f"{folder}: has no two.safetensors; a model folder holds what save_pretrained writes"
    }
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json: cannot be read" in failed(look(project))["student.model"]


def test_a_student_without_weights_of_its_own(project: Project) -> None:
    (project.folder / "student" / "model.safetensors").unlink()
    assert failed(look(project, "student.start_from=random")) == {}
    found = look(project, "student.model=null", "student.start_from={teacher_layers: [0]}")
    assert failed(found) == {}
    assert "student.model" not in found


def test_a_hub_id_that_is_not_in_the_cache(project: Project) -> None:
    settings = (
        "teacher.model=Qwen/Qwen3-0.6B",
        "data.format=tokens",
        "data.train=x.npy",
        "cluster.pools.0.memory_gib=64",
    )
    (project.folder / "x.npy").write_bytes(b"")
    found = look(project, *settings, machine=replace(MACHINE, memory_gib=64.0), HF_HUB_OFFLINE="0")
    assert found["teacher.model"].ok
    assert found["teacher.model"].says.endswith("is not in the Hugging Face cache; submit fetches it")
    offline = look(project, *settings, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to fetch it" in failed(offline)["teacher.model"]


def test_a_sequence_that_is_too_long(project: Project) -> None:
    assert failed(look(project, "data.sequence_length=512"))["data.sequence_length"] == (
        "is 512 but the student takes 256 tokens at most; set 256 or less"
    )


def test_data_that_is_not_there(project: Project) -> None:
    found = look(project, "data.train=nothing/*.jsonl", "data.eval=data")
    assert list(failed(found)) == ["data.train"]
    assert "no file matches" in failed(found)["data.train"]
    assert "tokens" not in found


def test_a_run_root_that_cannot_be_written(project: Project) -> None:
    assert "is not a folder; set run_root" in failed(look(project, "cluster.run_root=distill.yaml"))["run_root"]
    assert "set run_root" in failed(look(project, "cluster.run_root=/proc/nothing"))["run_root"]


def test_a_disk_that_is_too_small(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=100))
    found = failed(look(project))["run_root"]
    assert re.search(r"0\.0 MiB are free, but the student alone takes \d+\.\d MiB; free space there", found)


def test_a_layout_that_does_not_fit(project: Project) -> None:
    def refuse(_: Layout) -> Layout:
        raise DoesNotFitError("the teacher takes 10 GiB\nof 2")

    assert failed(look(project, change=refuse)) == {"layout": "the teacher takes 10 GiB; of 2"}


def test_a_machine_that_is_smaller_than_the_file_says(project: Project) -> None:
    found = look(project, machine=replace(MACHINE, memory_gib=0.001))
    assert "but this machine has 0.0; correct memory_gib in the cluster file" in failed(found)["pool here"]


def test_gpus_that_are_not_there(project: Project) -> None:
    found = look(project, "cluster.pools.0.gpu=H100-SXM-80", "cluster.pools.0.gpus_per_node=2")
    assert failed(found)["pool here"] == "the layout takes 2 GPUs but this machine shows 0"


def test_an_interpreter_that_lacks_torch(project: Project) -> None:
    probe = json.dumps({"missing": ["torch"], "version": None})
    found = look(project, f"cluster.environment.FAKE_PROBE={json.dumps(probe)}")
    assert failed(found)["python"] == (
        f"{project.folder / 'python'}: has no torch; give it `{project.folder / 'python'} -m pip install "
        "'kd-launch[runtime]'`"
    )


def test_an_interpreter_of_another_version(project: Project) -> None:
    probe = json.dumps({"missing": [], "version": "9.9"})
    found = look(project, f"cluster.environment.FAKE_PROBE={json.dumps(probe)}")
    assert "has kd-launch 9.9 but this is" in failed(found)["python"]


def test_a_script_that_cannot_be_written(project: Project) -> None:
    found = look(project, "cluster.environment.RANK='1'")
    assert "RANK is a variable of" in failed(found)["script"]


@pytest.mark.parametrize(("break_it", "code"), [(False, 0), (True, 3)])
def test_the_command(project: Project, break_it: bool, code: int) -> None:
    if break_it:
        (project.folder / "data" / "a.jsonl").unlink()
    done = project.call("check", "distill.yaml")
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok   ", "FAIL ")) for line in lines)
    assert [line.split(":")[0] for line in lines if line.startswith("FAIL")] == ["FAIL data.train"] * break_it
    assert done.stderr == ("error: 1 of these would fail\n" if break_it else "")


def test_submit_says_all_that_failed(project: Project) -> None:
    (project.folder / "data" / "a.jsonl").unlink()
    (project.folder / "teacher" / "tokenizer.json").unlink()
    done = project.call("submit", "distill.yaml", project.ranks(every=[]))
    assert done.returncode == 3
    errors = done.stderr.splitlines()
    assert [error.split(": ")[:2] for error in errors] == [["error", "teacher.model"], ["error", "data.train"]]
    assert not project.runs.exists()

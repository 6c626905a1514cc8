"""The preflight: each thing that it looks at, found right and found wrong."""

import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY, Project, shapes_of, write_weights

from kd_launch.checks.finding import Finding, Level, Place
from kd_launch.checks.models import check_models
from kd_launch.checks.preflight import check
from kd_launch.commands import run
from kd_launch.errors import DoesNotFitError, SpecError
from kd_launch.local.machine import Machine
from kd_launch.plan import Layout
from kd_launch.preparation import Inputs, Source, load_inputs, plan_inputs
from kd_launch.weight_files import read_header

MACHINE = Machine(cores=2, memory_gib=8.0, gpus=())


def inputs_of(project: Project, *settings: str, **environ: str) -> Inputs:
    return load_inputs(Source(project.config, settings, None, {**project.environ, **environ}, project.folder))


def place_of(project: Project, machine: Machine = MACHINE, **environ: str) -> Place:
    return Place(machine, {**project.environ, **environ}, project.folder, run)


def look(
    project: Project,
    *settings: str,
    machine: Machine = MACHINE,
    change: Callable[[Layout], Layout] = lambda layout: layout,
    **environ: str,
) -> dict[str, Finding]:
    inputs = inputs_of(project, *settings, **environ)
    place = place_of(project, machine, **environ)
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
    [("model.safetensors", "has no model.safetensors"), ("tokenizer.json", "has no tokenizer files")],
)
def test_a_model_folder_that_lacks_something(project: Project, missing: str, words: str) -> None:
    (project.folder / "teacher" / missing).unlink()
    assert words in failed(look(project))["teacher.model"]


def test_a_shard_of_the_weights_that_is_missing(project: Project) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": "one.safetensors", "b": "two.safetensors"}}
    folder = project.folder / "student"
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert failed(look(project)) == {
        "student.model": f"{folder}: has no two.safetensors; a model folder holds what save_pretrained writes"
    }
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json: cannot be read" in failed(look(project))["student.model"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda sound: sound[:-100],
    "longer": lambda sound: sound + b"x",
    "empty": lambda _: b"",
    "text": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "header": lambda sound: sound.replace(b'"BF16"', b'"BF16,'),
    "shape": lambda sound: sound.replace(b"[128, 32]", b"[128, 33]"),
}
OTHERS: dict[str, dict[str, tuple[int, ...]]] = {
    "width": shapes_of(2, 48),
    "layer": shapes_of(1),
    "mlp": {**shapes_of(2), "model.layers.0.mlp.down_proj.weight": (32, 65)},
}
INDICES = {"outside": {"a": "../x.safetensors"}, "promise": {"a": "model.safetensors"}}


def damaged(path: Path, how: str) -> None:
    """Spoils the teacher's weights, which are two layers of width 32."""
    if how in DAMAGES:
        path.write_bytes(DAMAGES[how](path.read_bytes()))
    elif how in OTHERS:
        write_weights(path, OTHERS[how])
    elif how in INDICES:
        path.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": INDICES[how]}))
    else:
        write_weights(path, shapes_of(2), "I8", 1)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut off", "model.safetensors: has .* bytes but its header describes .*: it is cut off or damaged; copy"),
        ("longer", "model.safetensors: has .* bytes but its header describes"),
        ("empty", "is no safetensors file, or cut off: it has 0 bytes"),
        ("text", "is no safetensors file, or cut off"),
        ("header", "its safetensors header is damaged"),
        ("shape", "its safetensors header is damaged"),
        ("width", r"embed_tokens.weight is \[128, 48\] but config.json says \[128, 32\], \[vocab_size, hidden_size\]"),
        ("layer", "config.json says num_hidden_layers 2 but the weights have no layer 1"),
        ("mlp", r"down_proj.weight is \[32, 65\] but config.json says \[32, 64\], \[hidden_size, intermediate"),
        ("integers", "model.embed_tokens.weight is I8, but weights are float32, float16 or bfloat16"),
        ("outside", "names '../x.safetensors', but only safetensors files of the model's own folder are read"),
        ("promise", "model.safetensors: has no tensor 'a', which model.safetensors.index.json says"),
    ],
)
def test_weights_that_no_rank_could_load(project: Project, how: str, words: str) -> None:
    damaged(project.folder / "teacher" / "model.safetensors", how)
    (finding, _) = check_models(inputs_of(project), place_of(project))
    assert not finding.ok
    assert re.search(words, finding.says)
    assert finding.says.isprintable()


def test_no_damage_to_a_header_is_a_traceback(tmp_path: Path) -> None:
    path, rng = tmp_path / "x.safetensors", random.Random(1)
    write_weights(path, shapes_of(2))
    sound = path.read_bytes()
    header = int.from_bytes(sound[:8], "little") + 8
    refused = 0
    for _ in range(300):
        place, new = rng.randrange(header), rng.choice((bytes([rng.randrange(256)]), b"-", b"1e999", b"[", b"null"))
        path.write_bytes(sound[:place] + new + sound[place + rng.choice((1, len(new))) :])
        try:
            read_header(path)
        except SpecError:
            refused += 1
    assert refused > 200


def test_quantized_weights_are_warned_of(project: Project) -> None:
    folder = project.folder / "teacher"
    damaged(folder / "model.safetensors", "integers")
    (folder / "config.json").write_text(json.dumps({**TINY, "quantization_config": {"quant_method": "x"}}))
    (finding, _) = check_models(inputs_of(project), place_of(project))
    assert (finding.level, finding.what) == (Level.WARNING, "teacher.model")


def test_a_model_type_that_the_ranks_transformers_does_not_know(project: Project) -> None:
    (project.folder / "teacher" / "config.json").write_text(json.dumps({**TINY, "model_type": "llamma"}))
    words = "its transformers has no model type 'llamma', which config.json says; take a newer transformers"
    settings = (f"cluster.python={sys.executable}", "cluster.setup=''")
    assert words in failed(look(project, *settings))["python"]
    assert "python" not in failed(look(project, *settings, "teacher.trust_remote_code=true"))


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

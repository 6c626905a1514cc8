"""Loading, cutting and writing models, for every family whose head is known."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_launch.errors import SpecError
from kd_launch.plan import TokenStores, read_run_plan
from kd_launch.runtime.links import TeacherPlace
from kd_launch.runtime.models import export, head_of, keep_layers, load_head, load_teacher
from kd_launch.runtime.parallel import MicroBatch, last_hidden_states
from kd_launch.runtime.payload import Kind
from kd_launch.runtime.stage import load_stage
from kd_launch.runtime.teacher import FrozenTeacher, payload_form
from kd_launch.runtime.weights import weight_files
from kd_launch.runtime.world import TeacherGroups
from kd_launch.spec import Teacher
from tests.runtime.conftest import Material
from tests.runtime.harness import VOCABULARY, make_layout, make_model, make_run, make_store, run_to_end
from tests.runtime.reference import whole_logits

GPT2 = {"n_embd": 32, "n_head": 4, "n_positions": 64, "tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {}, "mistral": {"sliding_window": 8}, "qwen2": {}, "qwen3": {"head_dim": 16}, "phi3": {},
    "gemma": {"head_dim": 8}, "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8}, "gpt2": GPT2,
    "mixtral": {"num_local_experts": 4}, "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8,
                  "num_experts_per_tok": 2},
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_model(
        tmp_path / request.param, seed=4, kind=request.param, num_hidden_layers=3, file_size="40KB",
        **FAMILIES[request.param],
    )  # fmt: skip


def packed_batch() -> MicroBatch:
    """Two rows of two documents each; every token is a loss token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (2, 20), generator=generator)
    positions = torch.stack([torch.cat([torch.arange(cut), torch.arange(20 - cut)]) for cut in (7, 12)])
    return MicroBatch(ids, positions, torch.arange(40), ids.flatten())


def test_hidden_states_and_head_give_the_models_own_logits_and_documents_stay_apart(family: Path) -> None:
    spec = Teacher(model=str(family), dtype="float32")
    model = load_teacher(spec, torch.device("cpu"))
    batch = packed_batch()
    with torch.no_grad():
        hidden = last_hidden_states(model.base_model, batch)
        found = head_of(model, "teacher.model").logits(hidden, VOCABULARY).view(2, 20, VOCABULARY)
        for row, cut in enumerate((7, 12)):
            for document in (slice(0, cut), slice(cut, 20)):
                alone = model(input_ids=batch.ids[row : row + 1, document], use_cache=False).logits
                torch.testing.assert_close(found[row : row + 1, document], alone, rtol=1e-4, atol=1e-4)
        read = load_head(spec, torch.device("cpu")).logits(hidden, VOCABULARY).view(2, 20, VOCABULARY)
        part = load_head(spec, torch.device("cpu"), (11, 40)).logits(hidden, 29).view(2, 20, 29)
    torch.testing.assert_close(read, found, rtol=0, atol=0)
    torch.testing.assert_close(part, found[..., 11:40], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["hidden_states", "logits", "top_k"])
def test_a_teacher_read_piece_by_piece_gives_the_payload_of_a_loaded_one(
    family: Path, tmp_path: Path, kind: Kind
) -> None:
    """As a GPU's ranks read a whole one, too; here from several files."""
    assert (family / "model.safetensors.index.json").exists()
    layout = make_layout(teachers=1, replicas=1, colocated=True, micro_batch=2, accumulation=1, payload=kind)
    tokens = TokenStores(train=str(tmp_path))
    run = read_run_plan(make_run(tmp_path / "run", layout, family, family, tokens).plan)
    form, cpu = payload_form(run, torch.float32), torch.device("cpu")
    stage = load_stage(run, form, TeacherGroups(TeacherPlace.of(layout.teacher, 0), None, None, None), cpu)
    whole, batch = FrozenTeacher(load_teacher(run.spec.teacher, cpu), form), packed_batch()
    for found, expected in zip(stage.payload(batch), whole.payload(batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_kept_layers_are_the_teachers(family: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    cut = keep_layers(model, (0, 2))
    state = cut.state_dict()
    assert cut.config.num_hidden_layers == 2
    of_last = [name for name in state if ".1." in name and "experts.1" not in name.split(".1.")[0]]
    layers = [name for name in of_last if name.split(".1.")[0].endswith((".layers", ".h"))]
    assert layers
    for name in layers:
        torch.testing.assert_close(state[name], whole[name.replace(".1.", ".2.", 1)], rtol=0, atol=0)
    batch = packed_batch()
    with torch.no_grad():
        assert cut(input_ids=batch.ids, use_cache=False).logits.shape == (2, 20, VOCABULARY)


def test_a_layer_that_the_teacher_lacks_is_refused(material: Material) -> None:
    model = AutoModelForCausalLM.from_pretrained(material.teacher)
    with pytest.raises(SpecError, match="names layer 2 but the teacher has 2"):
        keep_layers(model, (0, 2))


def test_only_safetensors_are_read(tmp_path: Path, material: Material) -> None:
    with pytest.raises(SpecError, match=r"no model\.safetensors"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(SpecError, match="cannot be read: 'weight_map'"):
        weight_files(tmp_path)
    assert "lm_head.weight" in weight_files(material.teacher)


def test_weights_outside_of_the_models_folder_are_not_read(tmp_path: Path, material: Material) -> None:
    folder = copy_of(material.teacher, tmp_path / "inner")
    (folder / "model.safetensors").rename(tmp_path / "outer.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "../outer.safetensors"}}')
    for load in (load_teacher, load_head):
        with pytest.raises(
            SpecError, match=r"names '\.\./outer\.safetensors', but only safetensors files of the model's"
        ):
            load(Teacher(model=str(folder)), torch.device("cpu"))


CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "layers": ({"num_hidden_layers": 3}, r"its weights have no model\.layers\.2\..* \(9 in all\); is it complete\?"),
    "width": ({"hidden_size": 48}, r"has shape \[.*\], but by config\.json it is \["),
    "heads": ({"num_attention_heads": 3}, "cannot be loaded: .*not a multiple of the number of attention heads"),
    "words": ({"vocab_size": "many"}, "cannot be loaded: .*expected int"),
    "type": ({"model_type": "llamma"}, "cannot be loaded: .*does not recognize this architecture"),
    "code": ({"model_type": "x", "auto_map": {"AutoConfig": "x.C"}}, "cannot be loaded: .*trust_remote_code=True"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_teacher_that_is_not_what_its_config_says_is_refused_and_never_filled_with_random_numbers(
    tmp_path: Path, material: Material, name: str
) -> None:
    folder = copy_of(material.teacher, tmp_path / "teacher")
    changes, words = CONFIGS[name]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(SpecError, match=words):
        load_teacher(Teacher(model=str(folder)), torch.device("cpu"))


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder))


@pytest.mark.parametrize(("start", "shape"), [
    ("pretrained", {"fsdp": 2}), ("random", {"fsdp": 2}), ({"teacher_layers": [1]}, {"replicas": 2}),
])  # fmt: skip
def test_the_exported_student_loads_and_is_what_was_trained(
    tmp_path: Path, material: Material, start: object, shape: dict[str, int]
) -> None:
    layout = make_layout(**{"teachers": 1, "replicas": 1, "micro_batch": 2, "accumulation": 1, **shape})
    changes = {"student__start_from": start, "training__steps": 30, "training__learning_rate": 3e-3}
    if not isinstance(start, str):
        changes["student__model"] = None
    run_dir = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens, **changes)
    ranks = run_to_end(run_dir, layout)
    evaluations = [line for line in ranks.metrics() if "eval_loss" in line]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    model = AutoModelForCausalLM.from_pretrained(run_dir.model, dtype=torch.float32)
    assert model.config.architectures == ["LlamaForCausalLM"]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (run_dir.model, material.teacher)]
    assert vocabularies[0] == vocabularies[1]
    assert cross_entropy(model, Path(str(material.tokens.eval))) == pytest.approx(
        evaluations[-1]["eval_student_cross_entropy"], rel=1e-5
    )
    assert json.loads((run_dir.model / "config.json").read_text())["dtype"] == "float32"


def cross_entropy(model: torch.nn.Module, store: Path) -> float:
    import numpy as np

    ids, positions, loss = (torch.from_numpy(np.load(store / f"{name}.npy")) for name in ("ids", "positions", "loss"))
    with torch.no_grad():
        logprobs = torch.log_softmax(whole_logits(model, ids.long(), positions.long()), -1)
    labels = ids.long().roll(-1, 1).unsqueeze(-1)
    return -logprobs.gather(-1, labels).squeeze(-1)[loss].mean().item()


def test_random_weights_do_not_depend_on_the_layout(tmp_path: Path, material: Material) -> None:
    losses = []
    shapes = {"one": {"replicas": 1, "micro_batch": 4}, "two": {"replicas": 1, "fsdp": 2, "micro_batch": 2}}
    for name, shape in shapes.items():
        layout = make_layout(teachers=1, accumulation=1, **shape)
        run_dir = make_run(
            tmp_path / name, layout, material.teacher, material.student, material.tokens, student__start_from="random",
            training__steps=3, training__seed=7,
        )  # fmt: skip
        losses.append([line["loss"] for line in run_to_end(run_dir, layout).metrics() if line.get("loss")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_export_that_fails_leaves_nothing_behind(
    tmp_path: Path, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(teachers=1, replicas=1, colocated=True, micro_batch=2, accumulation=1)
    run_dir = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens)
    spec = read_run_plan(run_dir.plan).spec
    model = AutoModelForCausalLM.from_pretrained(material.student, dtype=torch.float32)

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(model.config, model.state_dict(), spec, run_dir.model)
    assert not [path.name for path in run_dir.path.iterdir() if "model" in path.name]


@pytest.mark.parametrize("without", [("student",), ("student", "teacher")])
def test_models_without_a_tokenizer_are_exported_all_the_same(tmp_path: Path, without: tuple[str, ...]) -> None:
    """Data of tokens needs none, so prepare lets such models through; the training must not be lost at its end."""
    folders = {role: make_model(tmp_path / role, seed=3) for role in ("teacher", "student")}
    for role in without:
        for file in folders[role].glob("tokenizer*"):
            file.unlink()
    layout = make_layout(teachers=1, replicas=1, colocated=True, micro_batch=2, accumulation=1)
    tokens = TokenStores(train=str(make_store(tmp_path / "store", 4)))
    spec = read_run_plan(make_run(tmp_path / "run", layout, *folders.values(), tokens).plan).spec
    model = AutoModelForCausalLM.from_pretrained(folders["student"], dtype=torch.float32)
    export(model.config, model.state_dict(), spec, tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() == model.num_parameters()
    assert (tmp_path / "model" / "tokenizer.json").exists() == (without == ("student",))

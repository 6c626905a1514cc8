"""Models on disk -> modules in memory: the frozen teacher, the student, the teacher's head alone; and the way back."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from kd_launch.architecture import from_config
from kd_launch.errors import KdLaunchError, SpecError, printable
from kd_launch.runtime.losses import Head
from kd_launch.runtime.pieces import Range
from kd_launch.runtime.tokenizer_pair import load_tokenizer
from kd_launch.runtime.weights import Weights, open_file, weight_files
from kd_launch.sources import model_sources
from kd_launch.spec import Spec, Student, Teacher, TeacherLayers
from kd_launch.weight_files import INDEX

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def model_folder(model: str, revision: str | None, where: str) -> Path:
    """The folder of a model: itself, or the snapshot of a hub id in the cache.

    Raises:
        SpecError: neither is there.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise SpecError(
            f"{where}: '{model}' is no folder and not in the Hugging Face cache; run `kd-launch prepare` first"
        ) from error


def load_config(role: Teacher | Student, where: str) -> Any:
    """The transformers config of a role's model."""
    assert role.model is not None
    folder = model_folder(role.model, role.revision, where)
    with _unloadable(where, folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=role.trust_remote_code)


@contextmanager
def _unloadable(where: str, folder: Path) -> Iterator[None]:
    """transformers raises whatever a damaged config.json leads it to; the failure record keeps where."""
    try:
        yield
    except KdLaunchError:
        raise
    except Exception as error:
        words = printable(" ".join(str(error).split()), 500)
        raise SpecError(f"{where}: {folder}: cannot be loaded: {words or type(error).__name__}") from error


def load_teacher(teacher: Teacher, device: torch.device) -> PreTrainedModel:
    """The frozen teacher in its dtype and nothing else: no gradients, no optimizer, no float32 copy."""
    model = _load(teacher, "teacher.model", DTYPES[teacher.dtype])
    return model.requires_grad_(False).eval().to(device)


def _load(role: Teacher | Student, where: str, dtype: torch.dtype) -> PreTrainedModel:
    assert role.model is not None
    folder = model_folder(role.model, role.revision, where)
    weight_files(folder)  # refuses what lies outside of it
    with _unloadable(where, folder):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=role.trust_remote_code, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    assert isinstance(model, PreTrainedModel)
    # transformers would go on with random numbers in their place.
    if missing := sorted(found["missing_keys"]):
        raise SpecError(f"{where}: {folder}: its weights have no {missing[0]} ({len(missing)} in all); is it complete?")
    if wrong := sorted(found["mismatched_keys"]):
        name, stored, expected = wrong[0]
        raise SpecError(
            f"{where}: {folder}: {name} has shape {list(stored)}, but by config.json it is {list(expected)}"
        )
    return model


def blank_model(role: Teacher | Student, where: str, dtype: torch.dtype) -> PreTrainedModel:
    """A role's model, its text part where it reads images too, without storage for its weights."""
    config = load_config(role, where).get_text_config()
    with _unloadable(where, Path(str(role.model))), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=role.trust_remote_code)
    assert isinstance(model, PreTrainedModel)
    return model


def blank_student(spec: Spec) -> tuple[PreTrainedModel, Weights | None]:
    """The student in float32 without storage, and where its weights are read from; None: they are random."""
    student, start = spec.student, spec.student.start_from
    if isinstance(start, TeacherLayers):
        model = blank_model(spec.teacher, "teacher.model", torch.float32)
        weights = open_weights(spec.teacher, "teacher.model", model)
        weights.renumber(layers_name(model), start.teacher_layers)
        return keep_layers(model, start.teacher_layers), weights
    model = blank_model(student, "student.model", torch.float32)
    return model, open_weights(student, "student.model", model) if start == "pretrained" else None


def open_weights(role: Teacher | Student, where: str, model: PreTrainedModel) -> Weights:
    """The checkpoint of a role's model."""
    assert role.model is not None
    return Weights(model_folder(role.model, role.revision, where), model.base_model_prefix)


def layers_name(model: PreTrainedModel) -> str:
    """What the list of transformer blocks is called, such as "model.layers"."""
    layers = decoder_layers(model)
    return next(str(name) for name, module in model.named_modules() if module is layers)


def keep_layers(model: PreTrainedModel, kept: tuple[int, ...]) -> PreTrainedModel:
    """The same model with only some of its layers.

    Raises:
        SpecError: a layer that the teacher does not have.
    """
    layers = decoder_layers(model)
    if kept[-1] >= len(layers):
        raise SpecError(
            f"student.start_from.teacher_layers: names layer {kept[-1]} but the teacher has {len(layers)}, from 0"
        )
    chosen = [layers[index] for index in kept]
    for index, layer in enumerate(chosen):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    del layers[len(chosen) :]
    for index, layer in enumerate(chosen):
        layers[index] = layer
    config = model.config
    # GPT-2 calls it n_layer; the attribute map makes both names one.
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    return model


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of transformer blocks: the one list of the base model that is as long as the config says."""
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.get_text_config().num_hidden_layers:
            return module
    raise SpecError(f"{type(model).__name__}: its layers cannot be found; this architecture is not supported")


def head_rules(config: Any) -> tuple[float, float | None] | None:
    """Scale and soft cap of the logits of an architecture; None where they are not known to be all there is."""
    architecture = from_config(config.to_dict(), "config.json")
    return (architecture.logit_scale, architecture.logit_softcap) if architecture.head_is_known else None


def head_of(model: PreTrainedModel, where: str) -> Head:
    """The output head of a loaded model.

    Raises:
        SpecError: an architecture whose head is not known.
    """
    rules = head_rules(model.config)
    if rules is None:
        raise SpecError(
            f"{where}: how a {model.config.model_type} turns hidden states into logits is not known to this version; "
            "set distillation.payload: logits, or choose a student of another architecture"
        )
    embeddings = model.get_output_embeddings()
    return Head(embeddings.weight, getattr(embeddings, "bias", None), *rules)


def load_head(teacher: Teacher, device: torch.device, rows: Range | None = None) -> Head:
    """The teacher's head alone, or some of its rows, for a student that receives hidden states: no other weights of the
    checkpoint are read."""
    config = load_config(teacher, "teacher.model")
    rules = head_rules(config)
    if rules is None:
        raise SpecError(f"teacher.model: the head of a {config.model_type} is not known; set payload: logits")
    assert teacher.model is not None
    folder = model_folder(teacher.model, teacher.revision, "teacher.model")
    names = weight_files(folder)
    tied = config.get_text_config().tie_word_embeddings
    weight = _find(names, ("embed_tokens.weight", "wte.weight") if tied else ("lm_head.weight",))
    if weight is None:
        missing = "embedding" if tied else "lm_head.weight, and config.json does not tie it to the embedding"
        raise SpecError(f"teacher.model: {folder}: its weights have no {missing}; is it complete?")
    dtype = DTYPES[teacher.dtype]
    bias = _find(names, ("lm_head.bias",))
    read = [None if name is None else _read(names, name, rows).to(device, dtype) for name in (weight, bias)]
    assert read[0] is not None
    return Head(read[0], read[1], *rules)


def _find(names: dict[str, Path], endings: tuple[str, ...]) -> str | None:
    return next((name for name in sorted(names) if name.endswith(endings)), None)


def _read(names: dict[str, Path], name: str, rows: Range | None) -> Tensor:
    """A tensor, or some of its rows."""
    try:
        stored = open_file(names[name])
        tensor: Tensor = stored.get_tensor(name) if rows is None else stored.get_slice(name)[slice(*rows)]
    except SafetensorError as error:
        raise SpecError(f"{names[name]}: {error}, though {INDEX} says so") from error
    return tensor


def export(config: Any, state: dict[str, Tensor], spec: Spec, target: Path) -> None:
    """Writes the student as `from_pretrained` loads it, its tokenizer too where it has one; the folder appears whole.

    Args:
        config: of the student.
        state: the whole state in float32, on the CPU.
        spec: names the dtype and where tokenizer and generation settings come from.
        target: the folder; replaced only once the new one is complete.
    """
    partial, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    dtype = DTYPES[spec.student.dtype]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=spec.student.trust_remote_code)
    model.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    model.tie_weights()
    source = model_sources(spec)[0].folder()
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(source)
    # transformers writes on global rank 0 only, without a word on others; here that is a teacher.
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        model.save_pretrained(partial)
        assert (partial / "config.json").exists(), "transformers wrote no model"
        if (tokenizer := _tokenizer(spec)) is not None:
            tokenizer.save_pretrained(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk leaves nothing half-written
        raise
    if target.exists():  # of an attempt that ended between this and its done record
        target.replace(old)
    partial.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _tokenizer(spec: Spec) -> Any | None:
    """The student's tokenizer, else the teacher's, which is the same; None for data of tokens that needed neither."""
    found = next((model for model in model_sources(spec) if model.tokenizer_files()), None)
    return None if found is None else load_tokenizer(found)

"""The files of both models: config, weights as far as their headers tell, tokenizer."""

from collections.abc import Iterator
from pathlib import Path

from kd_launch.architecture import from_config
from kd_launch.checks.finding import Finding, Place, failure, fine, warning
from kd_launch.errors import KdLaunchError
from kd_launch.model_source import read_config
from kd_launch.preparation import Inputs
from kd_launch.sources import ModelFiles, model_sources
from kd_launch.weight_files import foreign_dtype, mismatch, missing_weights, read_weights


def check_models(inputs: Inputs, place: Place) -> Iterator[Finding]:
    student, teacher = model_sources(inputs.spec)
    yield _model(inputs, teacher, True, place)
    if student != teacher:
        yield _model(inputs, student, inputs.spec.student.start_from == "pretrained", place)


def _model(inputs: Inputs, model: ModelFiles, needs_weights: bool, place: Place) -> Finding:
    try:
        folder = model.folder()
        missing = _missing(model, folder, needs_weights, inputs.spec.data.format != "tokens") if folder else "all of it"
        if folder is not None and missing is None:
            return _whole(model.where, folder, needs_weights)
    except KdLaunchError as error:
        return failure(model.where, str(error))
    if model.is_folder:
        return failure(model.where, f"{folder}: has no {missing}; a model folder holds what save_pretrained writes")
    return to_fetch(inputs, model.where, f"{model.model}: {missing} is not in the Hugging Face cache", place)


def _missing(model: ModelFiles, folder: Path, needs_weights: bool, needs_tokenizer: bool) -> str | None:
    """What a model's folder lacks."""
    if needs_weights and (weights := missing_weights(folder)):
        return weights
    if needs_tokenizer and not model.tokenizer_files():
        return "tokenizer files"
    return None


def _whole(where: str, folder: Path, needs_weights: bool) -> Finding:
    """Whether the weights of a folder that has all files are sound, and those of its config.json."""
    config = read_config(folder / "config.json")
    architecture = from_config(config, str(folder / "config.json"))
    if not needs_weights:
        return fine(where, str(folder))
    tensors = read_weights(folder)
    if dtype := foreign_dtype(tensors):
        if config.get("quantization_config") is None:
            return failure(
                where, f"{folder}: {dtype}, but weights are float32, float16 or bfloat16; take the model as published"
            )
        return warning(where, f"{folder}: is quantized ({dtype}), which this version has not been tried with")
    if problem := mismatch(tensors, architecture):
        return failure(where, f"{folder}: {problem}; take config.json and weights of one model")
    return fine(where, str(folder))


def to_fetch(inputs: Inputs, what: str, words: str, place: Place) -> Finding:
    """What `prepare` brings from the hub: submit does it on a local cluster, where there is network."""
    if place.is_offline:
        return failure(what, f"{words}, and HF_HUB_OFFLINE forbids to fetch it; unset it, or name a folder")
    if inputs.cluster.scheduler == "local":
        return fine(what, f"{words}; submit fetches it")
    return failure(what, f"{words}; give `kd-launch prepare` where there is network")

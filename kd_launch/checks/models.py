"""The files of both models: config, weights, tokenizer."""

import json
from collections.abc import Iterator
from pathlib import Path

from kd_launch.checks.finding import Finding, Place, failure, fine
from kd_launch.errors import KdLaunchError, SpecError
from kd_launch.preparation import Inputs
from kd_launch.sources import ModelFiles, model_sources


def check_models(inputs: Inputs, place: Place) -> Iterator[Finding]:
    student, teacher = model_sources(inputs.spec)
    yield _model(inputs, teacher, True, place)
    if student != teacher:
        yield _model(inputs, student, inputs.spec.student.start_from == "pretrained", place)


def _model(inputs: Inputs, model: ModelFiles, needs_weights: bool, place: Place) -> Finding:
    try:
        folder = model.folder()
        missing = _missing(model, folder, needs_weights, inputs.spec.data.format != "tokens") if folder else "all of it"
    except KdLaunchError as error:
        return failure(model.where, str(error))
    if missing is None:
        return fine(model.where, str(folder))
    if model.is_folder:
        return failure(model.where, f"{folder}: has no {missing}; a model folder holds what save_pretrained writes")
    return to_fetch(inputs, model.where, f"{model.model}: {missing} is not in the Hugging Face cache", place)


def _missing(model: ModelFiles, folder: Path, needs_weights: bool, needs_tokenizer: bool) -> str | None:
    """What a model's folder lacks."""
    if needs_weights and (weights := _missing_weights(folder)):
        return weights
    if needs_tokenizer and not model.tokenizer_files():
        return "tokenizer files"
    return None


def _missing_weights(folder: Path) -> str | None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return None if any(folder.glob("*.safetensors")) else "*.safetensors"
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise SpecError(f"{index}: cannot be read: {error}") from error
    return next((name for name in sorted(names) if not (folder / name).is_file()), None)


def to_fetch(inputs: Inputs, what: str, words: str, place: Place) -> Finding:
    """What `prepare` brings from the hub: submit does it on a local cluster, where there is network."""
    if place.is_offline:
        return failure(what, f"{words}, and HF_HUB_OFFLINE forbids to fetch it; unset it, or name a folder")
    if inputs.cluster.scheduler == "local":
        return fine(what, f"{words}; submit fetches it")
    return failure(what, f"{words}; give `kd-launch prepare` where there is network")

"""Hub ids -> the Hugging Face cache: weights as safetensors, tokenizers and configs, where there is network."""

from pathlib import Path

from kd_launch.errors import SpecError
from kd_launch.runtime.documents import first_line
from kd_launch.sources import TOKENIZER_FILES, ModelFiles
from kd_launch.weight_files import missing_weights

CONFIGS = ("config.json", "generation_config.json")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# Second copies of the weights in other layouts that some repositories carry.
LEFT_OUT = ("consolidated*", "original/*", "onnx/*")
ANSWER_S = 5.0
"""How long the hub may take to answer before it counts as out of reach."""


def why_offline() -> str | None:
    """Asks the hub once; where it does not answer, from then on only the caches are used, and this says why.

    Without it each of many look-ups would try for half a minute.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S)
    except Exception as error:  # the HTTP library, and so its errors, changes with huggingface_hub's version
        constants.HF_HUB_OFFLINE = True  # read at every look-up, and by datasets when it is imported
        return f"{constants.ENDPOINT} does not answer: {first_line(error)}"
    return None


def fetch_model(model: ModelFiles, weights: bool, offline: str | None) -> None:
    """Brings a hub id into the cache, or finds it there; nothing to do for a folder. Code only where it may run.

    `offline` says why the hub is not asked, where it is not.

    Raises:
        SpecError: it is neither on the hub nor in the cache, or has no safetensors though `weights` are needed.
    """
    if model.is_folder:
        return
    folder = _snapshot(model, weights, offline)
    if weights and (missing := missing_weights(folder)):
        raise SpecError(
            f"{model.where}: '{model.model}' has no {missing} on the hub or in the cache; only safetensors are loaded"
        )


def _snapshot(model: ModelFiles, weights: bool, offline: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [
        *CONFIGS,
        *TOKENIZER_FILES,
        *(WEIGHTS if weights else ()),
        *(["*.py"] if model.trust_remote_code else []),
    ]
    try:
        folder = snapshot_download(
            model.model,
            revision=model.revision,
            allow_patterns=patterns,
            ignore_patterns=list(LEFT_OUT),
            local_files_only=offline is not None,
        )
    except Exception as error:  # the hub's client raises its own errors, those of the network and ValueError
        revision = "" if model.revision is None else f" at revision '{model.revision}'"
        raise SpecError(
            f"{model.where}: '{model.model}'{revision} is no folder, is not in the Hugging Face cache, and does not "
            f"come from the hub: {offline or first_line(error)}; run `kd-launch prepare` where there is network"
        ) from error
    return Path(folder)

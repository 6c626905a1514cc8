"""Where a model's config.json comes from: its folder, the Hugging Face cache, the catalog, or the hub."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from kd_launch import catalog
from kd_launch.architecture import Architecture, from_config
from kd_launch.errors import SpecError, nearest

Fetch = Callable[[str, str | None], Mapping[str, object]]
"""(hub id, revision) -> config.json; raises OSError, saying why in words for people, where there is none."""

_HUB_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)  # as huggingface_hub.utils.validate_repo_id
_HUB_TIMEOUT_S = 5
_HUB_ERRORS = {  # huggingface_hub.errors; the more special first
    "GatedRepoError": "gated: accept its terms on the hub, then log in (`hf auth login`)",
    "RepositoryNotFoundError": "no such model, or a private one: log in (`hf auth login`)",
    "RevisionNotFoundError": "no such revision",
    "EntryNotFoundError": "it has no config.json",
}


def fetch_from_hub(hub_id: str, revision: str | None) -> Mapping[str, object]:
    """config.json from the hub, left in the Hugging Face cache; OSError with the reason where it cannot be had."""
    from huggingface_hub import HfApi, hf_hub_download, hf_hub_url

    url = hf_hub_url(hub_id, "config.json", revision=revision)
    try:
        HfApi().get_hf_file_metadata(url=url, timeout=_HUB_TIMEOUT_S)  # asks once: the download retries for 23 s
        path = hf_hub_download(hub_id, "config.json", revision=revision, etag_timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # the HTTP library, and so its errors, changes with huggingface_hub's version
        raise OSError(_in_words(error)) from error
    return read_config(Path(path))


def _in_words(error: Exception) -> str:
    for kind, words in _HUB_ERRORS.items():
        if kind in (cls.__name__ for cls in type(error).__mro__):
            return words
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def find_config(
    model: str, revision: str | None, environ: Mapping[str, str], fetch: Fetch = fetch_from_hub
) -> tuple[Mapping[str, object], str]:
    """The keys of the model's config.json and the place they came from.

    model: a folder with a config.json, such a file, or a hub id. A hub id is looked up in the Hugging Face cache (of
    `environ`), else in the catalog (shapes only), else on the hub, unless HF_HUB_OFFLINE is set. Raises SpecError.
    """
    local = _local_config(model)
    if local is not None:
        return read_config(local), str(local)
    if not _HUB_ID.fullmatch(model):
        raise SpecError(f"model {model!r}: no such folder, and not a hub id (owner/name)")
    cached = _in_cache(model, revision, environ)
    if cached is not None:
        return read_config(cached), str(cached)
    known = catalog.model_config(model)
    if known is not None:
        return known, f"catalog: {model}"
    return _on_the_hub(model, revision, environ, fetch), f"hub: {model}"


def find_architecture(
    model: str, revision: str | None, environ: Mapping[str, str], fetch: Fetch = fetch_from_hub
) -> Architecture:
    """The architecture of a folder, a config.json or a hub id; raises SpecError."""
    return from_config(*find_config(model, revision, environ, fetch))


def read_config(path: Path) -> Mapping[str, object]:
    """A config.json from disk; a SpecError names the file and line of what is wrong."""
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; a model's folder has its config.json") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{path}:1: not JSON: {error}") from None
    if not isinstance(keys, dict):
        raise SpecError(f"{path}:1: must hold a JSON object of config keys, holds {type(keys).__name__}")
    return keys


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache that these variables name, by huggingface_hub's own rule."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    home = environ.get("HOME") or str(Path.home())
    caches = environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return Path(environ.get("HF_HOME") or f"{caches}/huggingface").expanduser() / "hub"


def _local_config(model: str) -> Path | None:
    """The config.json of a folder, or the file itself; None where nothing of that name exists."""
    path = Path(model)
    try:
        if model and path.is_dir():  # Path("") would be the current folder
            return path / "config.json"
        return path if path.is_file() else None
    except OSError as error:
        raise SpecError(f"model {model!r}: cannot be looked at: {error.strerror}") from None


def _in_cache(model: str, revision: str | None, environ: Mapping[str, str]) -> Path | None:
    folder = cache_folder(environ)
    if not os.access(folder / f"models--{model.replace('/', '--')}", os.X_OK):  # spares the import where it has nothing
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", cache_dir=folder, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _on_the_hub(model: str, revision: str | None, environ: Mapping[str, str], fetch: Fetch) -> Mapping[str, object]:
    try:
        if environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise OSError("not asked: HF_HUB_OFFLINE is set")
        return fetch(model, revision)
    except OSError as error:
        raise SpecError(_nowhere(model, revision, cache_folder(environ), str(error))) from None


def _nowhere(model: str, revision: str | None, folder: Path, hub: str) -> str:
    wanted = f"model {model!r}" + (f" at revision {revision!r}" if revision else "")
    return (
        f"{wanted}: no config.json; looked at the folder {model!r} (does not exist), the Hugging Face cache {folder} "
        f"(not in it), the catalog (unknown{nearest(model, catalog.model_ids())}), the hub ({hub}); give a folder with "
        "a config.json, or run where there is network: `kd-launch prepare` fills the cache"
    )

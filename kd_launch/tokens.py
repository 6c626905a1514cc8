"""Token stores: the key that names one, the header that says it is whole, and where a spec's stores lie.

A store is a folder `<run_root>/tokens/<key>/`. Its key is a hash of all that decides its content, so a store that is
there is the right one. Nothing here needs torch, transformers or numpy: a login node looks too.
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from kd_launch.errors import SpecError, first_problem
from kd_launch.plan import VALUE, TokenStores
from kd_launch.run_dir import read_json
from kd_launch.sources import FileHashes, Format, ModelFiles, cached_commit, model_sources, source_files
from kd_launch.spec import Data, HubDataset, Source, Spec

FORMAT_VERSION = 1
"""Part of every key. Raise it when the same input gives another store."""


class StoreHeader(BaseModel):
    """store.json of a store: written last, so a store with a header that agrees with its files is whole."""

    model_config = VALUE

    key: str
    kind: Format
    sequences: int
    sequence_length: int
    tokens: int
    """Without padding."""
    loss_tokens: int
    """Positions whose next token counts for the loss."""
    documents: int
    """Documents, conversations or rows that were read."""
    truncated: int
    """Conversations that were cut at sequence_length. Longer texts are cut into pieces and lose nothing."""
    dropped: int
    """Documents without text; conversations without a loss token."""
    vocabulary: int
    """Tokens that both models know; every id is below."""
    bytes: dict[str, int]
    """Size of each file of the store."""
    version: str
    """The kd-launch that wrote it."""


def tokens_root(run_root: Path) -> Path:
    return run_root / "tokens"


def file_hashes(run_root: Path) -> FileHashes:
    """The hashes of the files that the stores of this run root were made of."""
    return FileHashes(tokens_root(run_root) / ".hashes.json")


def store_dir(run_root: Path, key: str) -> Path:
    """The folder of the store with that key."""
    return tokens_root(run_root) / key


def header_path(store: Path) -> Path:
    return store / "store.json"


def read_header(store: Path) -> StoreHeader:
    """The header of a store.

    Raises:
        SpecError: there is none, this version cannot read it, or a file is missing or has another size.
    """
    path = header_path(store)
    found = read_json(path)
    if found is None:
        raise SpecError(f"{path}: does not exist; run `kd-launch prepare`")
    try:
        header = StoreHeader.model_validate(found)
    except ValidationError as error:
        raise SpecError(f"{path}: {first_problem(error.errors(), 'the file')}; {_remove(store)}") from error
    for name, size in header.bytes.items():
        _check_size(store, name, size)
    return header


def _check_size(store: Path, name: str, size: int) -> None:
    try:
        found = (store / name).stat().st_size
    except OSError as error:
        raise SpecError(f"{store / name}: {error.strerror}; {_remove(store)}") from error
    if found != size:
        raise SpecError(f"{store / name}: has {found} bytes but was written with {size}; {_remove(store)}")


def _remove(store: Path) -> str:
    return f"remove {store} and run `kd-launch prepare` again"


def is_complete(store: Path) -> bool:
    """Whether a whole store lies there."""
    try:
        read_header(store)
    except SpecError:
        return False
    return True


def store_key(spec: Spec, source: Source, where: str, hashes: FileHashes) -> str:
    """The name of the store of `source`: 24 hex digits of a SHA-256 over all that decides its content.

    That is the bytes of the data files in their order (names and places do not matter), of both models' tokenizer
    files, the smaller vocabulary, and the settings. A hub id that is not in the cache counts by name and revision.

    Raises:
        SpecError: a file or model is missing or unreadable; `where` names the field.
    """
    sources = model_sources(spec)
    vocabularies = [architecture.vocabulary for model in sources if (architecture := model.architecture())]
    content = {
        "format_version": FORMAT_VERSION,
        "data": _data_fingerprint(spec.data, source, where, hashes),
        "tokenizers": [_tokenizer_fingerprint(model, hashes) for model in sources],
        "vocabulary": min(vocabularies, default=None),
        "settings": _settings(spec.data),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _data_fingerprint(data: Data, source: Source, where: str, hashes: FileHashes) -> object:
    if isinstance(source, HubDataset):
        return [source.hub, source.config, source.split, cached_commit(source)]
    return [(_reading(file), hashes.of(file)) for file in source_files(source, where, data.format)]


def _reading(file: Path) -> str:
    """How a file is read: part of the key, since the same bytes as .txt and as .jsonl are different documents."""
    kind = file.suffix.lower()
    return kind if kind in (".jsonl", ".json", ".parquet", ".npy") else "text"


def _tokenizer_fingerprint(model: ModelFiles, hashes: FileHashes) -> object:
    folder, files, architecture = model.folder(), model.tokenizer_files(), model.architecture()
    if folder is None or architecture is None or not (files or model.is_folder):
        return [model.model, model.revision]
    # AutoTokenizer may choose the class by the model type.
    return [architecture.model_type, *([file.relative_to(folder).as_posix(), hashes.of(file)] for file in files)]


def _settings(data: Data) -> list[object]:
    field = {"text": data.text_field, "chat": data.messages_field, "tokens": None}[data.format]
    return [data.format, data.sequence_length, field, None if data.format == "tokens" else data.packing]


def expected_stores(spec: Spec, run_root: Path) -> TokenStores:
    """The folders in which this spec's sequences lie, or will lie once they are prepared.

    Raises:
        SpecError: the data or a model is missing or unreadable.
    """
    hashes = file_hashes(run_root)
    train = store_key(spec, spec.data.train, "data.train", hashes)
    held_out = None if spec.data.eval is None else store_key(spec, spec.data.eval, "data.eval", hashes)
    hashes.save()
    return TokenStores(
        train=str(store_dir(run_root, train)), eval=None if held_out is None else str(store_dir(run_root, held_out))
    )

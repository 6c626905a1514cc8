"""What a token store is made of: the files of the data, the models' tokenizer files, and the hashes of both.

Nothing here needs torch, transformers or numpy: a login node looks too.
"""

import glob
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd_launch.architecture import Architecture, from_config
from kd_launch.errors import SpecError
from kd_launch.model_source import read_config
from kd_launch.run_dir import read_json, write_json
from kd_launch.spec import HubDataset, Spec, TeacherLayers

Format = Literal["text", "chat", "tokens"]
KINDS: Mapping[Format, tuple[str, ...]] = {
    "text": (".jsonl", ".json", ".parquet", ".txt", ".md", ".py"),
    "chat": (".jsonl", ".json", ".parquet"),
    "tokens": (".npy",),
}
"""What is taken from a folder. A file that is named is taken as text whatever its kind, but for .npy."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*",
)
"""Patterns of the files, in a model's folder, that a tokenizer is made of."""

SETTLED_S = 2.0  # a file touched so recently may change again within one tick of its mtime: its hash is not kept


# --- the files of the data


def source_files(source: str | Sequence[str], where: str, data_format: Format) -> list[Path]:
    """The files of `data.train` or `data.eval` in the order they are read: entry by entry, each entry's files sorted.

    `where` names the field in errors.

    Raises:
        SpecError: an entry that matches nothing, cannot be looked at, or is no file of a kind that the format reads.
    """
    if isinstance(source, str):
        return _files_of_entry(source, where, data_format)
    return [file for i, entry in enumerate(source) for file in _files_of_entry(entry, f"{where}.{i}", data_format)]


def _files_of_entry(entry: str, where: str, data_format: Format) -> list[Path]:
    try:
        path = Path(entry)
        if path.is_dir():
            return _files_of_folder(path, where, data_format)
        if path.exists():
            return [_readable(path, where, data_format)]
        return _files_of_pattern(entry, where, data_format)
    except OSError as error:
        raise SpecError(f"{where}: '{error.filename or entry}': {error.strerror}") from error


def _files_of_folder(folder: Path, where: str, data_format: Format) -> list[Path]:
    kinds = KINDS[data_format]
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds and path.is_file())
    files = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise SpecError(f"{where}: folder '{folder}' holds no {', '.join(kinds)} file (data.format is {data_format})")
    return files


def _files_of_pattern(pattern: str, where: str, data_format: Format) -> list[Path]:
    matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - absolute patterns
    if not matches:
        raise SpecError(f"{where}: no file matches '{pattern}'")
    files: list[Path] = []
    for path in matches:
        files += _files_of_folder(path, where, data_format) if path.is_dir() else [_readable(path, where, data_format)]
    return list(dict.fromkeys(files))


def _readable(path: Path, where: str, data_format: Format) -> Path:
    """`path`, when it is a file of a kind that the format reads."""
    if not path.is_file():
        raise SpecError(f"{where}: '{path}' is neither a file nor a folder")
    kind = path.suffix.lower()
    if kind == ".npy" and data_format != "tokens":
        raise SpecError(f"{where}: '{path}' holds tokens but data.format is {data_format}; set data.format: tokens")
    if data_format != "text" and kind not in KINDS[data_format]:
        legal = ", ".join(KINDS[data_format])
        raise SpecError(f"{where}: '{path}' cannot be read with data.format: {data_format}, which takes {legal} files")
    return path


# --- hashes of files


@dataclass(frozen=True)
class _Hashed:
    """A file's identity when it was read, and its SHA-256."""

    identity: tuple[int, int, int]
    sha256: str


def _identity(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class FileHashes:
    """SHA-256 of files, kept in a file so that unchanged data is read once only."""

    def __init__(self, kept: Path, now: Callable[[], float] = time.time) -> None:
        self._path = kept
        self._now = now
        self._known = _read_hashes(self._path)
        self._read = False

    def of(self, path: Path) -> str:
        """The hex digest of a file's bytes. Raises SpecError where the file cannot be read."""
        try:
            identity = _identity(path)
            known = self._known.get(str(path))
            if known is None or known.identity != identity:
                with path.open("rb") as file:
                    known = _Hashed(identity, hashlib.file_digest(file, "sha256").hexdigest())
                self._known[str(path)], self._read = known, True
        except OSError as error:
            raise SpecError(f"'{path}': {error.strerror}") from error
        return known.sha256

    def save(self) -> None:
        """Keeps the hashes for the next time, where the folder of the file is there and can be written."""
        latest = (self._now() - SETTLED_S) * 1e9
        settled = {
            path: [*hashed.identity, hashed.sha256]
            for path, hashed in self._known.items()
            if max(hashed.identity[1:]) < latest
        }
        if self._read and self._path.parent.is_dir():
            with suppress(OSError):
                write_json(self._path, settled)


def _read_hashes(path: Path) -> dict[str, _Hashed]:
    """The kept hashes; none where the file is missing or broken."""
    try:
        kept = read_json(path) or {}
        return {name: _hashed(entry) for name, entry in kept.items()}
    except (SpecError, ValueError):
        return {}


def _hashed(entry: object) -> _Hashed:
    match entry:
        case [int(size), int(mtime), int(ctime), str(sha256)] if len(sha256) == 64:
            return _Hashed((size, mtime, ctime), sha256)
    raise ValueError(f"{entry!r} is no hash entry")


# --- the models that a store is for


@dataclass(frozen=True)
class ModelFiles:
    """Where one role's tokenizer and config.json come from."""

    where: str
    """The field of the spec, such as teacher.model."""
    model: str
    revision: str | None
    trust_remote_code: bool

    @property
    def is_folder(self) -> bool:
        return Path(self.model).is_dir()

    def folder(self) -> Path | None:
        """The folder itself, or the hub id's snapshot in the Hugging Face cache; None where that is not (yet) there.

        Raises:
            SpecError: it can be neither a folder nor a hub id.
        """
        if self.is_folder:
            return Path(self.model)
        return self._snapshot()

    def _snapshot(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(self.model, "config.json", revision=self.revision)
        except HFValidationError as error:
            raise SpecError(f"{self.where}: '{self.model}' is no folder, and no hub id (owner/name)") from error
        return Path(config).parent if isinstance(config, str) else None

    def tokenizer_files(self) -> list[Path]:
        """Every file that can change how text becomes tokens, sorted; empty where none is there."""
        folder = self.folder()
        patterns = (*TOKENIZER_FILES, "*.py") if self.trust_remote_code else TOKENIZER_FILES
        if folder is None:
            return []
        return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})

    def architecture(self) -> Architecture | None:
        """What config.json says; None for a hub id that is not in the cache.

        Raises:
            SpecError: there is no config.json, or it cannot be read.
        """
        folder = self.folder()
        if folder is None:
            return None
        config = folder / "config.json"
        return from_config(read_config(config), f"{self.where}: {config}")


def model_sources(spec: Spec) -> tuple[ModelFiles, ModelFiles]:
    """(student, teacher). A student made of the teacher's layers has the teacher's tokenizer."""
    teacher = ModelFiles("teacher.model", spec.teacher.model, spec.teacher.revision, spec.teacher.trust_remote_code)
    if isinstance(spec.student.start_from, TeacherLayers) or spec.student.model is None:
        return teacher, teacher
    student = spec.student
    return ModelFiles("student.model", spec.student.model, student.revision, student.trust_remote_code), teacher


def cached_commit(source: HubDataset) -> str | None:
    """The commit of a hub data set that the Hugging Face cache holds; None where it holds none."""
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"datasets--{source.hub.replace('/', '--')}" / "refs" / "main"
    try:
        return reference.read_text().strip()
    except OSError:
        return None

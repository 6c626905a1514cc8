"""Files and hub data sets -> documents, one at a time; what is wrong with one is said with its file and line."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_launch.errors import SpecError, nearest
from kd_launch.sources import cached_commit
from kd_launch.spec import Data, HubDataset

Message = dict[str, Any]
Conversation = list[Message]


MOST_BYTES = 1 << 30
"""Of one line, and of one file that is read as a whole: more is a mistake, and would take several times the memory."""


@dataclass(frozen=True)
class Document:
    """One text, or one conversation, and where it stands."""

    place: str
    """`file`, `file:line` or `data set row n`, as errors name it."""
    value: str | Conversation

    @property
    def size(self) -> int:
        """Characters, about."""
        if isinstance(self.value, str):
            return len(self.value)
        return sum(len(message.get("content") or "") for message in self.value)


def read_files(files: Sequence[Path], data: Data) -> Iterator[Document]:
    """The documents of the files in order. Never more than one line, one row group or one whole text is in memory.

    Raises:
        SpecError: at the first document that cannot be read, with its place.
    """
    for file in files:
        try:
            yield from _READERS.get(file.suffix.lower(), _read_text)(file, data)
        except OSError as error:
            raise SpecError(f"{file}: {error.strerror or error}") from error


def read_hub(source: HubDataset, data: Data, where: str) -> Iterator[Document]:
    """The documents of a hub data set, downloaded into the Hugging Face cache or found there.

    Raises:
        SpecError: it is not there, has no such config, split or field, or a row is of the wrong type.
    """
    dataset = load_hub(source, where)
    name = f"{source.hub} ({source.split})"
    field = _field(data)
    if field not in dataset.column_names:
        raise _no_field(name, data, dataset.column_names)
    for number, row in enumerate(dataset.select_columns([field])):
        yield _document(f"{name} row {number}", row, data)


def load_hub(source: HubDataset, where: str) -> Any:
    """The data set as `datasets` gives it, in the cache of `datasets`: of the cached commit, else of the newest."""
    import datasets

    try:
        return datasets.load_dataset(source.hub, source.config, split=source.split, revision=cached_commit(source))
    except (
        Exception
    ) as error:  # whatever datasets, the hub's client and the network raise: it is about the user's data set
        raise SpecError(
            f"{where}: hub data set '{source.hub}' cannot be loaded: {first_line(error)}; check hub, config and split, "
            "and run `kd-launch prepare` where there is network"
        ) from error


def first_line(error: Exception) -> str:
    """What an error of another library says, on one line and not at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


# --- one kind of file each


def _read_text(file: Path, _: Data) -> Iterator[Document]:
    """The whole file is one document."""
    yield Document(str(file), as_text(_whole(file, "split it, or write its documents as JSON lines"), str(file)))


def _read_lines(file: Path, data: Data) -> Iterator[Document]:
    """JSON lines. Only a newline ends a line: JSON strings may hold the other separators of Unicode."""
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MOST_BYTES + 1), b""), start=1):
            place = f"{file}:{number}"
            if len(line) > MOST_BYTES:
                raise SpecError(
                    f"{place}: the line is longer than {MOST_BYTES >> 20} MiB; JSON lines hold one document each: does "
                    "the file lack its line breaks?"
                )
            if line.strip():
                yield _document(place, _parse(as_text(line.rstrip(), place), place), data)


def _read_json(file: Path, data: Data) -> Iterator[Document]:
    """A JSON list of objects, or JSON lines under that name."""
    with file.open("rb") as opened:
        start = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_lines(file, data)
        return
    rows = _parse(
        as_text(_whole(file, "write its items as JSON lines, which are read one by one"), str(file)), str(file)
    )
    for number, row in enumerate(rows):
        yield _document(f"{file}: item {number}", row, data)


def _read_parquet(file: Path, data: Data) -> Iterator[Document]:
    """The rows of a parquet file, streamed: only the one column, a row group at a time."""
    import datasets
    import pyarrow.parquet

    field = _field(data)
    try:
        columns = pyarrow.parquet.read_schema(file).names
    except pyarrow.ArrowException as error:
        raise SpecError(f"{file}: is no readable parquet file: {first_line(error)}") from error
    if field not in columns:
        raise _no_field(str(file), data, columns)
    rows = datasets.load_dataset("parquet", data_files=[str(file)], split="train", streaming=True, columns=[field])
    for number, row in enumerate(_sound_rows(rows, file)):
        yield _document(f"{file}: row {number}", row, data)


def _sound_rows(rows: Any, file: Path) -> Iterator[Any]:
    """The rows; an error that the libraries raise in the middle of a damaged file names it."""
    stream = iter(rows)
    while True:
        try:
            row = next(stream)
        except StopIteration:
            return
        except Exception as error:  # pyarrow's, or one of datasets around it
            raise SpecError(f"{file}: is damaged: {first_line(error)}") from error
        yield row


_READERS: Mapping[str, Callable[[Path, Data], Iterator[Document]]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _whole(file: Path, advice: str) -> bytes:
    """The bytes of a file that must be in memory at once."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise SpecError(f"{file}: has {size >> 20} MiB, and at most {MOST_BYTES >> 20} are read as one piece; {advice}")
    return file.read_bytes()


# --- bytes and values, checked


def as_text(raw: bytes, place: str) -> str:
    """UTF-8, with or without its mark.

    Raises:
        SpecError: it is something else.
    """
    if b"\0" in raw:
        raise SpecError(f"{place}: is not text: it holds NUL bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{place}: is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from error


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        line_number = f"line {error.lineno} " if error.lineno > 1 else ""
        raise SpecError(f"{place}: broken JSON: {error.msg} ({line_number}column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of more digits than Python reads
        raise SpecError(f"{place}: unreadable JSON: {first_line(error)}") from error


def _document(place: str, row: Any, data: Data) -> Document:
    """The document in one JSON object or row."""
    if not isinstance(row, dict):
        raise SpecError(f"{place}: is {_kind(row)}, not an object with the field '{_field(data)}'")
    if _field(data) not in row:
        raise _no_field(place, data, list(row))
    value = row[_field(data)]
    what = f"{place}: field '{_field(data)}'"
    return Document(place, _checked_text(value, what) if data.format == "text" else _checked_messages(value, what))


def _checked_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{what} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SpecError(f"{what}: character {error.start} is half of a surrogate pair, which is no text") from error
    return value


def _checked_messages(value: Any, what: str) -> Conversation:
    """A list of messages with a role and a content; other keys (tool_calls, name) are the template's business."""
    if not isinstance(value, list):
        raise SpecError(f"{what} is {_kind(value)}, not a list of {{role, content}} messages")
    return [_checked_message(message, f"{what}, message {number}") for number, message in enumerate(value, start=1)]


def _checked_message(message: Any, what: str) -> Message:
    if not isinstance(message, dict):
        raise SpecError(f"{what} is {_kind(message)}, not {{role, content}}")
    given = {key: value for key, value in message.items() if value is not None}
    if "content" not in given and given.get("tool_calls"):
        given["content"] = ""
    for key in ("role", "content"):
        if key not in given:
            raise SpecError(f"{what} has no '{key}'; its keys are {_listed(list(given))}")
        _checked_text(given[key], f"{what}: '{key}'")
    return given


def _field(data: Data) -> str:
    return data.text_field if data.format == "text" else data.messages_field


def _no_field(place: str, data: Data, found: Sequence[str]) -> SpecError:
    field, key = _field(data), "text_field" if data.format == "text" else "messages_field"
    return SpecError(f"{place}: has no field '{field}' (data.{key}); it has {_listed(found)}{nearest(field, found)}")


def _listed(names: Sequence[object]) -> str:
    shown = [f"'{str(name)[:40]}'" for name in names[:12]]
    return ", ".join(shown + ["..."] * (len(names) > 12)) or "none"


def _kind(value: Any) -> str:
    """A JSON value's type in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")

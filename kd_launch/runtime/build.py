"""Builds one token store: documents are read, encoded, checked, packed and written, as a stream."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_launch.errors import SpecError
from kd_launch.runtime.data import Rows
from kd_launch.runtime.documents import Document, read_files, read_hub
from kd_launch.runtime.encoding import Encoder, chat_encoder, in_batches, text_encoder
from kd_launch.runtime.packing import Packer, Piece, Row
from kd_launch.runtime.store_writer import StoreWriter
from kd_launch.sources import source_files
from kd_launch.spec import Data, HubDataset, Source

BLOCK = 256
"""Rows that are written at once."""

Progress = Callable[[str], None]
"""Told how far it is, in words, often."""


@dataclass(frozen=True)
class Recipe:
    """All that a store is made from."""

    where: str
    """data.train or data.eval."""
    source: Source
    data: Data
    tokenizer: Any
    """The student's; None where data.format is tokens and the models have none."""
    tokenizer_where: str
    vocabulary: int
    """Ids must be below: both models know them."""


@dataclass
class Counts:
    """What was read, for the header and for the error that nothing was left."""

    documents: int = 0
    tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    roles: set[str] = field(default_factory=set)


def build_store(recipe: Recipe, writer: StoreWriter, progress: Progress) -> Counts:
    """Writes every sequence of the source.

    Raises:
        SpecError: something cannot be read, an id is not in the vocabulary, or there is nothing to learn from.
    """
    counts = Counts()
    for rows in _rows_of_files(recipe, counts) if recipe.data.format == "tokens" else _packed(recipe, counts):
        writer.append(rows)
        progress(f"{recipe.where}: {counts.documents} documents, {writer.sequences} sequences")
    if not writer.loss_tokens:
        raise SpecError(f"{recipe.where}: {_why_nothing(recipe, counts)}")
    return counts


def _why_nothing(recipe: Recipe, counts: Counts) -> str:
    if not counts.documents:
        return "holds no document"
    if recipe.data.format != "chat":
        return f"none of the {counts.documents} documents has two tokens, so there is nothing to predict"
    roles = ", ".join(f"'{role}'" for role in sorted(counts.roles)[:8]) or "none"
    return (
        f"none of the {counts.documents} conversations has a loss token: nothing that the assistant wrote within the "
        f"first {recipe.data.sequence_length} tokens (data.sequence_length); the roles are {roles}, and the one that "
        "is learnt from is 'assistant'"
    )


# --- text and chat


def _packed(recipe: Recipe, counts: Counts) -> Iterator[Rows]:
    data = recipe.data
    packer = Packer(data.sequence_length, pad_id(recipe.tokenizer, recipe.vocabulary), data.packing)
    return _blocks(_rows(_pieces(recipe, counts), packer))


def _documents(recipe: Recipe) -> Iterator[Document]:
    if isinstance(recipe.source, HubDataset):
        return read_hub(recipe.source, recipe.data, recipe.where)
    return read_files(source_files(recipe.source, recipe.where, recipe.data.format), recipe.data)


def _encoder(recipe: Recipe) -> Encoder:
    if recipe.data.format == "chat":
        return chat_encoder(recipe.tokenizer, recipe.data.sequence_length, recipe.tokenizer_where)
    return text_encoder(recipe.tokenizer, recipe.data.sequence_length)


def _pieces(recipe: Recipe, counts: Counts) -> Iterator[Piece]:
    """The pieces of all documents, counted and checked."""
    encode = _encoder(recipe)
    for batch in in_batches(_documents(recipe)):
        counts.roles.update(message["role"] for one in batch if isinstance(one.value, list) for message in one.value)
        for encoded in encode(batch):
            counts.documents += 1
            counts.truncated += encoded.truncated
            counts.dropped += not encoded.pieces
            for piece in encoded.pieces:
                _check_ids(piece.ids, recipe.vocabulary, encoded.place)
                counts.tokens += len(piece.ids)
                yield piece


def _rows(pieces: Iterable[Piece], packer: Packer) -> Iterator[Row]:
    for piece in pieces:
        yield from packer.add(piece)
    yield from packer.finish()


def _blocks(rows: Iterator[Row]) -> Iterator[Rows]:
    while block := list(islice(rows, BLOCK)):
        yield Rows(
            np.stack([row.ids for row in block]),
            np.stack([row.positions for row in block]),
            np.stack([row.loss for row in block]),
        )


def pad_id(tokenizer: Any, vocabulary: int) -> int:
    """What fills the end of a row: the padding token, else the end token, else 0; an id that both models know."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(id_) for id_ in candidates if id_ is not None and id_ < vocabulary)


def _check_ids(ids: NDArray[Any], vocabulary: int, place: str) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise SpecError(
            f"{place}: holds token id {low if low < 0 else high}, but both models know the ids from 0 to "
            f"{vocabulary - 1} only"
        )


# --- tokens


def _rows_of_files(recipe: Recipe, counts: Counts) -> Iterator[Rows]:
    """Rows as they are, each one document, every token but the first a target."""
    assert not isinstance(recipe.source, HubDataset)
    length = recipe.data.sequence_length
    for file in source_files(recipe.source, recipe.where, "tokens"):
        array = _token_array(file, length)
        for start in range(0, len(array), BLOCK):
            ids = np.asarray(array[start : start + BLOCK])
            _check_ids(ids, recipe.vocabulary, f"{file}: rows {start} to {start + len(ids) - 1}")
            counts.documents += len(ids)
            counts.tokens += ids.size
            positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
            yield Rows(ids.astype(np.int32), positions, positions < length - 1)


def _token_array(file: Path, sequence_length: int) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise SpecError(f"{file}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:  # pickled objects too: they are never read
        raise SpecError(f"{file}: is no .npy file of numbers; write one with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        found: Sequence[object] = (array.dtype, list(array.shape)) if isinstance(array, np.ndarray) else ("an archive",)
        words = " ".join(str(word) for word in found)
        raise SpecError(f"{file}: must hold integers [sequences, {sequence_length}], but holds {words}")
    if array.shape[1] != sequence_length:
        raise SpecError(
            f"{file}: its rows have {array.shape[1]} tokens but data.sequence_length is {sequence_length}; "
            f"set data.sequence_length: {array.shape[1]}"
        )
    return array

"""Documents -> pieces of tokens, of text and of conversations."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_launch.runtime.chat import ChatTemplate, assistant_tokens
from kd_launch.runtime.documents import Document
from kd_launch.runtime.packing import Piece, cut

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1_000_000
"""How much is tokenized at once: the tokenizers library uses all cores over one batch."""


@dataclass(frozen=True)
class Encoded:
    """What a document gives: no piece when it is dropped."""

    place: str
    pieces: tuple[Piece, ...]
    truncated: bool = False


Encoder = Callable[[Sequence[Document]], Iterator[Encoded]]


def text_encoder(tokenizer: Any, sequence_length: int) -> Encoder:
    """Whole texts: the tokenizer's own special tokens, the end token where it has one, cut at sequence_length."""
    end = tokenizer.eos_token_id

    def encode(documents: Sequence[Document]) -> Iterator[Encoded]:
        texts = [document.value for document in documents]
        rows = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
        for document, ids in zip(documents, rows, strict=True):
            closed = ids if end is None or ids[-1:] == [end] else [*ids, end]
            yield Encoded(document.place, tuple(cut(closed, sequence_length)) if document.value else ())

    return encode


def chat_encoder(tokenizer: Any, sequence_length: int, where: str) -> Encoder:
    """Conversations by the chat template, loss on what the assistant wrote; longer ones lose their end."""
    template = ChatTemplate(tokenizer, where)

    def encode(documents: Sequence[Document]) -> Iterator[Encoded]:
        rendered = [template.render(document) for document in documents]
        # The whole text at once, so that tokens across the borders of messages are those the model will see.
        tokens = tokenizer(
            [one.text for one in rendered],
            add_special_tokens=False,  # the template wrote them
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows = zip(documents, rendered, tokens["input_ids"], tokens["offset_mapping"], strict=True)
        for document, one, ids, offsets in rows:
            piece = conversation_piece(ids, assistant_tokens(offsets, one.assistant), sequence_length)
            kept = (piece,) if piece.loss.any() else ()
            yield Encoded(document.place, kept, truncated=len(ids) > sequence_length)

    return encode


def conversation_piece(ids: Sequence[int], assistant: NDArray[np.bool_], sequence_length: int) -> Piece:
    """The first sequence_length tokens; a position counts when its next token is the assistant's."""
    kept = min(len(ids), sequence_length)
    loss = np.zeros(kept, dtype=np.bool_)
    loss[: max(kept - 1, 0)] = assistant[1:kept]
    return Piece(np.array(ids[:kept], dtype=np.int32), loss)


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents in lists of some hundred, fewer where they are long."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += document.size
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

"""Pieces of tokens -> rows of one length: several to a row where they fit, each a document of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPEN_ROWS = 64
"""Rows that a piece may still be put into: bounds memory and the search."""


@dataclass(frozen=True)
class Piece:
    """Tokens that attend to each other and to nothing else."""

    ids: NDArray[np.int32]
    """[n], n >= 1."""
    loss: NDArray[np.bool_]
    """[n]: whether predicting the next token counts. The last one is False."""


@dataclass
class Row:
    """One sequence being filled."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    loss: NDArray[np.bool_]
    used: int = 0

    @property
    def free(self) -> int:
        return len(self.ids) - self.used

    def put(self, piece: Piece) -> None:
        """Appends a piece that fits; its positions begin at 0."""
        span = slice(self.used, self.used + len(piece.ids))
        self.ids[span], self.loss[span] = piece.ids, piece.loss
        self.positions[span] = np.arange(len(piece.ids))
        self.used += len(piece.ids)


class Packer:
    """Puts each piece into the first open row with room for it (first fit), else into a new row.

    A row leaves when it is full, and the fullest one (the oldest of equals) when too many are open. What is left of a
    row is padding: a document of its own without loss, so that no real token sees it. The result depends on the pieces
    and their order only.
    """

    def __init__(self, sequence_length: int, pad_id: int, share_rows: bool) -> None:
        self._length, self._pad_id = sequence_length, pad_id
        self._most = OPEN_ROWS if share_rows else 0
        self._open: list[Row] = []

    def add(self, piece: Piece) -> Iterator[Row]:
        """Places a piece of at most sequence_length tokens; gives the row that is thereby done, if one is."""
        row = next((row for row in self._open if row.free >= len(piece.ids)), None)
        if row is None:
            row = self._new_row()
            self._open.append(row)
        row.put(piece)
        if not row.free or len(self._open) > self._most:
            yield self._take(row if not row.free else min(self._open, key=lambda other: other.free))

    def finish(self) -> Iterator[Row]:
        """The rows that are still open, oldest first."""
        while self._open:
            yield self._take(self._open[0])

    def _new_row(self) -> Row:
        ids = np.full(self._length, self._pad_id, dtype=np.int32)
        return Row(ids, np.zeros(self._length, dtype=np.int32), np.zeros(self._length, dtype=np.bool_))

    def _take(self, row: Row) -> Row:
        self._open = [other for other in self._open if other is not row]
        row.positions[row.used :] = np.arange(row.free)
        return row


def cut(ids: list[int], sequence_length: int) -> Iterator[Piece]:
    """A text's tokens in pieces of at most sequence_length, every next token of a piece counting."""
    for start in range(0, len(ids), sequence_length):
        part = np.array(ids[start : start + sequence_length], dtype=np.int32)
        yield Piece(part, np.arange(len(part)) < len(part) - 1)

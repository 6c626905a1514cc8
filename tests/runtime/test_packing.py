"""Packing: no token lost or doubled, no document over the end of a row, the same every time."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_launch.runtime.packing import OPEN_ROWS, Packer, Piece, Row, cut

PAD = 7


@st.composite
def pieces(draw: st.DrawFn) -> tuple[int, list[Piece]]:
    """A row length, and pieces that fit, each token a number of its own above PAD."""
    length = draw(st.integers(2, 20))
    sizes = draw(st.lists(st.integers(1, length), max_size=200))
    starts = np.cumsum([100, *sizes])
    made = []
    for start, size in zip(starts, sizes, strict=False):
        loss = np.array([*draw(st.lists(st.booleans(), min_size=size - 1, max_size=size - 1)), False])
        made.append(Piece(np.arange(start, start + size, dtype=np.int32), loss))
    return length, made


def pack(length: int, made: list[Piece], share_rows: bool) -> list[Row]:
    packer = Packer(length, PAD, share_rows)
    return [row for piece in made for row in packer.add(piece)] + list(packer.finish())


def documents(row: Row) -> list[tuple[list[int], list[bool]]]:
    """(ids, loss) of each document of a row, cut where positions begin again; positions must count up in between."""
    starts = [*np.flatnonzero(row.positions == 0).tolist(), len(row.ids)]
    assert starts[0] == 0
    spans = [slice(a, b) for a, b in pairwise(starts)]
    assert all(row.positions[span].tolist() == list(range(span.stop - span.start)) for span in spans)
    return [(row.ids[span].tolist(), row.loss[span].tolist()) for span in spans]


@given(pieces(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_documents_come_out_whole_and_once_and_padding_is_one_more(case: tuple[int, list[Piece]], share: bool) -> None:
    length, made = case
    rows = pack(length, made, share)
    found = [document for row in rows for document in documents(row)]
    padding = [(ids, loss) for ids, loss in found if ids[0] == PAD]
    real = [(ids, loss) for ids, loss in found if ids[0] != PAD]
    assert sorted(real) == sorted((piece.ids.tolist(), piece.loss.tolist()) for piece in made)
    assert all(set(ids) == {PAD} and not any(loss) for ids, loss in padding)
    assert all(row.ids.shape == row.positions.shape == row.loss.shape == (length,) for row in rows)
    assert sum(int(row.loss.sum()) for row in rows) == sum(int(piece.loss.sum()) for piece in made)
    assert not any(loss[-1] for _, loss in found)
    # At most one document of padding, at the end of its row.
    assert all(ids[0] != PAD for row in rows for ids, _ in documents(row)[:-1])
    if not share:
        assert [row.ids[: row.used].tolist() for row in rows] == [piece.ids.tolist() for piece in made]


@given(pieces())
@settings(max_examples=100, deadline=None)
def test_packing_is_deterministic_and_wastes_less_than_half(case: tuple[int, list[Piece]]) -> None:
    length, made = case
    rows, again = pack(length, made, share_rows=True), pack(length, made, share_rows=True)
    assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in again]
    # First fit: no two rows that were open together fit into one. So all but one row are more than half full.
    if len(rows) <= OPEN_ROWS:
        assert sum(2 * row.used <= length for row in rows) <= 1


def test_a_bounded_number_of_rows_is_open_and_the_fullest_leaves() -> None:
    packer = Packer(10, PAD, share_rows=True)
    sizes = [6] * (OPEN_ROWS - 1) + [7]
    for i, size in enumerate(sizes):
        assert not list(packer.add(Piece(np.full(size, 100 + i, dtype=np.int32), np.zeros(size, dtype=np.bool_))))
    (left,) = packer.add(Piece(np.full(6, 999, dtype=np.int32), np.zeros(6, dtype=np.bool_)))
    assert left.used == 7
    (full,) = packer.add(Piece(np.full(4, 888, dtype=np.int32), np.zeros(4, dtype=np.bool_)))
    assert full.ids.tolist() == [100] * 6 + [888] * 4


@given(st.integers(0, 50), st.integers(2, 9))
def test_a_text_is_cut_into_pieces_that_are_documents_of_their_own(size: int, length: int) -> None:
    ids = list(range(size))
    parts = list(cut(ids, length))
    assert [id_ for part in parts for id_ in part.ids.tolist()] == ids
    assert all(len(part.ids) == length for part in parts[:-1])
    assert all(part.loss.tolist() == [True] * (len(part.ids) - 1) + [False] for part in parts)

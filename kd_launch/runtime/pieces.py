"""Piece: the part of a parameter that one rank holds, as ranges of indices; and how ranks cut it further."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

Range = tuple[int, int]
"""Indices from the first to before the second."""


@dataclass(frozen=True)
class Piece:
    """Of a parameter; what its ranges hold lies one after the other."""

    ranges: tuple[tuple[Range, ...], ...]
    """By dimension."""

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Piece":
        return cls(tuple(((0, size),) for size in shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(sum(stop - start for start, stop in ranges) for ranges in self.ranges)

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    def chunk(self, dim: int, index: int, count: int, groups: int = 1) -> "Piece":
        """The part of rank `index` of `count` along one dimension, as `torch.chunk` cuts: the last ones may be shorter.

        groups: packed matrices of equal height, such as gate and up, each of which is cut by itself.
        """
        dim %= len(self.ranges)
        size = self.shape[dim]
        assert size % groups == 0, "packed matrices are equally high"
        height = size // groups
        cut: list[Range] = []
        for group in range(groups):
            cut += _cut(
                _cut(self.ranges[dim], group * height, (group + 1) * height), *chunk_range(height, index, count)
            )
        return Piece((*self.ranges[:dim], tuple(cut), *self.ranges[dim + 1 :]))

    def blocks(self) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Each rectangle of the piece: where it lies in the whole, and where in the piece."""
        by_dim = []
        for ranges in self.ranges:
            starts = itertools.accumulate((stop - start for start, stop in ranges), initial=0)
            by_dim.append(list(zip(ranges, starts, strict=False)))
        for chosen in itertools.product(*by_dim):
            yield (
                tuple(slice(start, stop) for (start, stop), _ in chosen),
                tuple(slice(at, at + stop - start) for (start, stop), at in chosen),
            )


def chunk_range(size: int, index: int, count: int) -> Range:
    """Where chunk `index` of `count` begins and ends.

    >>> [chunk_range(10, index, 4) for index in range(4)]
    [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    step = -(-size // count)
    start = min(index * step, size)
    return start, min(start + step, size)


def _cut(ranges: tuple[Range, ...] | list[Range], start: int, stop: int) -> list[Range]:
    """Positions `start` to `stop` of what the ranges hold, as ranges of the original indices."""
    found: list[Range] = []
    at = 0
    for first, last in ranges:
        low, high = max(start, at), min(stop, at + last - first)
        if low < high:
            found.append((first + low - at, first + high - at))
        at += last - first
    return found

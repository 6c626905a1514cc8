"""Lines of at most 100 columns for a terminal."""

import textwrap
from collections.abc import Sequence

WIDTH = 100


def wrapped(text: str, indent: str = "") -> list[str]:
    """A paragraph; later lines begin with `indent`."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def entry(name: str, text: str) -> list[str]:
    """An indented line that begins with its name, and what does not fit on it below its text."""
    return textwrap.wrap(f"  {name:<9} {text}", WIDTH, subsequent_indent=" " * 12, break_on_hyphens=False)


def aligned(rows: Sequence[tuple[str, ...]], right: Sequence[bool]) -> list[str]:
    """Columns as wide as their widest cell. right: which of them end at the same place."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(right))]
    return [
        " ".join(
            f"{cell:>{width}}" if ends else f"{cell:<{width}}"
            for cell, width, ends in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]

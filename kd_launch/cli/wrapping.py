"""Lines of at most 100 columns for a terminal."""

import textwrap

WIDTH = 100


def wrapped(text: str, indent: str = "") -> list[str]:
    """A paragraph; later lines begin with `indent`."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def entry(name: str, text: str) -> list[str]:
    """An indented line that begins with its name, and what does not fit on it below its text."""
    return textwrap.wrap(f"  {name:<9} {text}", WIDTH, subsequent_indent=" " * 12, break_on_hyphens=False)

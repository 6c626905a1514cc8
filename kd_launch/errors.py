"""Every error that a user can meet, and the exit code of each branch.

    KdLaunchError               1  never raised itself
    +-- SpecError               2  spec, cluster file or usage is wrong
    |   +-- UnknownNameError    2  a run, GPU, model or key that does not exist
    +-- DoesNotFitError         3  no layout fits; says by how much
    +-- CheckError              3  preflight found what would fail later
    +-- SlurmRefusedError       4  Slurm said no; its words are in the message
    +-- RunFailedError          5  the run ended without its student
    +-- SlurmSilentError        6  Slurm does not answer
        +-- MaybeSentError      6  and may have taken the job all the same: its run folder is kept

A message says what, where, the value, the legal values and the way out. The command line prints it and exits with
the code; it never shows a traceback for one of these.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class KdLaunchError(Exception):
    """Root of the tree."""

    exit_code = 1


class SpecError(KdLaunchError):
    """The spec, the cluster file, an input file or the command line is wrong. May hold several messages, one a line."""

    exit_code = 2


class UnknownNameError(SpecError):
    """A name that nothing answers to."""


class DoesNotFitError(KdLaunchError):
    """No layout of the models on the cluster is possible."""

    exit_code = 3


class CheckError(KdLaunchError):
    """Something was found that would fail inside the job."""

    exit_code = 3


class SlurmRefusedError(KdLaunchError):
    """Slurm refused the job."""

    exit_code = 4


class RunFailedError(KdLaunchError):
    """The run ended, and not because it was done."""

    exit_code = 5


class SlurmSilentError(KdLaunchError):
    """Slurm did not answer in time."""

    exit_code = 6


class MaybeSentError(SlurmSilentError):
    """Slurm may have taken the job all the same: the run folder is kept, by which it is found again."""


def first_problem(findings: Sequence[Mapping[str, Any]], whole: str) -> str:
    """pydantic's first finding about a file of ours, as "field: what is wrong"; `whole` stands for the file itself.

    For files that programs wrote; what people write is answered in full by `reading.field_errors`.
    """
    field = ".".join(str(part) for part in findings[0]["loc"]) or whole
    return f"{field}: {findings[0]['msg']}"


def nearest(name: str, legal: Iterable[str]) -> str:
    """A clause that suggests the legal name closest to `name`: "; did you mean 'steps'?", or "" when none is close."""
    close = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: str, most: int | None = None) -> str:
    """Text as a terminal shows it and does nothing else: what is no visible character as an escape.

    Args:
        most: characters; a longer text is cut.

    >>> print(printable("a\x1b[2J"), printable("naïve"), printable("a" * 20, 8))
    a\\x1b[2J naïve aaaaa...
    """
    if most is not None and len(text) > most:
        text = f"{text[: most - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)

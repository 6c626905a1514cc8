"""What a check finds, where it looks, and the error that ends a command when something would fail."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kd_launch.commands import Runner
from kd_launch.errors import CheckError, KdLaunchError, SlurmSilentError, printable
from kd_launch.local.machine import Machine


class Level(StrEnum):
    """How bad it is. Only FAIL and SILENT keep a run from being submitted."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong; or it cannot be known from here."""
    WARNING = "warn"
    """The run can start, but not as soon, or not as one might expect."""
    FAIL = "FAIL"
    """The job would be refused, never start, or fail."""
    SILENT = "silent"
    """Slurm does not answer, so that nothing is known; shown as FAIL."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    says: str
    """Where it was found; for what is wrong also the way out."""

    @property
    def ok(self) -> bool:
        """Whether the run may be submitted all the same."""
        return self.level not in (Level.FAIL, Level.SILENT)

    def line(self) -> str:
        shown = Level.FAIL if self.level is Level.SILENT else self.level
        return "\n".join(map(printable, f"{shown:<4} {self.what}: {self.says}".split("\n")))


def fine(what: str, says: str) -> Finding:
    return Finding(Level.OK, what, says)


def note(what: str, says: str) -> Finding:
    return Finding(Level.NOTE, what, says)


def warning(what: str, says: str) -> Finding:
    return Finding(Level.WARNING, what, says)


def failure(what: str, says: str) -> Finding:
    return Finding(Level.FAIL, what, says)


def error_of(found: Sequence[Finding], words: str = "") -> KdLaunchError | None:
    """The error that ends a command after these findings; None when the run may be submitted.

    Args:
        words: of the error; "": the findings that are wrong, one a line.
    """
    wrong = [finding for finding in found if not finding.ok]
    if not wrong:
        return None
    kind = SlurmSilentError if any(finding.level is Level.SILENT for finding in wrong) else CheckError
    return kind(words or "\n".join(f"{finding.what}: {finding.says}" for finding in wrong))


@dataclass(frozen=True)
class Place:
    """Where the check is made."""

    machine: Machine
    environ: Mapping[str, str]
    cwd: Path
    run: Runner
    host: str = ""
    """This machine's name."""
    mounts: str = ""
    """The text of /proc/self/mountinfo."""
    address_of: Callable[[str], str | None] = lambda _: None
    """A host's IP address, by its name; None: it has none."""

    @property
    def is_offline(self) -> bool:
        return self.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}

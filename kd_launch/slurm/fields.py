"""What Slurm's programs print becomes mappings and numbers: records of key=value, lines between bars, time, memory."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from kd_launch.cluster import time_limit_seconds

# A key begins a line or follows a blank; its value goes on to the next key, for some values hold blanks.
_KEY = re.compile(r"(?:^|(?<=\s))([A-Za-z][\w/:\[\].-]*)=")
_NOTHING = {"", "(null)", "n/a", "none", "unlimited", "infinite", "partition_limit", "not_set", "all"}
_MIB_OF = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "P": 1024.0**3}


def parse_records(text: str, first_key: str) -> list[dict[str, str]]:
    """The records of `scontrol show`, one a line or over several; each begins with `first_key`.

    Of a key that comes twice the first counts: what a user or an administrator wrote (Comment, Reason) comes last.

    >>> parse_records("NodeName=a OS=Linux 6.1 #1 SMP  State=IDLE", "NodeName")
    [{'NodeName': 'a', 'OS': 'Linux 6.1 #1 SMP', 'State': 'IDLE'}]
    """
    starts = [found.start() for found in re.finditer(rf"^\s*{first_key}=", text, re.MULTILINE)]
    return [_record(text[start:end]) for start, end in pairwise([*starts, len(text)])]


def _record(text: str) -> dict[str, str]:
    keys = list(_KEY.finditer(text))
    record: dict[str, str] = {}
    for i, key in enumerate(keys):
        end = keys[i + 1].start() if i + 1 < len(keys) else len(text)
        record.setdefault(key[1], text[key.end() : end].strip())
    return record


def parse_settings(text: str) -> dict[str, str]:
    """The lines `Key = value` of `scontrol show config`, those of its plugins included."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    settings: dict[str, str] = {}
    for key, _, value in pairs:
        settings.setdefault(key.strip(), value.strip())
    return settings


def parse_columns(text: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a program that was asked for `columns` between bars, without a header; torn lines are left out."""
    rows = (line.split("|") for line in text.splitlines())
    return [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def words(text: str) -> tuple[str, ...]:
    """The parts of a list with commas; none where Slurm says that there are none, or that all are meant."""
    if text.strip().lower() in _NOTHING:
        return ()
    return tuple(part.strip() for part in text.split(",") if part.strip())


def seconds_of(text: str) -> int | None:
    """Seconds of a time limit; None where there is none."""
    try:
        return None if text.strip().lower() in _NOTHING else time_limit_seconds(text.strip())
    except ValueError:
        return None


def count_of(text: str | None) -> int | None:
    """The number that a text begins with; None where it begins with none."""
    found = re.match(r"\d+", (text or "").strip())
    return int(found[0]) if found else None


def mib_of(text: str, unit: str = "M") -> float | None:
    """MiB of an amount of memory such as 190000, 190000M, 4G, 1.5T; `unit` is meant where none is written.

    >>> mib_of("4G"), mib_of("512"), mib_of("UNLIMITED")
    (4096.0, 512.0, None)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)(?:i?B)?[cn]?", text.strip(), re.IGNORECASE)
    return float(found[1]) * _MIB_OF[(found[2] or unit).upper()] if found else None


def tres_of(text: str) -> Mapping[str, float]:
    """Amounts of trackable resources, `cpu=8,mem=4G,node=2,gres/gpu=4`; memory in MiB.

    >>> dict(tres_of("node=2,mem=1G,gres/gpu:a100=4"))
    {'node': 2.0, 'mem': 1024.0, 'gres/gpu:a100': 4.0}
    """
    amounts: dict[str, float] = {}
    for part in words(text):
        name, _, value = part.rpartition("=")
        amount = mib_of(value) if name == "mem" else count_of(value)
        if amount is not None and name:
            amounts[name.lower()] = float(amount)
    return amounts


def time_text(seconds: int) -> str:
    """A time limit as Slurm writes it.

    >>> time_text(5400), time_text(183600)
    ('01:30:00', '2-03:00:00')
    """
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock

"""GPUs in Slurm's words: those that a node has, and those that a job asks for."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_NUMBER = re.compile(r"(\d+)([kKmM]?)")


class Gpus(NamedTuple):
    """GPUs of one type."""

    type: str
    """As the site calls it; "" where it names none."""
    number: int


def parse_gres(text: str) -> tuple[Gpus, ...]:
    """The GPUs of a node's Gres, such as `gpu:a100:4(S:0-1),nvme:1`; other kinds of resources are left out.

    >>> parse_gres("gpu:a100:4(S:0-1),gpu:v100:2,shard:12")
    (Gpus(type='a100', number=4), Gpus(type='v100', number=2))
    """
    items = re.sub(r"\([^)]*\)", "", text).split(",")
    return tuple(gpus for item in items if (gpus := _gpus(item.strip().removeprefix("gres/"))) is not None)


def parse_request(text: str) -> tuple[Gpus, ...]:
    """The GPUs of an option --gres=gpu:a100:4 or --gpus-per-node=a100:4, without the option's name.

    >>> parse_request("a100:4"), parse_request("gpu:4,nvme"), parse_request("8")
    ((Gpus(type='a100', number=4),), (Gpus(type='', number=4),), (Gpus(type='', number=8),))
    """
    parts = [part for part in text.split(",") if part]
    if any(re.match(r"(gres[/:])?gpu(?=[:=]|$)", part) for part in parts):
        return parse_gres(re.sub(r"gres[/:]", "", text))
    if all(re.fullmatch(r"([^:=]+[:=])?\d+", part) for part in parts):  # the values of --gpus-per-node
        return tuple(gpus for part in parts if (gpus := _gpus(f"gpu:{part}")) is not None)
    return ()


def has_gpus(node: Iterable[Gpus], wanted: Iterable[Gpus]) -> bool:
    """Whether a node has the GPUs that a job asks for; a type that is not asked for may be any."""
    counts = counted(node)
    asked = counted(wanted)
    typed = {kind: count for kind, count in asked.items() if kind}
    return sum(counts.values()) >= sum(asked.values()) and all(
        counts.get(kind, 0) >= count for kind, count in typed.items()
    )


def counted(gpus: Iterable[Gpus]) -> Mapping[str, int]:
    """Type in lower case -> number."""
    counts: dict[str, int] = {}
    for kind, count in gpus:
        counts[kind.lower()] = counts.get(kind.lower(), 0) + count
    return counts


def describe(gpus: Iterable[Gpus]) -> str:
    """In words, such as "4 x a100"; "no GPUs" for none."""
    return " and ".join(f"{count} x {kind or 'gpu'}" for kind, count in counted(gpus).items() if count) or "no GPUs"


def _gpus(item: str) -> Gpus | None:
    """Of gpu, gpu:4, gpu:a100:4, gpu:a100=4 or gpu:a100; a count that is missing is 1."""
    name, *parts = re.split("[:=]", item)
    if name != "gpu":
        return None
    number = _NUMBER.fullmatch(parts[-1]) if parts else None
    count = int(number[1]) * {"": 1, "k": 1024, "m": 1024**2}[number[2].lower()] if number else 1
    return Gpus(":".join(parts[:-1] if number else parts), count)

"""A pool as it was found, and its text in a cluster file, with what to know about it as comments."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from kd_launch.catalog import find_gpu, gpu_ids
from kd_launch.errors import UnknownNameError

UNKNOWN = "UNKNOWN"
"""What stands for a GPU without a name."""


@dataclass(frozen=True)
class FoundGpu:
    """What the catalog makes of a GPU's name."""

    id: str
    """As a cluster file names it."""
    note: str = ""
    """Behind it, as a comment."""
    is_known: bool = True
    """Whether the catalog knows it: else no plan is possible with it."""
    is_guess: bool = False


@dataclass(frozen=True)
class FoundPool:
    """A pool as it was found; what is None is not written."""

    name: str
    nodes: int
    gpus_per_node: int
    gpu: FoundGpu
    cpus_per_node: int
    memory_gib: int
    partition: str | None = None
    gpu_directive: str | None = None
    mem: str | None = None
    account: str | None = None
    qos: str | None = None
    whole_nodes: bool = False
    notes: tuple[str, ...] = ()
    """Comments above it."""


def catalog_gpu(name: str) -> FoundGpu:
    """The catalog's GPU of that name, or, where it knows several that begin so, the one with the least memory."""
    for spelling in (name, f"{name}b", f"{name}gb"):  # a100_80g and a100.80 are A100-80GB
        with suppress(UnknownNameError):
            return FoundGpu(find_gpu(spelling).id, f"found as {name}")
    kin = sorted(_begins_with(name), key=lambda gpu: find_gpu(gpu).memory_gib or 0.0)
    if kin:
        others = f", or {', '.join(kin[1:])}" if len(kin) > 1 else ""
        return FoundGpu(kin[0], f"a guess: found as {name}{others}", is_guess=True)
    known = ", ".join(gpu for gpu in gpu_ids() if gpu != "CPU")
    return FoundGpu(name or UNKNOWN, f"write one of: {known}", is_known=False)


def _begins_with(name: str) -> Iterator[str]:
    """Ids of the family that a name such as a100 or nvidia_a100 stands for."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia").removeprefix("tesla"))
    for gpu in gpu_ids():
        if letters and gpu != "CPU" and re.match(rf"{letters}([^0-9a-z]|x?-)", gpu.lower()):
            yield gpu


CPU = FoundGpu("CPU", "gpus_per_node counts processes")


def processes_on(cores: int, least: int) -> int:
    """Processes that stand for the GPUs of a node without any."""
    return max(least, min(8, cores // 2))


def named_apart(pools: Sequence[FoundPool]) -> list[FoundPool]:
    """Pools of one name are numbered: a partition with several kinds of nodes gives several."""
    named: list[FoundPool] = []
    for pool in pools:
        name, taken = plain_name(pool.name), {other.name for other in named}
        number = next(i for i in range(1, len(pools) + 1) if (name if i == 1 else f"{name}-{i}") not in taken)
        named.append(replace(pool, name=name if number == 1 else f"{name}-{number}"))
    return named


def pool_lines(pool: FoundPool, *, as_comment: bool = False) -> list[str]:
    """The lines of one pool."""
    lines = [f"  - name: {scalar(pool.name)}"]
    values = {"partition": pool.partition, "nodes": pool.nodes, "gpus_per_node": pool.gpus_per_node}
    lines += [f"    {key}: {_value(value)}" for key, value in values.items() if value is not None]
    lines.append(f"    gpu: {scalar(pool.gpu.id)}" + (f"  # {pool.gpu.note}" if pool.gpu.note else ""))
    values = {
        "gpu_directive": pool.gpu_directive, "cpus_per_node": pool.cpus_per_node, "memory_gib": pool.memory_gib,
        "mem": pool.mem, "account": pool.account, "qos": pool.qos,
    }  # fmt: skip
    lines += [f"    {key}: {_value(value)}" for key, value in values.items() if value is not None]
    lines += ['    sbatch: ["--exclusive"]'] if pool.whole_nodes else []
    if as_comment:
        lines = [f"  # {line[2:]}" for line in lines]
    return [*(f"  # {one_line(note)}" for note in pool.notes), *lines]


def _value(value: str | int) -> str:
    return str(value) if isinstance(value, int) else scalar(value)


def plain_name(text: str) -> str:
    """A name that a cluster file takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "cluster"


def scalar(text: str) -> str:
    """Text as YAML reads it back: quoted where it could be anything else."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text)
    taken = ("null", "true", "false", "nan", "yes", "no", "on", "off", "y", "n")
    return text if plain and text.lower() not in taken else json.dumps(text)


def one_line(text: str) -> str:
    """Text that a comment can hold."""
    return " ".join(text.split())

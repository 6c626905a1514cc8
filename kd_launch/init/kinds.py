"""The kinds of nodes in a partition: equal GPUs and cores, and the least memory that they have."""

from collections.abc import Iterable
from dataclasses import dataclass

from kd_launch.init.pools import CPU, FoundGpu, catalog_gpu
from kd_launch.slurm.gres import Gpus
from kd_launch.slurm.inventory import Node


@dataclass(frozen=True)
class Kind:
    """Nodes that one pool is made of."""

    up: tuple[Node, ...]
    out: tuple[Node, ...]
    """Equal to them, but out of order."""
    gpus: int
    """Of one node; 0 for none."""
    gpu_type: str | None
    """In Slurm's words, "" where it names none; None: no GPUs."""

    @property
    def cpus(self) -> int:
        return min(node.cpus for node in self.up)

    @property
    def memory_mib(self) -> float:
        return min(node.memory_mib for node in self.up)

    @property
    def features(self) -> tuple[str, ...]:
        """Those that all of them have."""
        common = set(self.up[0].features).intersection(*(node.features for node in self.up))
        return tuple(feature for feature in self.up[0].features if feature in common)

    def gpu(self, partition: str) -> FoundGpu:
        """By its type; where that says nothing, by a feature or the name of the partition that the catalog knows."""
        if self.gpu_type is None:
            return CPU
        by_type = catalog_gpu(self.gpu_type)
        if by_type.is_known and not by_type.is_guess:
            return by_type
        others = [gpu for name in (*self.features, partition) if (gpu := catalog_gpu(name)).is_known]
        fitting = [gpu for gpu in others if not by_type.is_known or _family(gpu) == _family(by_type)]
        return min([*fitting, by_type], key=lambda gpu: (not gpu.is_known, gpu.is_guess))


def _family(gpu: FoundGpu) -> str:
    """A100 of A100-SXM-80."""
    return gpu.id.partition("-")[0]


def kinds_of(nodes: Iterable[Node]) -> list[Kind]:
    """The kinds with at least one node that is up; those with GPUs first, the most of them first."""
    groups: dict[tuple[Gpus, int], list[Node]] = {}
    for node in nodes:
        groups.setdefault((_main_gpus(node), node.cpus), []).append(node)
    kinds = []
    for (gpus, _), members in groups.items():
        up = tuple(node for node in members if not node.is_out())
        if up:
            out = tuple(node for node in members if node.is_out())
            kinds.append(Kind(up, out, gpus.number, gpus.type if gpus.number else None))
    return sorted(kinds, key=lambda kind: (not kind.gpus, -len(kind.up), -kind.gpus))


def _main_gpus(node: Node) -> Gpus:
    """Of several types in one node, the one there are most of."""
    return max(node.gpus, key=lambda gpus: gpus.number, default=Gpus("", 0))

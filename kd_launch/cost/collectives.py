"""Seconds of collectives and of point-to-point messages, inside a node and between nodes."""

import math
from dataclasses import dataclass
from enum import Enum

from kd_launch.catalog import BusBandwidth, Gpu
from kd_launch.cluster import Factors, Pool
from kd_launch.cost.constants import GB, MICRO, LinkConstants

NEUTRAL = Factors()


class Collective(Enum):
    """What ranks do together. The whole tensor's bytes are given, of which each rank holds or gets a part."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"

    def traffic(self, ranks: int) -> float:
        """Bytes over the busiest link, in whole tensors; nccl-tests, doc/PERFORMANCE.md."""
        once = (ranks - 1) / ranks
        return 2 * once if self is Collective.ALL_REDUCE else once


@dataclass(frozen=True)
class Group:
    """The ranks of one collective as they lie on nodes; `peers` such groups of a node use its network at once."""

    ranks: int
    per_node: int
    peers: int = 1

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.per_node)


@dataclass(frozen=True)
class Fabric:
    """The links of a pool of equal nodes. Bandwidths are what large messages reach, bytes/s, one direction."""

    bus: dict[Collective, tuple[float, ...]]
    """Bus bandwidth inside a node, by number of ranks from 0."""
    pair: float
    """Between two GPUs of a node."""
    network: float
    """Between nodes, of a whole node."""
    latency_s: float
    ring_hop_s: float
    """Of each of the 2 (ranks - 1) hops of a ring, beside the latency: 0 where devices pass on by themselves."""
    pair_latency_s: float
    hop_s: float
    ramp_inside_s: float
    ramp_between_s: float
    factors: Factors = NEUTRAL
    """As calibrated."""

    def seconds(self, collective: Collective, size: float, group: Group) -> float:
        """Of one collective over a tensor of `size` bytes: the slower of the node's links and the network.

        A ring over all adapters and a hierarchical collective with overlap both come to that, within 6 % of 4 GiB
        all-reduces over 4 nodes (ml-engineering, network/README.md).
        """
        if group.ranks == 1:
            return 0.0
        factor: float = getattr(self.factors, collective.value)
        return factor * self._seconds(collective, size, group)

    def stop_seconds(self, size: float, group: Group) -> float:
        """Of an all-reduce within a layer, for which its ranks stop computing."""
        if group.ranks == 1:
            return 0.0
        return self.factors.tensor_parallel * self._seconds(Collective.ALL_REDUCE, size, group)

    def _seconds(self, collective: Collective, size: float, group: Group) -> float:
        traffic = collective.traffic(group.ranks) * size
        inside = min(group.ranks, group.per_node)
        seconds = self.ramp_inside_s + traffic / self.bus[collective][inside] if inside > 1 else 0.0
        start = self.latency_s + 2 * (group.ranks - 1) * self.ring_hop_s
        if group.nodes == 1:
            return start + seconds
        # every node takes in and sends out what the others hold, through its share of the adapters
        between = self.ramp_between_s + traffic * group.peers / self.network
        return start + 2 * self.hop_s * math.log2(group.nodes) + max(seconds, between)

    def exchange_seconds(self, size: float, group: Group, copies: int) -> float:
        """Of an all-to-all in which each rank gives `copies` ranks of the group, by chance, `size` bytes each.

        A node gets them once and hands them on by its own links, as DeepEP does.
        """
        if group.ranks == 1:
            return 0.0
        inside = min(group.ranks, group.per_node)
        within = self.ramp_inside_s + (inside - 1) / inside * copies * size / self.bus[Collective.ALL_GATHER][inside]
        if group.nodes == 1:
            return self.latency_s + within
        others = (group.nodes - 1) * (1 - (1 - 1 / group.nodes) ** copies)
        between = self.ramp_between_s + others * inside * size * group.peers / self.network
        return self.latency_s + 2 * self.hop_s * math.log2(group.nodes) + max(within, between)

    def message_seconds(self, size: float, *, between_nodes: bool, senders_per_node: int = 1) -> float:
        """Of one point-to-point message of `size` bytes, when that many ranks of a node send at once."""
        speed = self.network / senders_per_node if between_nodes else self.pair
        return self.factors.message * (self.pair_latency_s + size / speed)


def fabric_of(pool: Pool, gpu: Gpu, constants: LinkConstants) -> Fabric:
    """The links of a pool: the catalog's measurements, scaled where the cluster file gives its own bandwidths."""
    scale = 1.0 if pool.intra_node_gb_per_s is None else pool.intra_node_gb_per_s / gpu.link_gb_per_s
    network = constants.network_gb_per_s if pool.inter_node_gb_per_s is None else pool.inter_node_gb_per_s
    measured = {row.latency_us for row in gpu.collectives if row.latency_us is not None}
    latency_us = constants.cpu_us if pool.is_cpu else max(measured, default=constants.latency_us)
    return Fabric(
        bus={
            kind: tuple(
                GB * scale * _bus_gb_per_s(gpu, kind, max(ranks, 2), constants)
                for ranks in range(pool.gpus_per_node + 1)
            )
            for kind in Collective
        },
        pair=GB * scale * constants.efficiency * (gpu.pair_gb_per_s or gpu.link_gb_per_s),
        network=GB * constants.efficiency * network,
        latency_s=MICRO * latency_us,
        ring_hop_s=MICRO * constants.cpu_hop_us if pool.is_cpu else 0.0,
        pair_latency_s=MICRO * (constants.cpu_us if pool.is_cpu else constants.pair_us),
        hop_s=MICRO * constants.hop_us,
        ramp_inside_s=MICRO * constants.ramp_inside_us,
        ramp_between_s=MICRO * constants.ramp_between_us,
        factors=pool.calibration or NEUTRAL,
    )


def _bus_gb_per_s(gpu: Gpu, collective: Collective, ranks: int, constants: LinkConstants) -> float:
    """Measured with that many ranks or the next more; where nothing was measured, a share of the link."""
    if gpu.collectives:
        row = next((row for row in gpu.collectives if row.gpus >= ranks), gpu.collectives[-1])
        return _measured(row, collective)
    if gpu.link == "pcie":  # all devices share the host's bridges
        return constants.efficiency * gpu.link_gb_per_s * 2 / ranks
    mesh = gpu.link_gb_per_s if gpu.pair_gb_per_s is None else min(gpu.link_gb_per_s, gpu.pair_gb_per_s * (ranks - 1))
    return constants.efficiency * mesh


def _measured(row: BusBandwidth, collective: Collective) -> float:
    by_kind = {
        Collective.ALL_REDUCE: row.all_reduce_gb_per_s,
        Collective.ALL_GATHER: row.all_gather_gb_per_s,
        Collective.REDUCE_SCATTER: row.reduce_scatter_gb_per_s,
    }
    return by_kind[collective] or row.all_reduce_gb_per_s

"""Collectives: traffic factors, links, and that nothing gets faster by a slower link."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import pool, slurm

from kd_launch.catalog import find_gpu
from kd_launch.cost.collectives import Collective, Group, fabric_of
from kd_launch.cost.constants import load_constants

GIB4 = 4 * 2**30


def fabric(**changes):
    described = slurm(pool(**changes)).pools[0]
    return fabric_of(described, find_gpu(described.gpu), load_constants().links)


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_traffic_is_that_of_nccl_tests(ranks):
    assert Collective.ALL_REDUCE.traffic(ranks) == 2 * (ranks - 1) / ranks
    assert Collective.ALL_GATHER.traffic(ranks) == (ranks - 1) / ranks
    assert Collective.REDUCE_SCATTER.traffic(ranks) == (ranks - 1) / ranks


def test_one_rank_alone_waits_for_nobody():
    assert fabric().seconds(Collective.ALL_REDUCE, GIB4, Group(1, 1)) == 0


def test_large_all_reduce_in_a_node_reaches_the_measured_bus_bandwidth():
    seconds = fabric().seconds(Collective.ALL_REDUCE, GIB4, Group(8, 8))
    assert seconds == pytest.approx(2 * 7 / 8 * GIB4 / 445e9, rel=0.01)


def test_between_nodes_the_network_is_the_narrow_place():
    seconds = fabric(inter_node_gb_per_s=200.0).seconds(Collective.ALL_GATHER, GIB4, Group(32, 8))
    assert seconds == pytest.approx(31 / 32 * GIB4 / (0.75 * 200e9), rel=0.02)


def test_all_reduce_over_four_b200_nodes_is_near_the_published_time():
    # 22.05 ms for 4 GiB over EFA with 400 Gb/s per GPU (ml-engineering, network/README.md)
    seconds = fabric(gpu="B200-SXM-180", inter_node_gb_per_s=400.0).seconds(Collective.ALL_REDUCE, GIB4, Group(32, 8))
    assert seconds == pytest.approx(22.05e-3, rel=0.3)


def test_groups_of_a_node_share_its_adapters():
    one, eight = (fabric().seconds(Collective.ALL_REDUCE, GIB4, Group(4, 1, peers=n)) for n in (1, 8))
    assert eight == pytest.approx(8 * one, rel=0.02)


def test_given_bandwidth_inside_a_node_scales_the_measured_one():
    half = fabric(intra_node_gb_per_s=225.0)
    assert half.bus[Collective.ALL_REDUCE][8] == pytest.approx(445e9 / 2)


def test_shared_host_bridges_get_narrower_with_every_device():
    bus = fabric(gpu="A10G-24").bus[Collective.ALL_GATHER]
    assert bus[8] < bus[4] < bus[2]


def test_mesh_gives_a_pair_its_own_link_only():
    bus = fabric(gpu="MI210-64").bus[Collective.ALL_REDUCE]
    assert bus[2] == pytest.approx(0.75 * 50e9)
    assert bus[4] == pytest.approx(0.75 * 150e9)


@settings(deadline=None)
@given(
    size=st.floats(1e3, 1e11),
    nodes=st.integers(1, 64),
    slow=st.floats(1, 400),
    gain=st.floats(1, 10),
    kind=st.sampled_from(list(Collective)),
)
def test_faster_links_are_never_slower(size, nodes, slow, gain, kind):
    group = Group(8 * nodes, 8)
    before = fabric(inter_node_gb_per_s=slow, intra_node_gb_per_s=slow)
    after = fabric(inter_node_gb_per_s=slow * gain, intra_node_gb_per_s=slow * gain)
    assert after.seconds(kind, size, group) <= before.seconds(kind, size, group)


def test_a_ring_of_processes_on_cpu_cores_wakes_one_after_the_other():
    ring = fabric(gpu="CPU", gpus_per_node=4, cpus_per_node=4)
    two, four = (ring.seconds(Collective.ALL_REDUCE, 8, Group(ranks, ranks)) for ranks in (2, 4))
    assert 0.5e-3 < two < 1.5e-3
    assert 2e-3 < four < 6e-3

"""Enumeration: shares, allocations, degrees and launch rules."""

import pytest
from plan_cases import LLAMA_70B, local, model, pool, slurm, spec_of

from kd_launch.planner.allocations import allocations
from kd_launch.planner.layouts import (
    Share,
    divisors,
    filled_shares,
    micro_batches,
    student_degrees,
    teacher_degrees,
    whole_share,
)

MIXED = slurm(pool("a100", gpu="A100-SXM-80"), pool("h100"))


def of(cluster, **pins):
    return list(allocations(spec_of(**pins), cluster))


def disjoint(cluster, **pins):
    return [it for it in of(cluster, **pins) if it.placement == "disjoint"]


@pytest.mark.parametrize(("number", "expected"), [(1, (1,)), (36, (1, 2, 3, 4, 6, 9, 12, 18, 36)), (13, (1, 13))])
def test_divisors(number, expected):
    assert divisors(number) == expected


def test_divisors_of_large_numbers_come_at_once():
    assert len(divisors(2**31)) == 32


def test_micro_batches_divide_the_student_share_up_to_64():
    assert micro_batches(spec_of(batch=256), 2) == (1, 2, 4, 8, 16, 32, 64)
    assert micro_batches(spec_of(batch=24), 8) == (1, 3)
    assert micro_batches(spec_of(training={"micro_batch_size": 4}), 8) == (4,)
    assert micro_batches(spec_of(training={"micro_batch_size": 4}), 128) == ()


def test_ranks_fill_node_after_node():
    h100 = slurm(pool()).pools[0]
    assert filled_shares(h100, 5, 3) == (Share("h100", 1, 5, 5, 5), Share("h100", 1, 3, 3, 3))
    # 12 + 12 on three nodes: 8, then 4 and 4, then 8
    assert filled_shares(h100, 12, 12) == (Share("h100", 2, 8, 12, 8), Share("h100", 2, 8, 12, 4))


def test_teacher_degrees_are_exhaustive_over_one_node():
    found = set(teacher_degrees(spec_of(), LLAMA_70B, whole_share("h100", 1, 4)))
    assert found == {
        (fsdp, tp, pp) for fsdp in (1, 2, 4) for tp in (1, 2, 4) for pp in (1, 2, 4) if 4 % (fsdp * tp * pp) == 0
    }


def test_tp_stays_in_a_node_and_divides_key_value_heads():
    tps = {degrees.tp for degrees in teacher_degrees(spec_of(), LLAMA_70B, whole_share("h100", 4, 8))}
    assert tps == {1, 2, 4, 8}
    tps = {degrees.tp for degrees in teacher_degrees(spec_of(), LLAMA_70B, whole_share("h100", 4, 6))}
    assert tps == {1, 2}  # 3 and 6 do not divide 8 key-value heads


def test_models_without_a_plan_have_no_tp():
    degrees = teacher_degrees(spec_of(), model("openai-community/gpt2"), whole_share("h100", 1, 4))
    assert {it.tp for it in degrees} == {1}


def test_pipeline_has_no_more_stages_than_layers():
    gpt2 = model("openai-community/gpt2")
    assert max(it.pp for it in teacher_degrees(spec_of(), gpt2, whole_share("h100", 8, 8))) <= gpt2.layers


def test_reshard_and_recompute_only_where_they_mean_something():
    found = student_degrees(spec_of(), whole_share("h100", 1, 2))
    assert {it.head_shards for it in found} == {1}, "what else there is, follows from the memory"
    assert sorted((it[:4] for it in found), key=str) == sorted(
        [
            *((2, 1, recompute, None) for recompute in (False, True)),
            *((1, 2, recompute, reshard) for recompute in (False, True) for reshard in (False, True)),
        ],
        key=str,
    )
    pinned = spec_of(student={"reshard_after_forward": True, "activation_recompute": "full"})
    assert {it[2:4] for it in student_degrees(pinned, whole_share("h100", 1, 2))} == {(True, None), (True, True)}


def test_local_cluster_takes_any_counts():
    found = disjoint(local(4))
    assert {(it.teacher.gpus, it.student.gpus) for it in found} == {(3, 1), (2, 1), (1, 1), (2, 2), (1, 2)}
    assert all(it.shares_nodes and it.launch is None and it.nodes == 1 for it in found)
    assert {it.student.gpus for it in of(local(4)) if it.placement == "colocated"} == {1, 2, 4}


def test_whole_nodes_and_splits_of_a_node():
    found = disjoint(slurm(pool(nodes=2)))
    apart = [it for it in found if not it.shares_nodes]
    assert [(it.teacher.gpus, it.student.gpus, it.nodes) for it in apart] == [(8, 8, 2)]
    inside = {(it.teacher.gpus, it.student.gpus) for it in found if it.nodes == 1}
    assert inside == {(t, s) for s in (1, 2, 4) for t in range(1, 9 - s)}
    # across two nodes the teacher fills the first and goes on in the second, in parts that tp can use
    across = {(it.teacher.gpus, it.student.gpus) for it in found if it.shares_nodes and it.nodes == 2}
    assert across == {(15, 1), (14, 1), (12, 1), (14, 2), (12, 2), (12, 4)}


def test_student_gpus_divide_the_global_batch():
    assert all(12 % it.student.gpus == 0 for it in of(slurm(pool()), batch=12))
    assert max(it.student.gpus for it in of(slurm(pool()), batch=12)) == 12  # 6 of 8 on two nodes


@pytest.mark.parametrize("counts", [(3, 2), (8, 8), (12, 4)])
def test_pinned_counts_are_kept(counts):
    found = disjoint(slurm(pool(nodes=3)), teacher={"gpus": counts[0]}, student={"gpus": counts[1]})
    assert found
    assert {(it.teacher.gpus, it.student.gpus) for it in found} == {counts}


def test_different_pins_are_never_colocated():
    assert all(it.placement == "disjoint" for it in of(slurm(pool()), teacher={"gpus": 4}, student={"gpus": 2}))


def test_pinned_tp_lies_in_one_node():
    pins = {"parallelism": {"replicas": 3, "tp": 4}}
    assert all(it.teacher.block % 4 == 0 for it in of(slurm(pool(nodes=4)), batch=12, teacher=pins))


def test_max_nodes_counts_both_roles():
    assert max(it.nodes for it in of(slurm(pool(nodes=8)), max_nodes=3)) == 3
    assert max(it.nodes for it in of(MIXED, max_nodes=3)) == 3


def test_pools_may_differ_by_role():
    found = {(it.teacher.pool, it.student.pool) for it in disjoint(MIXED)}
    assert found == {("a100", "a100"), ("a100", "h100"), ("h100", "a100"), ("h100", "h100")}
    pinned = {(it.teacher.pool, it.student.pool) for it in disjoint(MIXED, teacher={"pool": "a100"})}
    assert pinned == {("a100", "a100"), ("a100", "h100")}


def launches(cluster, shared, **pins):
    return {it.launch for it in disjoint(cluster, **pins) if it.shares_nodes == shared}


@pytest.mark.parametrize(
    ("hetjobs", "steps", "launch"),
    [(True, True, "hetjob"), (True, False, "two_steps"), (False, True, "hetstep"), (False, False, "ranks")],
)
def test_launch_rule_of_one_pool(hetjobs, steps, launch):
    cluster = slurm(pool(), hetjobs=hetjobs, hetjob_steps=steps)
    assert launches(cluster, shared=False) == {launch}
    assert launches(cluster, shared=True) == {"ranks"}
    assert {it.launch for it in of(cluster) if it.placement == "colocated"} == {"ranks"}


def test_two_pools_need_het_jobs():
    cluster = slurm(*(it.model_dump() for it in MIXED.pools), hetjobs=False)
    assert {(it.teacher.pool, it.student.pool) for it in disjoint(cluster)} == {("a100", "a100"), ("h100", "h100")}
    assert of(cluster, teacher={"pool": "a100"}, student={"pool": "h100"}) == []


@pytest.mark.parametrize("launch", ["hetjob", "hetstep", "two_steps"])
def test_pinned_launch_of_two_parts_never_shares_a_node(launch):
    found = of(slurm(pool()), launch=launch)
    assert found
    assert all(not it.shares_nodes and it.placement == "disjoint" and it.launch == launch for it in found)


@pytest.mark.parametrize("launch", ["hetstep", "ranks"])
def test_pinned_launch_of_one_job_takes_one_pool(launch):
    assert all(it.teacher.pool == it.student.pool for it in of(MIXED, launch=launch))


def test_one_step_needs_nodes_filled_in_order():
    even = of(slurm(pool(nodes=4)), launch="ranks", teacher={"gpus": 10}, student={"gpus": 4})
    assert {it.shares_nodes for it in even} == {True, False}  # 5, 5 and 4
    uneven = of(slurm(pool(nodes=4)), batch=24, launch="ranks", teacher={"gpus": 4}, student={"gpus": 12})
    assert {it.shares_nodes for it in uneven} == {True}  # 4, 6 and 6 is no filling

"""Ranks that share CPU cores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_cases import TINY_STUDENT, TINY_TEACHER, pool, setting_of, site, slurm, spec_of

from kd_launch.cost.roles import student_fault_seconds
from kd_launch.cost.setting import TeacherDegrees
from kd_launch.planner.crowding import shared_seconds
from kd_launch.planner.search import make_plan

WORKS = st.lists(st.tuples(st.integers(1, 8), st.floats(0, 100)), min_size=1, max_size=3)


def test_of_three_ranks_on_two_cores_the_busiest_keeps_one():
    assert shared_seconds(0.5, (1, 4.0), (2, 1.0)) == 4.0


def test_work_for_more_than_all_cores_takes_longer():
    assert shared_seconds(0.5, (3, 4.0), (1, 1.0)) == pytest.approx(6.5)


def test_two_that_have_a_core_each_do_not_meet():
    assert shared_seconds(0.5, (1, 4.0), (1, 1.0)) == 4.0


def test_gpus_are_shared_by_none():
    assert shared_seconds(0.0, (8, 4.0), (64, 5.0)) == 5.0


@given(crowding=st.floats(0, 1), works=WORKS)
def test_it_takes_no_longer_than_if_nobody_ever_had_a_core_alone(crowding, works):
    seconds = shared_seconds(crowding, *works)
    assert seconds <= 1.001 * max(1.0, crowding * sum(ranks for ranks, _ in works)) * max(work for _, work in works)


@given(crowding=st.floats(0, 1), works=WORKS, more=st.floats(0, 10))
def test_more_work_never_takes_less(crowding, works, more):
    (ranks, work), *others = works
    assert shared_seconds(crowding, (ranks, work + more), *others) >= 0.999 * shared_seconds(crowding, *works)


@pytest.mark.parametrize(("gpu", "costs"), [("CPU", True), ("H100-SXM-80", False)])
def test_a_teacher_that_gathers_slows_the_student_in_its_process_on_cpus_alone(gpu: str, costs: bool) -> None:
    """Such a process keeps no freed memory; see runtime/allocator.py."""
    setting, place = setting_of(TINY_TEACHER, TINY_STUDENT, 128), site(gpu=gpu, gpus_per_node=2)
    whole, gathered = (
        student_fault_seconds(setting, place, TeacherDegrees(fsdp=fsdp, tp=1, pp=1), tokens=512) for fsdp in (1, 2)
    )
    assert whole == 0
    assert (gathered > 0) is costs


def test_nodes_of_their_own_are_no_faster_where_a_node_has_cores_enough() -> None:
    cluster = slurm(pool("cpu", nodes=2, gpu="CPU", gpus_per_node=2, cpus_per_node=4, memory_gib=8.0))
    roles = {role: {"gpus": 1, "dtype": "float32"} for role in ("teacher", "student")}
    spec = spec_of(8, 24, placement="disjoint", **roles)
    assert make_plan(spec, cluster, TINY_TEACHER, TINY_STUDENT, clock=lambda: 0.0).chosen.shares_nodes

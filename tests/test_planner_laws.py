"""Laws of the search, whatever the numbers: what holds of every layout, not of the best alone."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_cases import LLAMA_8B, QWEN_1_7B, QWEN_14B, pool, slurm, spec_of

from kd_launch.errors import DoesNotFitError
from kd_launch.planner.allocations import allocations
from kd_launch.planner.options import SAME
from kd_launch.planner.pairing import choices_on
from kd_launch.planner.search import make_plan, setting_of, sites_of
from kd_launch.planner.tables import Tables

PLACEMENTS = ("colocated", "disjoint")
PAIRS = st.sampled_from([(QWEN_14B, QWEN_1_7B), (LLAMA_8B, QWEN_1_7B), (QWEN_14B, LLAMA_8B)])


def chosen_within(tables, cluster):
    """Of each allocation and micro-batch the best of each way to split the teacher: key -> choice."""
    found = {}
    for allocation in allocations(tables.spec, cluster):
        for choice in choices_on(tables, cluster, allocation):
            key = (allocation, choice.unit, choice.kind)
            if key not in found or choice.seconds < found[key].seconds:
                found[key] = choice
    return found


def tables_for(spec, cluster, teacher, student, **site):
    sites = {name: replace(it, **site) for name, it in sites_of(spec, cluster).items()}
    return Tables(spec, setting_of(spec, teacher, student), sites)


@settings(max_examples=20, deadline=None)
@given(pair=PAIRS, less=st.floats(8, 80), more=st.floats(1, 3), batch=st.sampled_from([4, 12]))
def test_more_memory_never_makes_a_fitting_layout_unfit(pair, less, more, batch):
    cluster = slurm(pool(nodes=2, gpus_per_node=4))
    spec = spec_of(batch, 2048)
    before = chosen_within(tables_for(spec, cluster, *pair, memory_limit_gib=less), cluster)
    after = chosen_within(tables_for(spec, cluster, *pair, memory_limit_gib=less * more), cluster)
    for key, choice in before.items():
        assert key in after
        assert after[key].seconds <= SAME * choice.seconds


@settings(max_examples=20, deadline=None)
@given(pair=PAIRS, slow=st.floats(1, 400), gain=st.floats(1, 20), inside=st.floats(20, 900))
def test_a_faster_link_never_slows_a_layout(pair, slow, gain, inside):
    spec = spec_of(12, 2048)
    slower, faster = (
        slurm(pool(nodes=2, gpus_per_node=4, inter_node_gb_per_s=slow * g, intra_node_gb_per_s=inside * g))
        for g in (1.0, gain)
    )
    before = chosen_within(tables_for(spec, slower, *pair), slower)
    after = chosen_within(tables_for(spec, faster, *pair), faster)
    assert before.keys() == after.keys()
    assert all(after[key].seconds <= SAME * choice.seconds for key, choice in before.items())


def free_world(spec, cluster, teacher, student):
    """Nothing is paid for communication, and there is room for everything."""
    links = {"pair": 1e30, "network": 1e30, "latency_s": 0.0, "pair_latency_s": 0.0, "hop_s": 0.0}
    links |= {"ramp_inside_s": 0.0, "ramp_between_s": 0.0}
    tables = tables_for(spec, cluster, teacher, student, memory_limit_gib=1e9)
    for name, site in tables.sites.items():
        bus = {kind: tuple(1e30 for _ in speeds) for kind, speeds in site.fabric.bus.items()}
        tables.sites[name] = replace(site, fabric=replace(site.fabric, bus=bus, **links))
    return tables


@settings(max_examples=20, deadline=None)
@given(pair=PAIRS, nodes=st.integers(1, 3), per_node=st.sampled_from([2, 4]), length=st.sampled_from([512, 4096]))
def test_colocated_never_loses_where_communication_memory_and_rounding_are_free(pair, nodes, per_node, length):
    # the batch divides over any number of GPUs, so that nobody is left without work in a last turn
    cluster = slurm(pool(nodes=nodes, gpus_per_node=per_node))
    spec = spec_of(27720, length, training={"micro_batch_size": 1})
    found = chosen_within(free_world(spec, cluster, *pair), cluster)
    steps = {kind: [it.seconds for key, it in found.items() if key[0].placement == kind] for kind in PLACEMENTS}
    assert min(steps["colocated"]) <= SAME * min(steps["disjoint"])


@settings(max_examples=10, deadline=None)
@given(pair=PAIRS, nodes=st.integers(1, 4), batch=st.sampled_from([8, 24, 60]), network=st.floats(5, 400))
def test_the_same_question_has_the_same_answer(pair, nodes, batch, network):
    cluster = slurm(pool(nodes=nodes, gpus_per_node=4, inter_node_gb_per_s=network))
    answers = []
    for _ in range(2):
        try:
            answers.append(make_plan(spec_of(batch, 2048), cluster, *pair, clock=lambda: 0.0))
        except DoesNotFitError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


@settings(max_examples=10, deadline=None)
@given(nodes=st.integers(2, 6), objective=st.sampled_from(["throughput", "gpu_hours"]))
def test_the_front_is_beaten_by_no_candidate(nodes, objective):
    plan = make_plan(
        spec_of(48, 2048, objective=objective),
        slurm(pool(nodes=nodes, gpus_per_node=4)),
        QWEN_14B,
        QWEN_1_7B,
        clock=lambda: 0.0,
    )
    assume(len(plan.pareto) > 1)
    for layout in plan.candidates:
        for other in plan.pareto:
            is_faster = layout.step_seconds.p50 < (1 - 1e-9) * other.step_seconds.p50
            assert not (is_faster and layout.gpu_hours < (1 - 1e-9) * other.gpu_hours)
    assert plan.knee.layout in plan.pareto
    assert plan.pareto[0].step_seconds.p50 == pytest.approx(min(it.step_seconds.p50 for it in plan.pareto))

"""The search against brute force: every split of both models on every allocation, straight from the cost formulas."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import LLAMA_8B, QWEN_1_7B, QWEN_14B, local, pool, slurm, spec_of, tiny

from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import student_buffer_bytes, student_memory, teacher_buffer_bytes, teacher_memory
from kd_launch.cost.roles import columns_seconds, student_seconds, teacher_seconds
from kd_launch.errors import DoesNotFitError
from kd_launch.planner.allocations import allocations
from kd_launch.planner.layouts import student_degrees, teacher_degrees
from kd_launch.planner.options import SAME, TeacherOption
from kd_launch.planner.pairing import allocated_gpus, coupling_seconds, transport_of, units_of
from kd_launch.planner.search import make_plan, setting_of, sites_of
from kd_launch.planner.tables import Tables


def gib(parts):
    return sum(parts.values()) / GIB


def every_layout(spec, cluster, teacher, student):
    """(placement, step seconds, GPU seconds) of all that fits."""
    tables = Tables(spec, setting_of(spec, teacher, student), sites_of(spec, cluster))
    found = []
    for allocation in allocations(spec, cluster):
        allocated = allocated_gpus(cluster, allocation)
        for unit in units_of(tables, allocation.student.gpus):
            for seconds in of_unit(tables, cluster, allocation, unit):
                found.append((allocation.placement, seconds, seconds * allocated))
    return found


def of_unit(tables, cluster, allocation, unit):
    setting, tokens, items = tables.setting, tables.tokens(unit), tables.items(unit)
    teachers = teacher_degrees(tables.spec, setting.teacher, allocation.teacher)
    students = student_degrees(tables.spec, allocation.student)
    pair = colocated if allocation.placement == "colocated" else disjoint
    turns = items // allocation.student.gpus
    site = tables.sites[allocation.student.pool]
    if allocation.placement == "disjoint" and unit.payload == "hidden_states":
        students += tuple(way._replace(head_shards=way.fsdp) for way in students if way.fsdp > 1)
    trained = {
        way: student_seconds(setting, site, way, allocation.student.block, tokens, turns, unit.payload).total
        for way in students
    }
    for split, way in itertools.product(teachers, students):
        seconds = pair(tables, cluster, allocation, unit, split, way, trained[way])
        if seconds is not None:
            yield seconds


def colocated(tables, _cluster, allocation, unit, split, way, trained):
    setting, share, tokens = tables.setting, allocation.student, tables.tokens(unit)
    site = tables.sites[share.pool]
    frozen = teacher_memory(setting, split, tokens)
    trains = student_memory(setting, site, way, tokens, unit.payload, holds_head=split.gpus > 1)
    used = gib(frozen.resident) + gib(trains.resident) + max(gib(frozen.transient), gib(trains.transient))
    used += student_buffer_bytes(setting, tokens, unit.payload) / GIB + site.context_gib
    if used > site.memory_limit_gib:
        return None
    forward = teacher_seconds(setting, site, split, share.block, tokens, unit.payload)
    each = forward.each + columns_seconds(setting, site, split, share.block, tokens, unit.payload)
    return tables.items(unit) // share.gpus * (split.sender_gpus * each + forward.fill) + trained


def disjoint(tables, cluster, allocation, unit, split, way, trained):
    setting, tokens, items = tables.setting, tables.tokens(unit), tables.items(unit)
    share, other = allocation.teacher, allocation.student
    site, students_site = tables.sites[share.pool], tables.sites[other.pool]
    frozen = teacher_memory(setting, split, tokens)
    trains = student_memory(setting, students_site, way, tokens, unit.payload, holds_head=True)
    ahead = teacher_buffer_bytes(setting, split, tokens, unit.payload) / GIB
    arrives = student_buffer_bytes(setting, tokens, unit.payload) / GIB
    if frozen.total / GIB + ahead + site.context_gib > site.memory_limit_gib:
        return None
    if trains.total / GIB + arrives + students_site.context_gib > students_site.memory_limit_gib:
        return None
    each = teacher_seconds(setting, site, split, share.block, tokens, unit.payload).each
    teaches = math.ceil(items / (share.gpus // split.sender_gpus)) * each
    transport = transport_of(tables, cluster, allocation, unit, TeacherOption(teaches, 0, 0, 0, split))
    return max(teaches, trained, transport) + coupling_seconds(tables, other, unit)


def check(spec, cluster, teacher, student):
    """The choice, the front and the best of each placement are what brute force finds, within the model's grain."""
    found = every_layout(spec, cluster, teacher, student)
    try:
        plan = make_plan(spec, cluster, teacher, student, clock=lambda: 0.0)
    except DoesNotFitError:
        assert not found
        return
    value = 2 if spec.objective == "gpu_hours" else 1
    hours = spec.training.steps / 3600

    def of(layout):
        return layout.step_seconds.p50 if value == 1 else layout.gpu_hours / hours

    best = plan.candidates[0]
    assert of(best) <= SAME * SAME * min(row[value] for row in found)
    for placement in {row[0] for row in found}:
        kept = [of(layout) for layout in plan.candidates if layout.placement == placement]
        assert min(kept) <= SAME * SAME * min(row[value] for row in found if row[0] == placement)
    front = [(layout.step_seconds.p50, layout.gpu_hours / hours) for layout in plan.pareto]
    for _, seconds, gpu_seconds in found:
        assert any(
            step <= SAME * SAME * seconds and spent <= SAME * SAME * gpu_seconds * (1 + 1e-9) for step, spent in front
        )


GPUS = ("H100-SXM-80", "A100-SXM-40", "L40S-48", "V100-SXM-32")


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 3),
    per_node=st.sampled_from([2, 3, 4]),
    batch=st.sampled_from([4, 5, 12, 30]),
    gpu=st.sampled_from(GPUS),
    network=st.floats(2.0, 400.0),
    objective=st.sampled_from(["throughput", "gpu_hours"]),
    hetjobs=st.booleans(),
)
def test_search_finds_what_brute_force_finds(nodes, per_node, batch, gpu, network, objective, hetjobs):
    dtype = {"dtype": "float16" if gpu.startswith("V100") else "bfloat16"}
    spec = spec_of(batch, 2048, teacher=dtype, student=dtype, objective=objective)
    of_pool = {"nodes": nodes, "gpus_per_node": per_node, "gpu": gpu, "inter_node_gb_per_s": network}
    check(spec, slurm(pool(**of_pool), hetjobs=hetjobs), QWEN_14B, QWEN_1_7B)


@pytest.mark.parametrize("pins", [{"max_nodes": 2}, {"student": {"gpus": 4}}, {"teacher": {"parallelism": {"tp": 2}}}])
def test_search_keeps_pins_and_finds_the_best(pins):
    cluster = slurm(pool("a100", nodes=2, gpus_per_node=4, gpu="A100-SXM-80"), pool("h100", nodes=1, gpus_per_node=4))
    check(spec_of(12, 1024, **pins), cluster, LLAMA_8B, QWEN_1_7B)


@pytest.mark.parametrize("memory", [1.5, 24.0])
def test_processes_of_this_machine(memory):
    teacher = tiny(
        hidden_size=512, num_hidden_layers=6, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=8
    )
    check(spec_of(12, 128), local(4, memory_gib=4 * memory), teacher, tiny())

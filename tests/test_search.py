"""The planner as a whole: what it chooses, what it keeps, what it says."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import (
    LLAMA_8B,
    LLAMA_70B,
    QWEN_1_7B,
    QWEN_14B,
    local,
    plan_llama,
    plan_qwen,
    plan_tiny,
    pool,
    slurm,
    spec_of,
    tiny,
)

from kd_launch.errors import DoesNotFitError, UnknownNameError
from kd_launch.plan import Plan, unsupported_by_runtime
from kd_launch.planner.allocations import allocations
from kd_launch.planner.layouts import teacher_degrees
from kd_launch.planner.options import SAME, Unit, family
from kd_launch.planner.pairing import choices_on
from kd_launch.planner.pruning import Front
from kd_launch.planner.search import make_plan, setting_of, sites_of
from kd_launch.planner.tables import Tables

H100_16 = slurm(pool(nodes=16))
H100_2 = slurm(pool(nodes=2))
MIXED = slurm(pool("a100", nodes=8, gpu="A100-SXM-80", inter_node_gb_per_s=100.0), pool("h100", nodes=4))


def layouts(plan):
    return [plan.chosen, *plan.candidates, *plan.pareto]


@pytest.fixture(scope="module")
def qwen_2() -> Plan:
    return plan_qwen(H100_2)


@pytest.fixture(scope="module")
def llama_2() -> Plan:
    return plan_llama(H100_2)


# Whether the figures agree with each other


@pytest.mark.parametrize(
    "make",
    [lambda: plan_qwen(H100_2), lambda: plan_llama(MIXED), lambda: plan_tiny(local(4))],
    ids=["h100", "mixed", "cpu"],
)
def test_every_layout_adds_up(make):
    plan = make()
    for layout in layouts(plan):
        teacher, student = layout.teacher, layout.student
        assert teacher.gpus == teacher.replicas * teacher.fsdp * teacher.tp * teacher.pp
        assert student.gpus == student.replicas * student.fsdp
        assert student.micro_batch_size * layout.grad_accumulation_steps * student.gpus == layout.global_batch_size
        assert teacher.micro_batch_size == student.micro_batch_size
        assert layout.gpus == (student.gpus if layout.colocated else teacher.gpus + student.gpus)
        assert layout.tokens_per_second * layout.step_seconds.p50 == pytest.approx(
            plan.chosen.tokens_per_second * plan.chosen.step_seconds.p50
        )
        hours = (layout.gpus + layout.gpus_idle) * layout.step_seconds.p50 * 1000 / 3600
        assert layout.gpu_hours == pytest.approx(hours)
        for role in (teacher, student):
            assert sum(role.memory_parts_gib.values()) == pytest.approx(role.memory_gib)
            assert role.memory_gib <= role.memory_limit_gib


def test_roles_apart_work_at_the_same_time_and_colocated_ones_take_turns(qwen_2):
    for layout in qwen_2.candidates:
        times = layout.teacher_seconds, layout.student_seconds, layout.transport_seconds
        expected = sum(times) if layout.colocated else max(times)
        assert layout.step_seconds.p50 == pytest.approx(expected, rel=0.01)
        assert (layout.transport_seconds == 0) == layout.colocated
        assert layout.prefetch in ((0,) if layout.colocated else (1, 2))


def test_intervals_are_the_priors(qwen_2):
    step = qwen_2.chosen.step_seconds
    assert (step.p10, step.p90) == pytest.approx((0.8 * step.p50, 1.3 * step.p50))


def test_colocated_memory_is_that_of_the_gpu_for_both_roles(qwen_2):
    layout = next(layout for layout in qwen_2.candidates if layout.colocated)
    assert layout.teacher.memory_gib == layout.student.memory_gib
    assert {"teacher weights", "training state", "context"} <= set(layout.student.memory_parts_gib)


def test_reshard_and_recompute_are_said_where_they_mean_something(qwen_2):
    for layout in qwen_2.candidates:
        assert layout.teacher.reshard_after_forward is None
        assert layout.teacher.activation_recompute is None
        assert (layout.student.reshard_after_forward is None) == (layout.student.fsdp == 1)
        assert layout.student.activation_recompute in ("none", "full")


# What is best


def every_choice(spec, cluster, teacher, student):
    """Without leaving out what cannot be the best."""
    tables = Tables(spec, setting_of(spec, teacher, student), sites_of(spec, cluster))
    found = (choices_on(tables, cluster, allocation) for allocation in allocations(spec, cluster))
    return list(itertools.chain.from_iterable(found))


@pytest.mark.parametrize("cluster", [H100_2, slurm(pool(nodes=5)), MIXED], ids=["2", "5", "mixed"])
def test_what_is_left_out_is_not_better(cluster):
    plan = plan_llama(cluster, batch=48)
    found = every_choice(spec_of(48), cluster, LLAMA_70B, LLAMA_8B)
    assert plan.chosen.step_seconds.p50 <= SAME * min(choice.seconds for choice in found)
    front = {(layout.step_seconds.p50, layout.gpu_hours) for layout in plan.pareto}
    for choice in found:
        hours = choice.gpu_seconds * 1000 / 3600
        assert any(step <= SAME * choice.seconds and spent <= SAME * hours for step, spent in front)


def test_more_shards_than_needed_are_not_faster():
    spec = spec_of()
    tables = Tables(spec, setting_of(spec, LLAMA_70B, LLAMA_8B), sites_of(spec, H100_2))
    for allocation in allocations(spec, H100_2):
        if allocation.placement == "disjoint" and allocation.nodes == 2:
            for unit in (Unit(1, "hidden_states"), Unit(4, "logits")):
                _check_least_sharded(tables, allocation.teacher, unit)


def _check_least_sharded(tables, share, unit):
    best = {family(option.degrees): option.seconds for option, _ in tables.teachers_apart(share, unit)}
    for degrees in teacher_degrees(tables.spec, tables.setting.teacher, share):
        option = tables.teacher(share, degrees, unit, colocated=False)
        if option.resident + option.transient + option.buffer <= tables.room(share.pool):
            assert best[family(degrees)] <= option.seconds * 1.0001


def test_front_keeps_what_is_faster_or_cheaper():
    front = Front()
    front.add(2.0, 20.0)
    front.add(1.0, 30.0)
    front.add(3.0, 25.0)  # beaten by the first
    assert front.beats(2.1, 21)
    assert not front.beats(2.1, 19)
    assert front.beats(1.1, 33)
    assert not front.beats(0.9, 1000)
    front.add(1.5, 15.0)
    assert front.beats(1.6, 16)


def test_candidates_are_best_first_and_of_several_kinds(llama_2):
    steps = [layout.step_seconds.p50 for layout in llama_2.candidates]
    assert all(later >= earlier / SAME for earlier, later in itertools.pairwise(steps))
    assert llama_2.candidates[0] == llama_2.chosen
    assert len(llama_2.candidates) == 20
    assert {layout.placement for layout in llama_2.candidates} == {"colocated", "disjoint"}
    assert {layout.teacher.tp > 1 for layout in llama_2.candidates} == {True, False}
    assert {layout.teacher.pp > 1 for layout in llama_2.candidates} == {True, False}


def test_top_limits_the_candidates():
    assert len(plan_qwen(H100_2, top=3).candidates) == 3
    plan = plan_qwen(H100_2, top=1)
    assert plan.candidates == [plan.chosen]


def test_equal_engines_colocate_by_the_margin_of_the_worked_examples():
    # cost-model.md 5.3: 70B into 8B on 16 GPUs takes 24.5 s colocated and 34.1 s split 8 + 8
    plan = plan_llama(H100_2)
    assert plan.chosen.colocated
    assert plan.chosen.step_seconds.p50 == pytest.approx(24.5, rel=0.15)
    split = plan_llama(H100_2, placement="disjoint", teacher={"gpus": 8}, student={"gpus": 8}).chosen
    assert split.step_seconds.p50 == pytest.approx(34.1, rel=0.15)
    assert split.limited_by == "teacher"


def test_ties_take_fewer_gpus():
    # one sequence a step: a second GPU for the student cannot be used
    plan = plan_qwen(H100_2, batch=1)
    assert plan.chosen.student.gpus == 1


def test_gpu_hours_as_the_objective():
    slow_network = slurm(pool(inter_node_gb_per_s=10.0))
    fast, cheap = plan_qwen(slow_network), plan_qwen(slow_network, objective="gpu_hours")
    assert cheap.chosen.gpu_hours < fast.chosen.gpu_hours
    assert cheap.chosen.step_seconds.p50 > fast.chosen.step_seconds.p50
    assert "layout costs 1." in cheap.why


def test_equal_gpu_hours_are_spent_on_more_gpus():
    assert plan_qwen(H100_2, objective="gpu_hours", placement="colocated").chosen.gpus >= 8


def test_pareto_front_trades_time_for_gpu_hours(qwen_2):
    steps = [layout.step_seconds.p50 for layout in qwen_2.pareto]
    hours = [layout.gpu_hours for layout in qwen_2.pareto]
    assert steps == sorted(steps)
    assert hours == sorted(hours, reverse=True)
    assert steps[0] == pytest.approx(qwen_2.chosen.step_seconds.p50, rel=0.005)


def test_recompute_only_where_memory_asks_for_it(qwen_2):
    large = plan_llama(H100_2, training={"micro_batch_size": 16})
    assert qwen_2.chosen.student.activation_recompute == "none"
    assert large.chosen.student.activation_recompute == "full"


def test_pools_of_two_kinds_share_the_work():
    plan = plan_llama(MIXED)
    assert {plan.chosen.teacher.pool, plan.chosen.student.pool} == {"a100", "h100"}
    assert plan.chosen.launch == "hetjob"
    assert plan.why.endswith("Launch: hetjob, one component per role.")


def test_teacher_regimes_change_with_the_micro_batch():
    # cost-model.md 2.9: on NVLink sharded weights win from 1.2-1.6 k tokens
    found = plan_llama(slurm(pool(nodes=2)), placement="colocated").inflections
    assert found
    assert found[-1].above.startswith("fsdp")
    assert "tp" in found[-1].below
    assert 1000 <= found[-1].value <= 2000


def test_small_teachers_have_no_inflection():
    assert plan_tiny(local()).inflections == []


# What the user pins


@pytest.mark.parametrize(
    ("pins", "kept"),
    [
        ({"placement": "disjoint"}, lambda it: not it.colocated),
        ({"placement": "colocated"}, lambda it: it.colocated),
        ({"teacher": {"gpus": 4}}, lambda it: it.teacher.gpus == 4),
        ({"student": {"gpus": 2}}, lambda it: it.student.gpus == 2),
        ({"teacher": {"parallelism": {"tp": 4}}}, lambda it: (it.teacher.tp, it.teacher.gpus) == (4, 4)),
        ({"student": {"parallelism": {"replicas": 2, "fsdp": 4}}}, lambda it: it.student.replicas == 2),
        ({"student": {"activation_recompute": "full"}}, lambda it: it.student.activation_recompute == "full"),
        ({"student": {"reshard_after_forward": False}}, lambda it: it.student.reshard_after_forward is not True),
        ({"training": {"micro_batch_size": 2}}, lambda it: it.student.micro_batch_size == 2),
        ({"distillation": {"payload": "logits"}}, lambda it: it.payload == "logits"),
        ({"distillation": {"payload": "top_k"}}, lambda it: it.payload == "top_k"),
        ({"distillation": {"prefetch": 3}, "placement": "disjoint"}, lambda it: it.prefetch == 3),
        ({"max_nodes": 1}, lambda it: it.nodes == 1),
        ({"launch": "hetstep"}, lambda it: it.launch == "hetstep" and not it.shares_nodes),
        ({"launch": "hetjob"}, lambda it: it.launch == "hetjob" and not it.shares_nodes),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_pins_are_kept(pins, kept):
    plan = plan_qwen(H100_2, **pins)
    assert all(kept(layout) for layout in layouts(plan))


def test_pinned_pool():
    plan = plan_llama(MIXED, teacher={"pool": "a100"}, student={"pool": "h100"})
    assert {(it.teacher.pool, it.student.pool) for it in layouts(plan)} == {("a100", "h100")}


def test_top_k_is_never_chosen_by_itself(qwen_2):
    assert {layout.payload for layout in qwen_2.candidates} <= {"hidden_states", "logits"}


def test_unknown_gpu_names_its_pool():
    with pytest.raises(UnknownNameError, match="pool h100: gpu: unknown GPU 'H1000'"):
        plan_qwen(slurm(pool(gpu="H1000")))


# What it says


def test_why_tells_pace_comparison_and_launch(llama_2):
    assert llama_2.why.startswith("Both roles take turns on the same GPUs: teacher ")
    assert "The best disjoint layout takes 1." in llama_2.why
    assert "a split saves no work" in llama_2.why
    assert "TRL's layout takes 1." in llama_2.why
    assert llama_2.why.endswith("Launch: ranks, one step with both roles on every rank.")


def test_why_of_a_split():
    why = plan_qwen(H100_2, placement="disjoint").why
    assert "sets the pace" in why
    assert "hides" in why
    assert "hetstep often starts sooner" in why
    assert "colocated" not in why  # nobody asked


def test_why_names_the_refusal():
    cluster = slurm(pool(nodes=2), hetjobs=False)
    assert (
        "hetstep, one job with a part per role, since het jobs are refused"
        in plan_qwen(cluster, teacher={"gpus": 8}, student={"gpus": 8}, placement="disjoint").why
    )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"hetjob_steps": False}, "Launch: two_steps, since a step may not span het components here."),
        ({"hetjobs": False, "hetjob_steps": False}, "since het jobs and het steps are refused."),
    ],
)
def test_why_names_the_rule(facts, words):
    split = {"teacher": {"gpus": 8}, "student": {"gpus": 8}, "placement": "disjoint"}
    assert plan_qwen(slurm(pool(nodes=2), **facts), **split).why.endswith(words)


def test_why_of_a_launch_that_the_spec_asks_for():
    why = plan_qwen(H100_2, placement="disjoint", launch="two_steps").why
    assert why.endswith("Launch: two_steps, as the spec asks.")


def test_a_teacher_too_large_for_one_process_is_split():
    small = local(4, memory_gib=4 * 0.55)
    teacher = tiny(
        hidden_size=512, num_hidden_layers=8, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=8
    )
    spec = spec_of(16, 128, teacher={"dtype": "float32"}, student={"dtype": "float32"})
    chosen = make_plan(spec, small, teacher, tiny(), clock=lambda: 0.0).chosen
    assert chosen.teacher.fsdp * chosen.teacher.tp * chosen.teacher.pp > 1
    assert unsupported_by_runtime(chosen) is None


@pytest.mark.parametrize(
    ("cluster", "pins", "words"),
    [
        (slurm(pool(inter_node_gb_per_s=None)), {}, "inter_node_gb_per_s is missing, 25 GB/s per node assumed"),
        (
            slurm(pool(nodes=1)),
            {"batch": 12, "placement": "colocated"},
            "1 x 8 GPUs do not divide the global batch",
        ),
        (slurm(pool(nodes=1, gpu_directive=None)), {"batch": 1}, "allocated GPUs have no rank"),
        (slurm(pool(nodes=1, gpu="MI300X-192")), {}, "figures of MI300X-192 that are estimates"),
        (
            slurm(pool("a100", gpu="A100-SXM-80"), pool("h100"), same_fabric=False),
            {"teacher": {"pool": "a100"}, "student": {"pool": "h100"}},
            "the pools share no fabric",
        ),
        (H100_2, {"placement": "colocated", "distillation": {"prefetch": 3}}, "has no effect on a colocated teacher"),
    ],
)
def test_assumptions_are_said(cluster, pins, words):
    assert any(words in warning for warning in plan_qwen(cluster, **pins).warnings)


def test_nothing_is_said_without_need(qwen_2):
    assert all("missing" not in warning and "idle" not in warning for warning in qwen_2.warnings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_gib": None}, "memory_gib is missing, 4 GiB per process assumed"),
        ({"cpus_per_node": None}, "cpus_per_node is missing, one core per process assumed"),
        ({}, "speeds of CPU cores are an order of magnitude"),
    ],
)
def test_assumptions_about_cpus_are_said(changes, words):
    assert any(words in warning for warning in plan_tiny(local(2, **changes)).warnings)


def test_unknown_heads_send_logits():
    teacher = replace(QWEN_14B, head_is_known=False)
    plan = make_plan(spec_of(), H100_2, teacher, QWEN_1_7B, clock=lambda: 0.0)
    assert {layout.payload for layout in layouts(plan)} == {"logits"}
    # nothing says that its parts can be told apart
    assert all(x.teacher.fsdp * x.teacher.tp * x.teacher.pp == 1 for x in layouts(plan) if x != plan.baseline)
    assert any("head of a 'qwen3' is not known" in warning for warning in plan.warnings)


def test_search_counts_what_it_did(llama_2):
    assert llama_2.search.evaluated > 200
    assert llama_2.search.rejected["the teacher alone exceeds a GPU's memory"] > 0
    assert all(count > 0 for count in llama_2.search.rejected.values())


# The baseline


def test_baseline_is_colocated_on_all_gpus_with_a_float32_copy():
    plan = plan_llama(H100_2)
    baseline = plan.baseline
    assert baseline.colocated
    assert baseline.gpus == 16
    parts = baseline.student.memory_parts_gib
    assert parts["teacher float32 copy"] == pytest.approx(4 * 70_553_706_496 / 16 / 2**30)
    assert parts["loss"] == pytest.approx(52 * 4096 * 128256 / 2**30)
    assert plan.baseline_engine_factor == 2.2


def test_baseline_that_does_not_fit_shows_its_memory():
    plan = plan_llama(slurm(pool(nodes=1)))
    role = plan.baseline.student
    assert "TRL's layout does not fit (" in plan.why
    assert role.memory_gib > role.memory_limit_gib
    assert role.micro_batch_size == 1


def test_baseline_of_the_paper():
    # 8B into 8B at 1024 tokens on 64 GPUs: the float32 copy of a whole teacher is 29.9 GiB, the loss of micro-batch 4
    # needs 27.3 GB
    spec = spec_of(512, 1024)
    plan = make_plan(spec, slurm(pool(nodes=8)), LLAMA_8B, LLAMA_8B, clock=lambda: 0.0)
    baseline = plan.baseline
    parts = baseline.student.memory_parts_gib
    if baseline.teacher.fsdp == 1:
        assert parts["teacher float32 copy"] == pytest.approx(29.9, abs=0.05)
    else:
        assert parts["teacher float32 copy"] == pytest.approx(29.9 / 64, abs=0.01)
    size = baseline.student.micro_batch_size
    assert parts["loss"] * 2**30 == pytest.approx(27.3e9 * size / 4, rel=0.01)
    assert baseline.student.memory_gib <= baseline.student.memory_limit_gib


def test_teacher_of_the_baseline_is_sharded_as_its_student(qwen_2):
    student, teacher = qwen_2.baseline.student, qwen_2.baseline.teacher
    assert teacher.fsdp == (student.fsdp if student.reshard_after_forward else 1)


# The same everywhere


def test_plans_survive_json(llama_2):
    assert Plan.model_validate_json(llama_2.model_dump_json()) == llama_2


def test_same_answer_twice():
    assert plan_llama(MIXED) == plan_llama(MIXED)


@settings(max_examples=25, deadline=None)
@given(gib=st.floats(0.5, 8), more=st.floats(1, 4), batch=st.sampled_from([4, 6, 16]))
def test_more_memory_never_hurts(gib, more, batch):
    try:
        before = plan_tiny(local(2, memory_gib=gib), batch)
    except DoesNotFitError:
        return
    after = plan_tiny(local(2, memory_gib=gib * more), batch)
    assert after.chosen.step_seconds.p50 <= SAME * before.chosen.step_seconds.p50


@settings(max_examples=25, deadline=None)
@given(slow=st.floats(1, 400), gain=st.floats(1, 20), inside=st.floats(10, 900))
def test_faster_links_never_hurt(slow, gain, inside):
    before, after = (
        plan_qwen(slurm(pool(nodes=2, inter_node_gb_per_s=slow * g, intra_node_gb_per_s=inside * g)), batch=32)
        for g in (1.0, gain)
    )
    assert after.chosen.step_seconds.p50 <= SAME * before.chosen.step_seconds.p50


@settings(max_examples=15, deadline=None)
@given(nodes=st.integers(1, 12), batch=st.sampled_from([16, 24, 60, 256]))
def test_more_nodes_never_hurt(nodes, batch):
    before, after = (plan_qwen(slurm(pool(nodes=n)), batch) for n in (nodes, nodes + 1))
    assert after.chosen.step_seconds.p50 <= SAME * before.chosen.step_seconds.p50


def test_a_loss_that_reads_each_logit_often_takes_longer():
    seconds = [plan_tiny(local(), training={"compile": asked}).chosen.step_seconds.p50 for asked in ("auto", False)]
    assert seconds[0] < seconds[1]


def test_a_third_teacher_takes_a_third_of_the_stream_whatever_a_step_holds():
    """Micro-batches go to one teacher after the other: none waits for the end of a step."""
    seconds = {
        teachers: plan_tiny(
            local(4),
            teacher={"gpus": teachers, "parallelism": {"replicas": teachers}},
            student={"gpus": 1},
            placement="disjoint",
            training={"micro_batch_size": 8},
            distillation={"payload": "logits"},
        ).chosen.teacher_seconds
        for teachers in (1, 3)
    }
    assert seconds[3] == pytest.approx(seconds[1] / 3)

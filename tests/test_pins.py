"""Impossible pins: one line each, with the field, the value and what is legal."""

from dataclasses import replace

import pytest
from plan_cases import QWEN_1_7B, QWEN_14B, local, model, pool, slurm, spec_of

from kd_launch.errors import SpecError, UnknownNameError
from kd_launch.planner.pins import check_pins

ONE = slurm(pool(nodes=1, gpus_per_node=4))
TWO_POOLS = slurm(pool("a100", gpu="A100-SXM-80"), pool("h100"))


def message(cluster=ONE, frozen=QWEN_14B, **pins):
    with pytest.raises(SpecError) as caught:
        check_pins(spec_of(**pins), cluster, frozen, QWEN_1_7B)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_nothing_pinned_is_fine():
    check_pins(spec_of(), ONE, QWEN_14B, QWEN_1_7B)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_more_gpus_than_there_are(role):
    text = message(**{role: {"gpus": 7}})
    assert text == f"{role}.gpus: 7 GPUs asked for, but pool h100 has 4 (1 node x 4); set auto, or 4 or less"


def test_parallelism_pins_gpus_too():
    assert message(student={"parallelism": {"replicas": 8}}).startswith("student.parallelism: 8 GPUs asked for")


def test_max_nodes_limits_what_there_is():
    text = message(slurm(pool(nodes=4)), teacher={"gpus": 16}, max_nodes=1)
    assert "pool h100 has 8 (1 node x 8) under max_nodes" in text


def test_both_roles_need_their_own():
    text = message(teacher={"gpus": 3}, student={"gpus": 2})
    assert text.startswith("placement: roles on GPUs of their own need 3 + 2, but pool h100 has 4")
    assert "need 4 + 1, but pool h100 has 4" in message(placement="disjoint", teacher={"gpus": 4})


def test_unknown_pool():
    with pytest.raises(UnknownNameError, match=r"teacher.pool: 'h10' is no pool.*pools: h100; did you mean 'h100'"):
        check_pins(spec_of(teacher={"pool": "h10"}), ONE, QWEN_14B, QWEN_1_7B)


@pytest.mark.parametrize("tp", [3, 16])
def test_tp_divides_key_value_heads(tp):
    text = message(slurm(pool(nodes=4)), teacher={"parallelism": {"tp": tp}})
    assert text.startswith(f"teacher.parallelism.tp: {tp} does not suit a 'qwen3'")
    assert text.endswith("legal: 1, 2, 4, 8")


def test_tp_of_a_model_without_a_plan():
    gpt2 = model("openai-community/gpt2")
    text = message(frozen=gpt2, length=1024, teacher={"parallelism": {"tp": 2}})
    assert text == "teacher.parallelism.tp: 2 does not suit a 'gpt2' (it has no TP plan); legal: 1"


def test_a_model_of_unknown_parts_is_not_split():
    unknown = replace(QWEN_14B, head_is_known=False, model_type="strange")
    text = message(frozen=unknown, teacher={"parallelism": {"fsdp": 2}})
    assert text.startswith("teacher.parallelism: how to split a 'strange' over GPUs is not known to this version")


def test_tp_lies_in_a_node():
    text = message(slurm(pool(nodes=4, gpus_per_node=4)), teacher={"parallelism": {"tp": 8}})
    assert text == "teacher.parallelism.tp: 8 ranks must share a node, which has 4 GPUs"


def test_more_stages_than_layers():
    text = message(slurm(pool(nodes=16)), teacher={"parallelism": {"pp": 64}})
    assert text == "teacher.parallelism.pp: 64 stages, but the teacher has 40 layers"


def test_global_batch_that_student_gpus_do_not_divide():
    text = message(batch=250, student={"gpus": 4})
    assert text.startswith("training.global_batch_size: 250 sequences do not divide over 4 student GPUs")
    assert "248 or 252" in text
    assert "1, 2, 5, 10" in text


def test_colocated_teacher_pins_the_student_too():
    text = message(batch=250, teacher={"gpus": 4}, placement="colocated")
    assert text.startswith("training.global_batch_size: 250")


def test_micro_batch_that_does_not_divide():
    text = message(training={"micro_batch_size": 3})
    assert text.startswith("training.micro_batch_size: 3 does not divide the global batch of 256; legal: 1, 2, 4")


def test_micro_batch_on_pinned_gpus():
    text = message(training={"micro_batch_size": 128}, student={"gpus": 4})
    assert text == "training.micro_batch_size: 128 on 4 student GPUs does not divide the global batch of 256; " + (
        "legal: 1, 2, 4, 8, 16, 32, 64"
    )


def test_sequences_longer_than_the_model():
    text = message(length=131072)
    assert text == "data.sequence_length: 131072 tokens, but the teacher was made for at most 40960; set 40960 or less"


def test_hidden_states_of_an_unknown_head():
    text = message(frozen=replace(QWEN_14B, head_is_known=False), distillation={"payload": "hidden_states"})
    assert text.startswith("distillation.payload: hidden_states needs the head of the teacher")


def test_more_top_k_than_the_vocabulary():
    text = message(distillation={"payload": "top_k", "top_k": 10**6})
    assert text.startswith("distillation.top_k: 1000000 logits, but the vocabulary has 151936")


def test_colocated_in_two_pools():
    text = message(TWO_POOLS, placement="colocated", teacher={"pool": "a100"}, student={"pool": "h100"})
    assert text.startswith("placement: colocated needs one pool for both roles")


def test_colocated_with_different_counts():
    text = message(placement="colocated", teacher={"gpus": 2}, student={"gpus": 4})
    assert text.startswith("placement: colocated gives both roles the same GPUs, but the spec pins 2")


@pytest.mark.parametrize("launch", ["hetjob", "two_steps"])
def test_het_jobs_that_the_site_refuses(launch):
    text = message(slurm(pool(), hetjobs=False), launch=launch)
    assert text.startswith(f"launch: {launch} needs het jobs, which the cluster refuses")


@pytest.mark.parametrize("launch", ["hetjob", "hetstep"])
def test_steps_over_components_that_the_site_refuses(launch):
    text = message(slurm(pool(), hetjob_steps=False), launch=launch)
    assert text.startswith(f"launch: {launch} needs a step of two parts")


def test_parts_of_their_own_are_not_colocated():
    assert message(launch="hetjob", placement="colocated").startswith("launch: hetjob gives roles nodes of their own")


@pytest.mark.parametrize("launch", ["hetstep", "ranks"])
def test_one_job_from_two_pools(launch):
    text = message(TWO_POOLS, launch=launch, teacher={"pool": "a100"}, student={"pool": "h100"})
    assert text.startswith(f"launch: {launch} takes both roles from one pool")


def test_launch_does_not_matter_here():
    check_pins(spec_of(launch="hetjob"), local(), QWEN_14B, QWEN_1_7B)


def test_all_problems_at_once():
    with pytest.raises(SpecError) as caught:
        check_pins(spec_of(length=10**6, teacher={"gpus": 9}), ONE, QWEN_14B, QWEN_1_7B)
    assert len(str(caught.value).splitlines()) == 2

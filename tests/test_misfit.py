"""What is said when nothing fits."""

import re

import pytest
from plan_cases import (
    QWEN_1_7B,
    QWEN_14B,
    TINY_STUDENT,
    TINY_TEACHER,
    local,
    model,
    plan_llama,
    plan_qwen,
    plan_tiny,
    pool,
    slurm,
    spec_of,
)

from kd_launch.errors import DoesNotFitError
from kd_launch.planner.search import make_plan

FOUR = slurm(pool(nodes=1, gpus_per_node=4))
KEPT = {"student": {"activation_recompute": "none"}}
"""Activations are kept: what makes a 70B teacher and an 8B student too large for four GPUs."""


def message(make):
    with pytest.raises(DoesNotFitError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_closest_layout_by_how_much_and_its_largest_part():
    text = message(lambda: plan_llama(FOUR, **KEPT))
    assert text.startswith("nothing fits: the closest layout (")
    needed, over, limit = map(
        float, re.search(r"needs ([\d.]+) GiB .*, ([\d.]+) GiB more than the ([\d.]+)", text).groups()
    )
    assert needed - limit == pytest.approx(over, abs=0.2)
    assert "its largest part is training state, 59.8 GiB" in text
    assert "the student misses" in text


def test_more_nodes_that_would_do_do():
    nodes = int(re.search(r"; (\d+) nodes would do$", message(lambda: plan_llama(FOUR, **KEPT)))[1])
    plan_llama(slurm(pool(nodes=nodes, gpus_per_node=4)), **KEPT)


def test_pin_that_stands_in_the_way():
    pins = {"training": {"micro_batch_size": 16}, **KEPT}
    text = message(lambda: plan_llama(slurm(pool(nodes=2)), **pins))
    assert text.endswith("it would fit without training.micro_batch_size: 16")
    plan_llama(slurm(pool(nodes=2)), **KEPT)


def test_pinned_parallelism_is_shown_as_written():
    text = message(lambda: plan_llama(slurm(pool(nodes=2)), teacher={"parallelism": {"replicas": 8}}))
    assert text.endswith("without teacher.parallelism: {replicas: 8, fsdp: 1, tp: 1, pp: 1}")


def test_shorter_sequences_where_nothing_else_helps():
    spec = spec_of(2, 1024, teacher={"dtype": "float32"}, student={"dtype": "float32"})
    teacher = model("HuggingFaceTB/SmolLM2-135M")  # 0.501 GiB in float32
    small = local(1, memory_gib=1.08)
    text = message(lambda: make_plan(spec, small, teacher, TINY_STUDENT))
    assert "its largest part is teacher weights, 0.501 GiB; data.sequence_length 512 would fit" in text
    shorter = spec_of(2, 512, teacher={"dtype": "float32"}, student={"dtype": "float32"})
    make_plan(shorter, small, teacher, TINY_STUDENT)


def test_no_way_out():
    text = message(lambda: plan_tiny(local(2, memory_gib=0.5)))
    assert text.endswith("; take a smaller teacher or student, or more memory per GPU")
    assert "its largest part is context, 0.450 GiB" in text


def test_hardware_without_the_dtype():
    text = message(lambda: plan_qwen(slurm(pool(gpu="V100-SXM-32"))))
    assert text == "teacher.dtype: V100-SXM-32 cannot compute in bfloat16; set teacher.dtype to float16 or float32"
    spec = spec_of(64, 1024, teacher={"dtype": "float16"}, student={"dtype": "float16"})
    make_plan(spec, slurm(pool(nodes=4, gpu="V100-SXM-32")), QWEN_14B, QWEN_1_7B)


def test_two_pools_without_het_jobs():
    cluster = slurm(pool("a100", gpu="A100-SXM-80"), pool("h100"), hetjobs=False)
    text = message(lambda: plan_qwen(cluster, teacher={"pool": "a100"}, student={"pool": "h100"}))
    assert "need a het job, which the cluster refuses (hetjobs: false); put both roles in one pool" in text


def test_limits_that_leave_no_gpus():
    cluster = slurm(pool("a100", gpu="A100-SXM-80"), pool("h100"))
    text = message(lambda: plan_qwen(cluster, teacher={"pool": "a100"}, student={"pool": "h100"}, max_nodes=1))
    assert text.startswith(
        "no layout is possible: max_nodes 1, a global batch of 256 leave no GPUs for both roles in pool"
    )
    assert text.endswith("; 2 nodes would do")


def test_tiny_models_fit():
    assert TINY_TEACHER.parameters > TINY_STUDENT.parameters
    assert plan_tiny(local(2)).chosen.gpus == 2

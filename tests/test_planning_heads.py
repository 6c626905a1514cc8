"""Where the teacher's head has no room beside a student, the ranks of a shard group hold it together."""

from dataclasses import replace

import pytest
from plan_cases import LLAMA_8B, LLAMA_70B, pool, setting_of, site, slurm, spec_of

from kd_launch.cost.roles import student_seconds
from kd_launch.cost.setting import StudentDegrees
from kd_launch.errors import DoesNotFitError
from kd_launch.planner.search import make_plan

# As large as those of the largest open models: 256,000 tokens x 12,288, 5.9 GiB.
LARGE_HEAD = replace(LLAMA_70B, vocabulary=256_000, hidden=12_288, layers=40)
STUDENT = replace(LLAMA_8B, vocabulary=256_000)


def planned(gpus: int, memory: str, **sections):
    """Teachers on large GPUs, so many small ones for the student, hidden states between them."""
    pools = (pool("teachers", nodes=2, gpu="H200-SXM-141"), pool("students", nodes=1, gpus_per_node=gpus, gpu=memory))
    pinned = {"teacher": {"pool": "teachers"}, "student": {"pool": "students"}, "placement": "disjoint",
              "distillation": {"payload": "hidden_states"}}  # fmt: skip
    spec = spec_of(32, 4096, **(pinned | sections))
    return make_plan(spec, slurm(*pools), LARGE_HEAD, STUDENT, clock=lambda: 0.0)


def test_a_head_that_does_not_fit_is_spread_over_the_shards() -> None:
    plan = planned(8, "A100-SXM-40")
    student = plan.chosen.student
    assert student.head_shards == student.fsdp == 8
    assert student.memory_parts_gib["teacher head"] == pytest.approx(2 * 256_000 * 12_288 / 8 / 2**30)
    assert student.memory_gib <= student.memory_limit_gib
    assert all(layout.student.head_shards == 8 for layout in plan.candidates if layout.student.micro_batch_size == 2)


def test_a_head_that_fits_stays_whole() -> None:
    plan = planned(8, "H100-SXM-80")
    assert {layout.student.head_shards for layout in plan.candidates} == {1}


def test_what_misses_even_with_a_spread_head_is_counted_with_one() -> None:
    with pytest.raises(DoesNotFitError, match=r"student fsdp 4.*the student misses") as raised:
        planned(4, "A100-SXM-40")
    needed = float(str(raised.value).partition("needs ")[2].split()[0])
    assert 50 < needed < 52, "with all of the head it were 54.9"


def test_a_spread_head_costs_what_travels() -> None:
    """Hidden states of all eight and the logits, over an H100 node's links; nothing hides them."""
    setting, place = setting_of(LARGE_HEAD, STUDENT), site()
    degrees = StudentDegrees(1, 8, recompute=False, reshard=True)
    whole, spread = (
        student_seconds(setting, place, degrees._replace(head_shards=shards), 8, 8192, 2, "hidden_states")
        for shards in (1, 8)
    )
    added = spread.communication - whole.communication
    travels = 2 * 8192 * 2 * (256_000 + 8 * 12_288) * 7 / 8
    assert spread._replace(communication=0) == whole._replace(communication=0)
    assert travels / 450e9 < added < travels / 150e9

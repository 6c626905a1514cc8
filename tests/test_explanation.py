"""What plan --explain says of the choice and of any other candidate."""

import re

import pytest
from plan_cases import (
    LLAMA_8B,
    LLAMA_70B,
    QWEN_1_7B,
    QWEN_14B,
    TINY_STUDENT,
    TINY_TEACHER,
    local,
    pool,
    slurm,
    spec_of,
)

from kd_launch.cli.plan_text import format_plan
from kd_launch.cli.wrapping import WIDTH
from kd_launch.errors import SpecError
from kd_launch.planner.distances import FREE
from kd_launch.planner.explanation import explain
from kd_launch.planner.search import make_plan, setting_of, sites_of
from kd_launch.planner.tables import Tables
from kd_launch.planner.terms import COUPLING, CROWDING, case_of, teacher_terms

FLOAT32 = {"teacher": {"dtype": "float32"}, "student": {"dtype": "float32"}}
MIXED = slurm(pool("a100", nodes=8, gpu="A100-SXM-80", inter_node_gb_per_s=None), pool("h100", nodes=4))
CASES = {
    "colocated": (spec_of(), slurm(pool(nodes=2)), LLAMA_70B, LLAMA_8B),
    "apart": (spec_of(placement="disjoint"), slurm(pool(nodes=2)), LLAMA_70B, LLAMA_8B),
    "mixed": (spec_of(), MIXED, LLAMA_70B, LLAMA_8B),
    "slow": (spec_of(), slurm(pool(nodes=16, inter_node_gb_per_s=10.0)), QWEN_14B, QWEN_1_7B),
    "cheap": (spec_of(objective="gpu_hours"), slurm(pool(nodes=4)), QWEN_14B, QWEN_1_7B),
    "local": (spec_of(16, 128, **FLOAT32), local(4), TINY_TEACHER, TINY_STUDENT),
}
OF_BOTH = (COUPLING, CROWDING)  # what the student waits for beside its own work


@pytest.fixture(scope="module", params=CASES)
def case(request):
    given = CASES[request.param]
    return given, make_plan(*given, clock=lambda: 0.0)


def test_terms_add_up_to_the_roles(case):
    given, plan = case
    for number, layout in enumerate(plan.candidates, 1):
        found = explain(*given, plan, number)
        for role, seconds in (("teacher", layout.teacher_seconds), ("student", layout.student_seconds)):
            own = [value for name, value in found.terms.items() if name.startswith(f"{role}: ") and name not in OF_BOTH]
            assert sum(own) == pytest.approx(seconds, rel=1e-6)
        assert all(value > 0 for value in found.terms.values())
        assert found.binding in found.terms


def test_waits_fill_the_step(case):
    given, plan = case
    found = explain(*given, plan)
    step = plan.chosen.step_seconds.p50
    for role, seconds in (("teacher", plan.chosen.teacher_seconds), ("student", plan.chosen.student_seconds)):
        assert found.waits[role] + seconds == pytest.approx(step, rel=0.01)


def test_every_candidate_is_explained_within_the_width(case):
    given, plan = case
    for number in [None, *range(1, len(plan.candidates) + 1)]:
        shown = format_plan(plan.model_copy(update={"explanation": explain(*given, plan, number)}))
        lines = shown.splitlines()
        assert max(map(len, lines)) <= WIDTH
        for name in ("binds", "waits", "why", "placement", "time"):
            assert any(line.startswith(f"  {name} ") for line in lines), name


def explained(name, number=None):
    plan = make_plan(*CASES[name], clock=lambda: 0.0)
    return plan, explain(*CASES[name], plan, number)


def test_the_choice_is_compared_with_the_next_best_and_others_with_the_choice():
    plan, found = explained("colocated")
    assert found.number == plan.candidates.index(plan.chosen) + 1
    assert found.against.startswith("the next best, ")
    worst = len(plan.candidates)
    assert explained("colocated", worst)[1].against.startswith(f"against the choice, {found.number}, it needs ")


def test_what_colocating_wins_is_said_plainly():
    _, found = explained("colocated")
    assert re.match(r"colocating wins, [\d.]+ % more time apart: apart saves no work, ", found.placement)
    assert "the work would divide 16 GPUs into " in found.placement
    _, found = explained("slow")
    assert found.placement.startswith("apart wins, ")
    _, found = explained("apart")
    assert found.placement == "disjoint is pinned, so nothing else was looked at"


def test_distance_to_the_micro_batch_that_makes_a_split_free():
    # one sequence of 512 tokens hides little of the gathers behind its compute
    given = spec_of(512, 512, training={"micro_batch_size": 1}), slurm(pool(nodes=1)), LLAMA_70B, QWEN_1_7B
    plan = make_plan(*given, clock=lambda: 0.0)
    number = next(i for i, it in enumerate(plan.candidates, 1) if it.teacher.fsdp > 1 == it.teacher.tp * it.teacher.pp)
    told = next(words for words in explain(*given, plan, number).distances if "FSDP" in words)
    size = int(re.search(r"micro-batch (\d+) instead of 1 makes it free", told)[1])
    tables = Tables(given[0], setting_of(given[0], *given[2:]), sites_of(given[0], given[1]))
    case = case_of(tables, given[1], plan.candidates[number - 1])

    def added(micro_batch):
        terms = teacher_terms(case.with_size(micro_batch))
        return terms["teacher: gathers of its weights"] / (sum(terms.values()) or 1.0)

    assert added(size) < FREE < added(size // 2) <= added(1)


def test_numbers_beyond_the_candidates_are_refused():
    plan = make_plan(*CASES["local"], clock=lambda: 0.0)
    beyond = len(plan.candidates) + 1
    with pytest.raises(SpecError, match=f"--explain: {beyond} is no candidate; legal: 1 to {len(plan.candidates)}, "):
        explain(*CASES["local"], plan, beyond)


def test_the_long_form_tells_all_that_the_short_one_leaves_out():
    plan, found = explained("colocated")
    text = format_plan(plan.model_copy(update={"explanation": found}))
    assert "p10 " in text
    assert "teacher weights " in text
    assert "TRL's layout, teacher h100 2x8 fsdp 16" in text
    assert "its own engine takes 2.2 times as long" in text
    assert "no layout is both faster and cheaper" in text
    assert "* the knee: " in text
    for reason, count in plan.search.rejected.items():
        assert f"{count}  {reason}" in text
    flat = " ".join(text.split())
    assert all(" ".join(warning.split()) in flat for warning in plan.warnings)
    assert flat.endswith(" ".join(format_plan(plan).splitlines()[-1].split()))

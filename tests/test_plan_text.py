"""The plan as text: its width, its length, what it shows."""

import pytest
from plan_cases import local, plan_llama, plan_qwen, plan_tiny, pool, slurm

from kd_launch.cli.plan_text import MOST_LINES, format_plan, shown_layouts
from kd_launch.cli.wrapping import WIDTH

H100_2 = slurm(pool(nodes=2))
MIXED = slurm(pool("a100", nodes=8, gpu="A100-SXM-80", inter_node_gb_per_s=None), pool("h100", nodes=4))
CASES = {
    "qwen": lambda: plan_qwen(H100_2),
    "llama": lambda: plan_llama(H100_2),
    "large": lambda: plan_llama(slurm(pool(nodes=128)), batch=3072),
    "mixed": lambda: plan_llama(MIXED),
    "local": lambda: plan_tiny(local(4)),
    "local-disjoint": lambda: plan_tiny(local(2), placement="disjoint"),
}


@pytest.fixture(scope="module", params=CASES)
def plan(request):
    return CASES[request.param]()


def test_short_form_fits_a_terminal(plan):
    lines = format_plan(plan).splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH
    assert lines == [line.rstrip() for line in lines]


def test_one_row_is_chosen_and_one_is_trl(plan):
    lines = format_plan(plan).splitlines()
    marked = [line for line in lines if line.startswith("> ")]
    assert len(marked) == 1
    assert plan.chosen.placement in marked[0]
    assert len([line for line in lines if line.lstrip().startswith("TRL ")]) == 1


def test_reason_is_in_three_lines_at_most(plan):
    lines = format_plan(plan).splitlines()
    first = next(i for i, line in enumerate(lines) if line.lstrip().startswith("TRL ")) + 1
    text = " ".join(lines[first:])
    assert text.startswith(plan.why) or lines[first + 2].endswith(" ...")


def axes(teacher):
    return teacher.fsdp, teacher.tp, teacher.pp


def test_shown_layouts_differ_in_kind(plan):
    shown = shown_layouts(plan, 4)
    assert len(shown) <= 4
    assert plan.chosen in shown
    kinds = [
        (it.placement, it.teacher.pool, it.student.pool, *(degree > 1 for degree in axes(it.teacher))) for it in shown
    ]
    assert len(set(kinds)) == len(kinds)
    placements = {layout.placement for layout in plan.candidates}
    assert {layout.placement for layout in shown} == placements


def test_rows_are_best_first(plan):
    shown = shown_layouts(plan, 4)
    places = [plan.candidates.index(layout) for layout in shown]
    assert places == sorted(places)


def test_top_limits_the_rows():
    assert len(shown_layouts(plan_llama(H100_2), 2)) == 2
    lines = format_plan(plan_llama(H100_2), top=1).splitlines()
    assert lines[2].startswith("> 1 ")
    assert lines[3].lstrip().startswith("TRL ")


def test_row_shows_the_layout():
    plan = plan_llama(H100_2, student={"activation_recompute": "full"}, training={"micro_batch_size": 16})
    header, headings, row = format_plan(plan).splitlines()[:3]
    assert header.startswith("case: 256 x 4096 tokens a step; best of ")
    assert header.endswith(" layouts: 2 nodes, 16 ranks")
    columns = "# placement teacher student batch payload step tok/s GiB GPU-h"
    assert headings.split() == columns.split()
    assert row.startswith("> 1 colocated 2x8 ")
    assert "2x8 fsdp 16 recompute" in row or "2x8 f16 rc" in row
    assert "16 x 1" in row
    assert f"{plan.chosen.step_seconds.p50:.1f} s" in row


def test_two_pools_are_named_in_the_rows():
    text = format_plan(plan_llama(MIXED))
    assert "a100 8x8" in text
    assert "h100 4x8" in text


def test_memory_of_both_roles_against_their_limits():
    plan = plan_qwen(H100_2, placement="disjoint")
    row = format_plan(plan).splitlines()[2]
    for role in (plan.chosen.teacher, plan.chosen.student):
        assert f"{role.memory_gib:.0f}/73" in row


def test_small_times_have_small_units():
    plan = plan_tiny(local(2), batch=2, length=16)
    assert " ms " in format_plan(plan).splitlines()[2]


def test_text_is_the_same_whatever_the_clock():
    plan = plan_qwen(H100_2)
    slower = plan.model_copy(update={"search": plan.search.model_copy(update={"seconds": 9.9})})
    assert format_plan(plan) == format_plan(slower)


def test_warnings_beyond_the_room_are_counted():
    plan = plan_qwen(H100_2)
    many = plan.model_copy(update={"warnings": [f"number {i} " + "is long " * 20 for i in range(5)]})
    lines = format_plan(many).splitlines()
    assert len(lines) <= MOST_LINES
    assert lines[-2].endswith(" warnings: --explain)")
    assert lines[-1].startswith("knee of ")

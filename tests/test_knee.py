"""The knee of step time against GPU-hours, and whether its settings take it."""

import re

import pytest
from plan_cases import local, plan_llama, plan_qwen, plan_tiny, pool, slurm

from kd_launch.cli.plan_text import format_plan
from kd_launch.planner.options import SAME

MIXED = slurm(pool("a100", nodes=8, gpu="A100-SXM-80", inter_node_gb_per_s=100.0), pool("h100", nodes=4))
SLOW = slurm(pool(nodes=16, inter_node_gb_per_s=10.0))
ODD = slurm(pool(nodes=4, gpus_per_node=6), pool("a100", nodes=4, gpu="A100-SXM-80"))


def nested(settings):
    """--set arguments as sections of a spec."""
    sections = {}
    for setting in settings:
        name, value = setting.split("=")
        value = int(value) if value.isdigit() else value
        section, _, field = name.partition(".")
        if field:
            sections.setdefault(section, {})[field] = value
        else:
            sections[section] = value
    return sections


@pytest.mark.parametrize(
    ("make", "pins"),
    [
        (lambda **pins: plan_llama(MIXED, **pins), {}),
        (lambda **pins: plan_qwen(SLOW, **pins), {"objective": "gpu_hours"}),
        (lambda **pins: plan_llama(ODD, 48, **pins), {}),
    ],
)
def test_settings_take_the_knee(make, pins):
    knee = make(**pins).knee
    if not knee.settings:
        pytest.fail("the case has its knee where it stands")
    chosen = make(**pins | nested(knee.settings)).chosen
    assert chosen.gpus == knee.layout.gpus
    assert chosen.step_seconds.p50 == pytest.approx(knee.layout.step_seconds.p50, rel=2 * (SAME - 1))


def test_beyond_the_knee_time_costs_more_than_it_is_worth():
    plan = plan_llama(MIXED)
    step, hours = plan.knee.layout.step_seconds.p50, plan.knee.layout.gpu_hours
    assert plan.knee.layout in plan.pareto
    for layout in plan.pareto:
        faster, dearer = step / layout.step_seconds.p50, layout.gpu_hours / hours
        assert faster <= dearer * SAME  # and slower ones save less than they lose


def test_the_last_line_names_the_knee_and_what_takes_it():
    plan = plan_llama(MIXED)
    last = format_plan(plan).splitlines()[-1]
    named = " ".join(f"--set {setting}" for setting in plan.knee.settings)
    gpus = plan.knee.layout.gpus
    assert named
    assert re.fullmatch(
        rf"knee of time and GPU-hours: {gpus} GPUs take 1\.\d\dx the time for 0\.\d\dx the GPU-hours: {named}", last
    )


def test_the_last_line_where_the_choice_is_the_knee():
    assert format_plan(plan_qwen(slurm(pool(nodes=16)))).splitlines()[-1].startswith(
        "knee of time and GPU-hours: this layout; 80 GPUs take "
    )  # fmt: skip
    assert plan_tiny(local(1)).knee.settings == []
    assert format_plan(plan_tiny(local(1))).endswith(": this layout, the fastest and the cheapest\n")

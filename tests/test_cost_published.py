"""The cost model against published measurements, as benchmarks/validate_cost_model.py holds it, and against papers."""

import csv
import sys
from pathlib import Path

import pytest

from kd_launch.catalog import find_gpu
from kd_launch.estimate.train import estimate_training

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CSV = BENCHMARKS / "data" / "published_measurements.csv"
sys.path.insert(0, str(BENCHMARKS))

from cost_model import parts, rows, scores  # noqa: E402


@pytest.fixture(scope="module")
def scored():
    cases, skipped = rows.read(CSV)
    assert len(cases) + sum(skipped.values()) == 656
    found = []
    for case in cases:
        if case.kind in ("step", "memory"):
            estimate = estimate_training(case.request)
            predicted = estimate.step_seconds.p50 if case.kind == "step" else estimate.memory_gib
            found.append(scores.Scored(case, estimate, predicted))
    return found


@pytest.fixture(scope="module")
def dense(scored):
    return [one for one in scored if one.case.kind == "step" and one.case.dense]


def test_dense_steps_are_within_12_percent_and_each_source_within_15(dense):
    assert len(dense) == 360
    assert scores.summary(dense).mean <= 12
    by_source = scores.grouped(dense, lambda one: one.case.source)
    many = {source: scores.summary(found).mean for source, found in by_source.items() if len(found) >= 8}
    assert len(many) == 8
    assert [source for source, error in many.items() if error > 15] == []


def test_four_of_five_steps_lie_between_p10_and_p90(dense):
    assert 72 <= scores.summary(dense).inside <= 88


def test_memory_is_within_10_percent(scored):
    memory = [one for one in scored if one.case.kind == "memory"]
    assert len(memory) == 23
    assert scores.summary(memory).mean <= 10


def test_what_rows_leave_open_is_their_engines_default(scored):
    pipelines = {(one.case.source.split()[0], one.case.request.interleave) for one in scored if one.case.request.pp > 1}
    assert ("vTrain", 1) in pipelines  # it says so
    assert ("MT-NLG", 1) in pipelines  # of before flash attention
    assert ("Llama-3.1-405B", 3) in pipelines  # 126 layers on 16 stages, in pieces of two or three
    fused = {one.case.source for one in scored if one.case.request.loss == "fused"}
    assert any("llm-foundry" in source for source in fused)
    assert not any("Megatron" in source for source in fused)
    assert {one.case.request.engine for one in scored if "Megatron" in one.case.source} == {"megatron"}


def test_layouts_that_ran_fit(scored):
    out = [one for one in scored if not one.estimate.fits and one.case.states_recompute]
    assert len(scored) == 425
    assert len(out) <= 5  # three of Llama-3.1-405B, whose engine keeps less than any formula here, and two by 1 %


def test_layouts_are_ranked_as_measured(dense):
    found = scores.rankings(dense, lambda one: one.case.group)
    regrets = sorted(one.regret for one in found)
    assert len(found) == 21
    assert sum(regrets) / len(regrets) < 1
    assert sum(regret > 3 for regret in regrets) <= 2  # both in vTrain, where launching kernels binds


def test_activations_are_the_papers_to_all_digits():
    found = parts.activations(CSV)
    assert len(found) == 8
    assert [one.name for one in found if one.predicted != pytest.approx(one.measured, rel=1e-9)] == []


def test_losses_of_distillation_are_within_15_percent_of_the_measured_peaks():
    found = parts.losses(CSV)
    assert len(found) == 36
    assert [one.name for one in found if abs(one.error) > 0.15] == []


def test_every_spelling_of_the_measurements_is_a_gpu():
    with CSV.open(newline="", encoding="utf-8") as file:
        spellings = {row["gpu"] for row in csv.DictReader(file)} - {"not stated"}
    assert len(spellings) == 15
    assert all(find_gpu(spelling) for spelling in spellings)

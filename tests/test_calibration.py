"""Calibration: the shrinkage, the file, which pools it holds for, and what plan makes of it."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_cases import TINY_STUDENT, TINY_TEACHER, local, spec_of

from kd_launch.calibration.applied import apply
from kd_launch.calibration.file import Calibration, path_beside, read, write
from kd_launch.calibration.fit import fit
from kd_launch.calibration.predicted import Uncalibrated
from kd_launch.calibration.probing import as_probe, layout_of_probe, order_for
from kd_launch.calibration.shrinkage import CPU_PRIOR, GPU_PRIOR, shrunk
from kd_launch.cli.plan_text import format_plan
from kd_launch.cluster import Factors
from kd_launch.errors import SpecError
from kd_launch.planner.explanation import explain
from kd_launch.planner.search import make_plan
from kd_launch.preparation import Source, load_inputs
from kd_launch.probe import ProbeOrder, Sample

ORDER = ProbeOrder(
    teacher_layers=2, student_layers=2, sizes=(1, 2), collective_bytes=(4096, 65536), message_bytes=4096, seconds=0.01
)
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@given(st.lists(st.floats(0.05, 20.0), min_size=1, max_size=12), st.sampled_from([GPU_PRIOR, CPU_PRIOR]))
def test_a_factor_lies_between_the_prior_and_what_was_measured(ratios, prior):
    mean = math.fsum(math.log(ratio) for ratio in ratios) / len(ratios)
    found = math.log(shrunk(ratios, prior))
    assert min(0.0, mean) - 1e-9 <= found <= max(0.0, mean) + 1e-9
    # more of the same measurements move it further
    assert abs(math.log(shrunk(ratios * 3, prior))) >= abs(found) - 1e-9


def test_few_samples_move_a_factor_little_and_a_loose_prior_lets_it_go():
    assert shrunk([], GPU_PRIOR) == 1.0
    assert shrunk([2.0], GPU_PRIOR) < shrunk([2.0] * 2, GPU_PRIOR) < shrunk([2.0] * 20, GPU_PRIOR) < 2.0
    assert shrunk([2.0], GPU_PRIOR) < shrunk([2.0], CPU_PRIOR)
    assert shrunk([2.0] * 1000, GPU_PRIOR) == pytest.approx(2.0, rel=1e-3)


def samples(model: Uncalibrated, factor: float = 1.0) -> list[Sample]:
    """Every term, as if the hardware took `factor` times as long as the model says."""
    facts = [("teacher", 1, "logits", 1), ("teacher", 2, "hidden_states", 1), ("student", 1, None, 1),
             ("loss", 2, None, 1), ("optimizer", 10**6, None, 1), ("all_reduce", 65536, None, 2),
             ("all_gather", 65536, None, 2), ("reduce_scatter", 65536, None, 2),
             ("tensor_parallel", 65536, None, 2), ("message", 4096, None, 2),
             ("fresh_memory", 65536, None, 1)]  # fmt: skip
    made = []
    for term, size, payload, ranks in facts:
        bare = Sample(
            term=term, pool="here", rank=0, size=size, payload=payload, ranks=ranks, seconds=1.0, repetitions=3
        )
        made.append(bare.model_copy(update={"seconds": factor * model.seconds(bare)}))
    return made


def model() -> Uncalibrated:
    return Uncalibrated.of(spec_of(8, 128), local(2), TINY_TEACHER, TINY_STUDENT, ORDER)


def calibrated(folder: Path, factor: float, **hardware: object) -> Path:
    """A cluster file's path with a calibration beside it."""
    cluster = folder / "cluster.yaml"
    spec = spec_of(8, 128)
    found = fit(samples(model(), factor), model(), local(2).pools, spec, NOW)
    pool = found["here"].model_copy(
        update={"hardware": found["here"].hardware.model_copy(update=hardware)} if hardware else {}
    )
    write(path_beside(cluster), "0.1", {"here": pool})
    return cluster


def test_hardware_as_predicted_gives_factors_of_one():
    pool = fit(samples(model()), model(), local(2).pools, spec_of(8, 128), NOW)["here"]
    assert all(value == pytest.approx(1.0) for value in pool.factors.model_dump().values())
    assert set(pool.terms) == set(Factors.model_fields)


def test_the_file_comes_back_as_it_was_and_keeps_other_pools(tmp_path):
    path = path_beside(calibrated(tmp_path, 1.7))
    assert path.name == "cluster.calibration.json"
    found = read(path)
    assert found is not None
    assert found.pools["here"].factors.teacher == pytest.approx(1.7, rel=0.05)
    write(path, "0.2", {"other": found.pools["here"]})
    again = read(path)
    assert again is not None
    assert (set(again.pools), again.version, again.pools["here"]) == ({"here", "other"}, "0.2", found.pools["here"])


def test_plan_takes_the_factors_of_a_pool_that_matches(tmp_path):
    spec, cluster = spec_of(8, 128), local(2)
    applied = apply(spec, cluster, calibrated(tmp_path, 2.0))
    assert applied.warnings == ()
    assert applied.calibrated is not None
    assert applied.calibrated.date == "2026-11-24 12:00"
    before, after = (
        make_plan(spec, given, TINY_TEACHER, TINY_STUDENT, clock=lambda: 0.0) for given in (cluster, applied.cluster)
    )
    slower = after.chosen.step_seconds.p50 / before.chosen.step_seconds.p50
    assert 1.5 < slower < 2.1
    assert not any("order of magnitude" in warning for warning in after.warnings)
    off = cluster.model_copy(update={"calibration": "none"})
    assert apply(spec, off, tmp_path / "cluster.yaml").cluster == off


def test_factors_of_the_cluster_file_come_first(tmp_path):
    cluster = local(2, calibration=Factors(teacher=3.0))
    applied = apply(spec_of(8, 128), cluster, calibrated(tmp_path, 2.0))
    assert applied.cluster == cluster
    assert applied.calibrated is not None
    assert (applied.calibrated.file, applied.calibrated.pools["here"].teacher) == (None, 3.0)


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        ({"gpu": "A100-SXM-80"}, "gpu was A100-SXM-80 and is CPU"),
        ({"cpus_per_node": 64}, "cpus_per_node was 64 and is"),
        ({"teacher_dtype": "float16"}, "teacher_dtype was float16 and is"),
    ],
)
def test_other_hardware_is_not_calibrated_and_the_plan_says_so(tmp_path, hardware, words):
    cluster = local(2)
    applied = apply(spec_of(8, 128), cluster, calibrated(tmp_path, 2.0, **hardware))
    assert (applied.cluster, applied.calibrated) == (cluster, None)
    assert words in applied.warnings[0]
    assert "calibrate again" in applied.warnings[0]


def test_a_calibration_of_other_pools_is_said(tmp_path):
    cluster = local(2)
    other = cluster.model_copy(update={"pools": (cluster.pools[0].model_copy(update={"name": "new"}),)})
    applied = apply(spec_of(8, 128), other, calibrated(tmp_path, 2.0))
    assert "it has pool here, which this cluster lacks" in applied.warnings[0]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:50], "Invalid JSON"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format is 2 but this version reads 1"),
        (lambda text: text.replace('"pools"', '"pool"', 1), "pools: Field required"),
    ],
)
def test_a_damaged_file_is_an_error_with_a_way_out(tmp_path, damage, words):
    path = path_beside(calibrated(tmp_path, 2.0))
    path.write_text(damage(path.read_text()))
    with pytest.raises(SpecError) as caught:
        read(path)
    assert words in str(caught.value)
    assert "run kd-launch calibrate again, or ignore it with --set cluster.calibration=none" in str(caught.value)
    write(path, "0.1", {})  # to calibrate again helps
    assert Calibration.model_validate(json.loads(path.read_text())).pools == {}


def test_a_probe_has_as_many_layers_as_have_room():
    spec = spec_of(8, 128)
    layout = make_plan(spec, local(2), TINY_TEACHER, TINY_STUDENT, clock=lambda: 0.0).chosen
    order = order_for(spec, layout, TINY_TEACHER, TINY_STUDENT)
    assert 1 <= order.teacher_layers <= TINY_TEACHER.layers
    assert order.sizes[1] == 2 * order.sizes[0]
    small = layout.model_copy(update={"student": layout.student.model_copy(update={"memory_limit_gib": 1e-6})})
    with pytest.raises(SpecError, match=r"student\.model: not even one of its layers has room"):
        order_for(spec, small, TINY_TEACHER, TINY_STUDENT)


@pytest.mark.parametrize("placement", ["auto", "colocated"])
def test_a_probe_measures_roles_apart_and_none_shares_a_core(project, placement):
    settings = [f"placement={placement}", "student.gpus=2", "teacher.gpus=2", "cluster.pools.0.gpus_per_node=4"]
    inputs = load_inputs(Source(project.config, settings, None, project.environ, project.folder))
    layout = layout_of_probe(as_probe(inputs))
    assert (layout.placement, layout.teacher.gpus, layout.student.gpus) == ("disjoint", 1, 1)


def test_plan_shows_its_factors(tmp_path):
    spec, cluster = spec_of(8, 128), local(2)
    applied = apply(spec, cluster, calibrated(tmp_path, 2.0))
    plan = make_plan(spec, applied.cluster, TINY_TEACHER, TINY_STUDENT, clock=lambda: 0.0)
    plan = plan.model_copy(update={"calibrated": applied.calibrated})
    assert format_plan(plan).splitlines()[0].endswith(", calibrated")
    explained = plan.model_copy(
        update={"explanation": explain(spec, applied.cluster, TINY_TEACHER, TINY_STUDENT, plan, None)}
    )
    text = format_plan(explained)
    assert f"calibrated by {tmp_path / 'cluster.calibration.json'} of 2026-11-24 12:00 UTC" in text
    assert "here: teacher x1.9" in text

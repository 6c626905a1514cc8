"""A probe's ranks measure everything that is asked for, and leave as a run's ranks do."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from kd_launch.calibration.fit import fit
from kd_launch.calibration.predicted import Uncalibrated
from kd_launch.calibration.probing import read_samples
from kd_launch.cluster import Factors
from kd_launch.errors import SpecError
from kd_launch.model_source import find_architecture
from kd_launch.plan import read_run_plan
from kd_launch.probe import ProbeOrder
from tests.runtime.conftest import Material
from tests.runtime.harness import make_layout, make_run, run_to_end

NOW = datetime(2026, 11, 24, tzinfo=UTC)
ORDER = ProbeOrder(
    teacher_layers=1, student_layers=2, sizes=(1, 2), collective_bytes=(4096,), message_bytes=4096, seconds=0.01
)


@pytest.mark.parametrize("colocated", [False, True])
def test_every_factor_is_measured(tmp_path: Path, material: Material, colocated: bool) -> None:
    teachers = 2 if colocated else 1
    layout = make_layout(teachers=teachers, replicas=teachers, colocated=colocated, micro_batch=1, accumulation=2)
    run_dir = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens)
    run = read_run_plan(run_dir.plan).model_copy(update={"probe": ORDER, "tokens": None})
    run_dir.plan.write_text(run.model_dump_json())
    run_to_end(run_dir, layout)
    assert run_dir.done_record(1).exists()
    samples = read_samples(run_dir, layout.world_size)
    by_rank = [{sample.term for sample in samples if sample.rank == rank} for rank in range(2)]
    assert by_rank[0] | by_rank[1] == set(Factors.model_fields)
    assert ("student" in by_rank[0]) == colocated
    assert all(sample.repetitions >= 3 for sample in samples)
    shapes = [find_architecture(str(folder), None, {}) for folder in (material.teacher, material.student)]
    model = Uncalibrated.of(run.spec, run.cluster, *shapes, ORDER)
    pool = fit(samples, model, run.cluster.pools, run.spec, NOW)["here"]
    assert set(pool.terms) == set(Factors.model_fields)
    assert (pool.terms["teacher"].samples, pool.terms["student"].samples) == (4, 2)
    run_dir.probe(1).unlink()
    with pytest.raises(SpecError, match="calibrate again"):
        read_samples(run_dir, 2)

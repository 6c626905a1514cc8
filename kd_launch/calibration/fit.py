"""What the ranks of a probe measured becomes each pool's factors."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from kd_launch.calibration.file import Hardware, PoolCalibration, TermFit
from kd_launch.calibration.predicted import Uncalibrated
from kd_launch.calibration.shrinkage import CPU_PRIOR, GPU_PRIOR, shrunk
from kd_launch.cluster import Factors, Pool
from kd_launch.probe import Sample
from kd_launch.spec import Spec


def fit(
    samples: Sequence[Sample], model: Uncalibrated, pools: Sequence[Pool], spec: Spec, now: datetime
) -> dict[str, PoolCalibration]:
    """One calibration for each pool of which something was measured."""
    by_pool: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_pool[sample.pool].append(sample)
    return {pool.name: _of_pool(pool, by_pool[pool.name], model, spec, now) for pool in pools if pool.name in by_pool}


def _of_pool(
    pool: Pool, samples: list[Sample], model: Uncalibrated, spec: Spec, now: datetime
) -> PoolCalibration:  # fmt: skip
    prior = CPU_PRIOR if pool.is_cpu else GPU_PRIOR
    ratios = ratios_by_term(samples, model)
    terms = {
        term: TermFit(
            samples=len(found),
            measured_over_predicted=math.exp(statistics.fmean(math.log(ratio) for ratio in found)),
            factor=shrunk(found, prior),
        )
        for term, found in ratios.items()
    }
    student = spec.student.model or "the teacher's layers"
    return PoolCalibration(
        date=now.strftime("%Y-%m-%d %H:%M"),
        models=f"{spec.teacher.model} -> {student}, {spec.data.sequence_length} tokens",
        hardware=Hardware.of(pool, spec.teacher.dtype, spec.student.dtype),
        factors=Factors(**{term: found.factor for term, found in terms.items()}),
        terms=terms,
        samples=samples,
    )


def ratios_by_term(samples: Sequence[Sample], model: Uncalibrated) -> dict[str, list[float]]:
    """Measured over predicted time of each thing that was measured; of several ranks, the median one counts."""
    same: dict[tuple[str, int, str | None], list[Sample]] = defaultdict(list)
    for sample in samples:
        same[sample.term, sample.size, sample.payload].append(sample)
    found: dict[str, list[float]] = defaultdict(list)
    for (term, _, _), group in same.items():
        found[term].append(statistics.median(sample.seconds for sample in group) / model.seconds(group[0]))
    return dict(found)

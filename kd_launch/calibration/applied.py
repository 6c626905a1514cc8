"""A cluster with the factors of its calibration file, and what somebody should know about that."""

from dataclasses import dataclass
from pathlib import Path

from kd_launch.calibration.file import Hardware, path_beside, read
from kd_launch.cluster import Cluster, Factors
from kd_launch.plan import Calibrated
from kd_launch.spec import Spec


@dataclass(frozen=True)
class Applied:
    """What came of looking for a calibration."""

    cluster: Cluster
    calibrated: Calibrated | None
    """None: nothing is calibrated."""
    warnings: tuple[str, ...] = ()


def apply(spec: Spec, cluster: Cluster, cluster_file: Path) -> Applied:
    """Gives every pool that the file beside the cluster file matches its factors; what the cluster file itself says of
    a pool comes first.

    Raises:
        SpecError: the file is damaged, or of another version.
    """
    written = {pool.name: pool.calibration for pool in cluster.pools if pool.calibration is not None}
    path = path_beside(cluster_file)
    found = read(path) if cluster.calibration == "auto" else None
    if found is None:
        return Applied(cluster, _calibrated(None, None, written))
    factors: dict[str, Factors] = {}
    warnings: list[str] = []
    for pool in cluster.pools:
        known = found.pools.get(pool.name)
        if known is None or pool.name in written:
            continue
        now = Hardware.of(pool, spec.teacher.dtype, spec.student.dtype)
        differs = known.hardware.differs(now)
        if differs is None:
            factors[pool.name] = known.factors
        else:
            warnings.append(f"{path.name} is not used for pool {pool.name}: {differs}; calibrate again")
    if not set(found.pools) & {pool.name for pool in cluster.pools}:
        names = ", ".join(found.pools)
        warnings.append(f"{path.name} is not used: it has pool {names}, which this cluster lacks; calibrate again")
    pools = tuple(
        pool.model_copy(update={"calibration": factors[pool.name]}) if pool.name in factors else pool
        for pool in cluster.pools
    )
    dates = [found.pools[name].date for name in factors]
    used = _calibrated(str(path) if factors else None, max(dates, default=None), {**written, **factors})
    return Applied(cluster.model_copy(update={"pools": pools}), used, tuple(warnings))


def _calibrated(file: str | None, date: str | None, factors: dict[str, Factors]) -> Calibrated | None:
    return Calibrated(file=file, date=date, pools=factors) if factors else None

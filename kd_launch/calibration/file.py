"""The calibration file beside a cluster file: what was measured, on what, and the factors that follow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch.cluster import Factors, Pool
from kd_launch.errors import SpecError, first_problem
from kd_launch.probe import Sample
from kd_launch.run_dir import write_whole

VALUE = ConfigDict(frozen=True, extra="forbid")
FORMAT: Literal[1] = 1


class Hardware(BaseModel):
    """What a calibration holds for, and for nothing else."""

    model_config = VALUE

    gpu: str
    gpus_per_node: int
    cpus_per_node: int | None
    teacher_dtype: str
    student_dtype: str

    @staticmethod
    def of(pool: Pool, teacher_dtype: str, student_dtype: str) -> "Hardware":
        return Hardware(
            gpu=pool.gpu,
            gpus_per_node=pool.gpus_per_node,
            cpus_per_node=pool.cpus_per_node,
            teacher_dtype=teacher_dtype,
            student_dtype=student_dtype,
        )

    def differs(self, other: "Hardware") -> str | None:
        """The first thing in which another one is not this, in words; None where they are equal."""
        mine, its = self.model_dump(), other.model_dump()
        return next((f"{name} was {mine[name]} and is {its[name]}" for name in mine if mine[name] != its[name]), None)


class TermFit(BaseModel):
    """How one factor came about."""

    model_config = VALUE

    samples: int
    """Different sizes that were measured, each by one rank or more."""
    measured_over_predicted: float
    """Their geometric mean."""
    factor: float
    """Drawn towards 1; see `shrinkage`."""


class PoolCalibration(BaseModel):
    """One pool's."""

    model_config = VALUE

    date: str
    """UTC."""
    models: str
    """What was measured with."""
    hardware: Hardware
    factors: Factors
    terms: dict[str, TermFit]
    samples: list[Sample]


class Calibration(BaseModel):
    """The file."""

    model_config = VALUE

    format: Literal[1] = FORMAT
    version: str
    """The kd-launch that wrote it."""
    pools: dict[str, PoolCalibration]


def path_beside(cluster_file: Path) -> Path:
    """Where the calibration of a cluster file lies: cluster.yaml's is cluster.calibration.json."""
    return cluster_file.with_name(f"{cluster_file.stem}.calibration.json")


def read(path: Path) -> Calibration | None:
    """None where there is none.

    Raises:
        SpecError: it is damaged, or of another version.
    """
    way_out = "run kd-launch calibrate again, or ignore it with --set cluster.calibration=none"
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}; {way_out}") from error
    except ValidationError as error:
        problem = first_problem(error.errors(), "the file")
        if error.errors()[0]["loc"] == ("format",):
            problem = f"format is {error.errors()[0]['input']!r} but this version reads {FORMAT}"
        raise SpecError(f"{path}: {problem}; {way_out}") from error


def write(path: Path, version: str, pools: Mapping[str, PoolCalibration]) -> None:
    """Writes the file whole; pools that were not measured now keep what an earlier calibration said of them.

    A file that cannot be read is replaced: to calibrate again is the way out that its error names.
    """
    try:
        earlier = read(path)
    except SpecError:
        earlier = None
    known = {} if earlier is None else earlier.pools
    found = Calibration(version=version, pools={**known, **pools})
    write_whole(path, (found.model_dump_json(indent=1) + "\n").encode())

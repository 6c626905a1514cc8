"""A user's project on a test cluster: tiny models that really train, rows of tokens, a cluster file and a spec."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.slurm.box import Box

ROWS, STEPS = 48, 6


@dataclass(frozen=True)
class Project:
    """A folder of the box's user, from which kd-launch is called as that user."""

    box: Box
    folder: Path

    def kd(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return self.box.kd(*arguments, cwd=self.folder, **options)

    def submit(self, *arguments: str, **options: Any) -> Path:
        """Submits and returns the run's folder. `*arguments` are kd-launch's: --set=launch=ranks, --run-dir=D."""
        done = self.kd("submit", "distill.yaml", *arguments, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return Path(done.stdout.splitlines()[-1])

    def status(self, run: Path, *arguments: str, timeout: float = 60) -> dict[str, Any]:
        done = self.kd("status", str(run), "--json", *arguments, timeout=timeout)
        assert done.returncode in (0, 5), done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def wait(self, run: Path, timeout: float = 180) -> dict[str, Any]:
        """The status when no attempt follows any more."""
        try:
            return self.status(run, "--wait", timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.status(run)}\n{self.box.call('squeue', '-a').stdout}\n{logs_of(run)}") from error

    def losses(self, run: Path) -> list[float]:
        """Of each step, as its last line says."""
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return list({line["step"]: line["loss"] for line in lines if "loss" in line}.values())

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        self.box.give(path)
        return path


def cpu_pool(partition: str, nodes: int, per_node: int, **changes: Any) -> dict[str, Any]:
    """A pool whose "GPUs" are processes, so that ranks really compute; named as its partition."""
    figures = {"gpu": "CPU", "cpus_per_node": 8, "memory_gib": 8.0, "inter_node_gb_per_s": 1.0}
    return {"name": partition, "partition": partition, "nodes": nodes, "gpus_per_node": per_node, **figures, **changes}


# Two processes on each node, so that four teachers are two nodes and two students one; `cpu` has room for all of them.
POOLS = (cpu_pool("teach", 2, 2), cpu_pool("train", 2, 2), cpu_pool("cpu", 4, 2))


def logs_of(run: Path) -> str:
    """For the words of a test that failed."""
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(run.rglob("*.log")))


def make_models(folder: Path) -> Path:
    """A `teacher` and a `student` with random weights, `rows.npy`, and its tokens prepared."""
    import numpy as np

    from tests.runtime.harness import SEQUENCE, VOCABULARY, make_model

    make_model(folder / "teacher", seed=1, hidden_size=40)
    make_model(folder / "student", seed=2)
    rows = np.random.default_rng(0).integers(2, VOCABULARY, (ROWS, SEQUENCE), dtype=np.int32)
    np.save(folder / "rows.npy", rows)
    write_files(folder)
    argv = [sys.executable, "-m", "kd_launch.cli", "prepare", "distill.yaml"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def write_files(
    folder: Path,
    pools: Sequence[dict[str, Any]] = POOLS,
    cluster: Mapping[str, Any] | None = None,
    spec: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    site = {"scheduler": "slurm", "time_limit": "00:10:00", "environment": {"OMP_NUM_THREADS": "1"}, "pools": pools}
    sections: dict[str, dict[str, Any]] = {
        "teacher": {"model": "./teacher", "dtype": "float32", "pool": "teach", "gpus": 4},
        "student": {"model": "./student", "dtype": "float32", "pool": "train", "gpus": 2},
        "data": {"train": "rows.npy", "format": "tokens", "sequence_length": 24},
        "training": {"steps": STEPS, "global_batch_size": 8, "warmup_steps": 0, "learning_rate": 1e-3},
    }
    changes = spec or {}
    written = {key: {**sections.get(key, {}), **changes.get(key, {})} for key in {**sections, **changes}}
    fixed = {"placement": "disjoint", "cluster": "cluster.yaml"}
    # JSON is YAML.
    (folder / "cluster.yaml").write_text(json.dumps({**site, **(cluster or {})}, indent=1))
    (folder / "distill.yaml").write_text(json.dumps({**written, **fixed}, indent=1))


# Prepared already, so of the runtime only the ranks are called.
OTHER_RANKS = """#!/bin/sh
[ "$1 $2" = "-m kd_launch.runtime" ] && exec {python} {option} {ranks} "$@"
exec {python} "$@"
"""


def write_light_project(
    box: Box, name: str, models: Path, cluster: Mapping[str, Any] | None = None, **options: Any
) -> Project:
    """A project whose ranks do what they are told, by failing_ranks.py, and start at once."""
    project = write_project(box, name, models, cluster={"python": "./python", **(cluster or {})}, **options)
    return _with_ranks(project, "-IS", "failing_ranks.py")


def write_paced_project(
    box: Box, name: str, models: Path, cluster: Mapping[str, Any], *, step_s: float, naming_s: float = 0.0,
    **options: Any,
) -> Project:  # fmt: skip
    """A project whose ranks really train, but slowly, by paced_ranks.py: time in which something can happen."""
    pace = {"OMP_NUM_THREADS": "1", "STEP_SECONDS": str(step_s), "NAMING_SECONDS": str(naming_s)}
    site = {"python": "./python", "environment": pace, **cluster}
    # -P: what lies beside the ranks is not what they import.
    return _with_ranks(write_project(box, name, models, cluster=site, **options), "-P", "paced_ranks.py")


def _with_ranks(project: Project, option: str, file: str) -> Project:
    python, ranks = (shlex.quote(str(path)) for path in (sys.executable, Path(__file__).with_name(file)))
    project.write("python", OTHER_RANKS.format(python=python, option=option, ranks=ranks)).chmod(0o755)
    return project


def told(script: Mapping[str, Mapping[str, list[Any]]]) -> str:
    """The argument of submit that tells the ranks of a light project what to do, by attempt and rank."""
    return f"--set=cluster.environment.TOLD={json.dumps(json.dumps(script))}"


def write_project(
    box: Box, name: str, models: Path, *, pools: Sequence[dict[str, Any]] = POOLS,
    cluster: Mapping[str, Any] | None = None, **spec: dict[str, Any],
) -> Project:  # fmt: skip
    """A project in the user's home. `cluster` and the sections of `spec` add to what `write_files` writes."""
    project = Project(box, box.home / name)
    shutil.copytree(models, project.folder)
    write_files(project.folder, pools, cluster, spec)
    box.give(project.folder)
    return project

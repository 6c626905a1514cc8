"""What init writes of a real cluster is what plan takes, and what check finds nothing wrong with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.box import Box
from tests.slurm.faults import SITE, prepare
from tests.slurm.projects import Project, write_project
from tests.slurm.setup import Nodes, Partition, Setup

CPUS = Setup(nodes=(Nodes("c", 2), Nodes("d", 1, cpus=4)), partitions=(Partition("cpu", "c[1-2],d1", "Default=YES"),))


def first_files(box: Box, name: str) -> Project:
    project = Project(box, box.home / name)
    done = project.box.kd("init", str(project.folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(project.folder / file) for file in ("cluster.yaml", "distill.yaml")]
    return project


def written_pools(lines: list[str]) -> list[str]:
    """Names of the pools that are no comments."""
    return [line.removeprefix("  - name: ") for line in lines if line.startswith("  - name: ")]


def test_gpus_without_a_type(box_with: Callable[[Setup], Box]) -> None:
    """Slurm says how many there are, but not which; so one is assumed, and the user is told."""
    box = box_with(Setup())
    project = first_files(box, "it's first")
    text = (project.folder / "cluster.yaml").read_text()
    lines = text.splitlines()
    assert written_pools(lines) == ["teach", "train"]
    assert lines.count("    gpu: A100-SXM-40  # assumed: Slurm names no type") == 2
    assert "  # - name: wide" in lines
    assert "# Left out: partition private, which takes none of your accounts and QOS." in lines
    assert "account: team                 # your default; you also have poor" in lines
    planned = project.kd("plan", "distill.yaml", "--json")
    assert planned.returncode == 0, planned.stderr
    chosen = json.loads(planned.stdout)["chosen"]
    assert {chosen["teacher"]["partition"], chosen["student"]["partition"]} <= {"teach", "train"}
    again = box.kd("init", str(project.folder))
    assert again.returncode == 2
    assert "exists, and init never overwrites" in again.stderr
    assert (project.folder / "cluster.yaml").read_text() == text


def test_partitions_of_every_kind(box_with: Callable[[Setup], Box], models: Path) -> None:
    box = box_with(SITE)
    prepare(box)
    file = first_files(box, "found").folder / "cluster.yaml"
    lines = file.read_text().splitlines()
    for name, why in (("shut", "is DOWN"), ("root", "takes jobs of the administrator only"), ("hidden", "is hidden")):
        assert f"# Left out: partition {name}, which {why}." in lines
    # t1 and t2 have the feature a100. The other GPUs are unknown, and other partitions have the same nodes.
    assert written_pools(lines) == ["teach"]
    assert 'time_limit: "1-00:00:00"        # of a job; the longest that is allowed' in lines
    assert "  #   gpu: UNKNOWN  # Slurm names no type; write one of those above" in lines
    # Beside models, data and tokens that are there, check finds nothing wrong.
    project = write_project(
        box, "beside", models, **{role: {"pool": "teach", "gpus": 4} for role in ("teacher", "student")}
    )
    done = project.kd("check", "distill.yaml", f"--cluster={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [line for line in done.stdout.splitlines() if not line.startswith("ok ")]


def test_a_cluster_without_gpus(box_with: Callable[[Setup], Box]) -> None:
    project = first_files(box_with(CPUS), "first")
    text = (project.folder / "cluster.yaml").read_text()
    assert "  - name: cpu\n" in text
    assert "  - name: cpu-2\n" in text
    assert "gpu: CPU  # gpus_per_node counts processes" in text
    small = (
        "--set=teacher.model=Qwen/Qwen3-0.6B",
        "--set=student.model=Qwen/Qwen3-0.6B",
        "--set=data.sequence_length=64",
    )
    planned = project.kd("plan", "distill.yaml", *small)
    assert planned.returncode == 0, planned.stderr


@pytest.mark.parametrize("setup", [Setup(hetjobs=False), Setup(hetjob_steps=False), Setup(job_requeue=False)])
def test_what_the_site_rules_out(box_with: Callable[[Setup], Box], setup: Setup) -> None:
    project = first_files(box_with(setup), "ruled out")
    text = (project.folder / "cluster.yaml").read_text()
    assert ("hetjobs: false                # SchedulerType is sched/builtin" in text) is not setup.hetjobs
    assert ("hetjob_steps: false           # SchedulerParameters has" in text) is not setup.hetjob_steps
    assert ("# JobRequeue is 0" in text) is not setup.job_requeue
    assert project.kd("plan", "distill.yaml").returncode == 0

"""The preflight on sites that refuse something to everybody, and where Slurm does not answer."""

from collections.abc import Callable
from pathlib import Path

from kd_launch.checks.finding import Level
from tests.slurm.box import Box
from tests.slurm.checked import POOLS, SPEC, Checked, gpu_pool, wrong
from tests.slurm.projects import cpu_pool, write_project
from tests.slurm.setup import Setup


def test_het_jobs_that_are_refused(box_with: Callable[[Setup], Box], models: Path) -> None:
    box = box_with(Setup(hetjobs=False))
    checked = Checked(write_project(box, "refused", models, pools=(gpu_pool("big", "teach", 4), *POOLS[1:]), **SPEC))
    assert "SchedulerType = sched/builtin" in wrong(checked.look("cluster.hetjobs=true"))["launch"]
    done = box.call("sbatch", str(checked.script("het", "cluster.hetjobs=true")))
    assert "Requested operation not supported on this system" in done.stderr
    # Left open, the site is asked: two pools are refused by the planner, in one pool there is another launch.
    assert "need a het job, which the cluster refuses" in wrong(checked.look())["layout"]
    one_pool = ("student.pool=big", "student.gpus=4", "teacher.gpus=4")
    found = checked.look(*one_pool)
    assert wrong(found) == {}
    assert next(finding.says for finding in found if finding.what == "launch") == "hetstep, one allocation"


def test_steps_over_components_that_are_refused(box_with: Callable[[Setup], Box], models: Path) -> None:
    box = box_with(Setup(hetjob_steps=False))
    checked = Checked(write_project(box, "no steps", models, pools=POOLS, **SPEC))
    assert "refuses once the job runs" in wrong(checked.look("cluster.hetjob_steps=true"))["launch"]
    job = box.sbatch(
        "-N1", "-o", str(box.home / "step.log"), "--mem=100", ":", "-N1", "--mem=100", "--wrap",
        "srun --het-group=0 hostname : --het-group=1 hostname",
    )  # fmt: skip
    box.wait_for_job(job, "FAILED", timeout=30)
    assert (
        "span multiple components of a heterogeneous job are not currently supported"
        in (box.home / "step.log").read_text()
    )
    found = checked.look()
    assert wrong(found) == {}
    assert next(finding.says for finding in found if finding.what == "launch") == "two_steps, a het job"


def test_a_cluster_that_requeues_nothing_by_itself(box_with: Callable[[Setup], Box], models: Path) -> None:
    box = box_with(Setup(job_requeue=False))
    checked = Checked(write_project(box, "requeue", models, pools=POOLS, **SPEC))
    found = {finding.what: finding for finding in checked.look()}["requeue"]
    assert (found.level, "the script says --requeue" in found.says) == (Level.NOTE, True)
    for option, refusal in (("--requeue", ""), ("--no-requeue", "Requested operation is presently disabled")):
        job = box.sbatch(option, "--mem=100", "--wrap", "sleep 60")
        box.wait_for_job(job, "RUNNING")
        assert refusal in box.call("scontrol", "requeue", job).stderr
        box.call("scancel", job)
    kept = checked.look("cluster.pools.1.sbatch=['--no-requeue']")
    assert "student has no --requeue" in next(finding.says for finding in kept if finding.what == "requeue")


def test_the_command_and_submit(box: Box, models: Path) -> None:
    """As a user has them, and beside each other."""
    project = write_project(box, "commands", models, pools=(cpu_pool("teach", 2, 2), cpu_pool("train", 2, 2)))
    done = project.kd("check", "distill.yaml", "--set=cluster.pools.0.partition=teech")
    assert done.returncode == 3, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("FAIL")] == [
        "FAIL teacher",
        "FAIL sbatch --test-only",
    ]
    done = project.kd("submit", "distill.yaml", "--set=cluster.pools.0.partition=teech")
    assert done.returncode == 3
    assert "error: teacher: partition: pool teach: 'teech' is no partition here; did you mean 'teach'?" in done.stderr
    assert [path.name for path in (project.folder / "runs").iterdir()] == ["tokens"]


def test_a_slurm_that_is_silent(box: Box, models: Path) -> None:
    # What would be asked from scontrol is said, for each question takes as long as its patience.
    said = {"hetjobs": True, "hetjob_steps": True}
    project = write_project(
        box, "silent", models, pools=(cpu_pool("teach", 2, 2), cpu_pool("train", 2, 2)), cluster=said
    )
    box.kill_slurmctld()
    try:
        done = project.kd("check", "distill.yaml")
        assert done.returncode == 6
        last = done.stdout.splitlines()[-1]
        assert last.startswith("FAIL slurm: ")
        assert last.endswith("partitions, accounts, limits, nodes and launch are not looked at")
        assert "ok   python: " in done.stdout
        assert project.kd("submit", "distill.yaml").returncode == 6
        assert [path.name for path in (project.folder / "runs").iterdir()] == ["tokens"]
    finally:
        box.start_slurmctld()
        box.wait_idle()

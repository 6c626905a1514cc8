"""The test cluster itself: what the other tests on it rely on."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.box import CHECKOUT, Box
from tests.slurm.machine import alive, wait_for
from tests.slurm.private_view import paths_to_open
from tests.slurm.setup import UID, Partition, Setup

HET = """#!/bin/bash
#SBATCH --partition=teach --nodes=2 --ntasks-per-node=2 --mem=100
#SBATCH hetjob
#SBATCH --partition=train --nodes=1 --ntasks-per-node=2 --mem=100
srun --label --mpi=none bash -c 'echo $SLURM_PROCID of $SLURM_NTASKS on $(hostname) as $(id -u)' \
   : bash -c 'echo $SLURM_PROCID of $SLURM_NTASKS on $(hostname) as $(id -u)'
"""


def test_a_job_of_an_ordinary_user_is_one_world_over_two_components(box: Box) -> None:
    script = box.home / "het.sh"
    script.write_text(HET)
    job = box.sbatch(str(script))
    assert box.wait_for_job(job) == {f"{job}+0": "COMPLETED", f"{job}+1": "COMPLETED"}
    lines = (box.home / f"slurm-{job}.out").read_text().splitlines()
    hosts = ["t1", "t1", "t2", "t2", "s1", "s1"]
    assert sorted(lines) == [f"{rank}: {rank} of 6 on {host} as {UID}" for rank, host in enumerate(hosts)]


def test_accounting_knows_the_job(box: Box) -> None:
    job = box.sbatch("--partition=cpu", "--mem=100", "--wrap=exit 3")
    assert box.wait_for_job(job) == {job: "FAILED"}
    fields = ["-X", "-n", "-P", "-o", "State,ExitCode,Account,QOS,User"]
    expected = f"FAILED|3:0|team|normal|{box.user}"
    # It hears of a job some seconds late, and of its QOS last.
    wait_for(lambda: box.ask("sacct", *fields, "-j", job).strip() == expected, 20, lambda: box.ask("sacct"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--account=other"], "Invalid account"),
        (["--account=none-such"], "Invalid account"),
        (["--qos=foreign"], "Invalid qos"),
        (["--qos=quick", "--time=6"], "Job violates accounting/QOS policy"),
        (["--partition=short", "--time=11"], "Requested time limit is invalid"),
        (["--partition=private"], "Invalid account"),
        (["--nodes=5"], "Node count specification invalid"),
    ],
)
def test_limits_are_enforced(box: Box, arguments: list[str], words: str) -> None:
    done = box.call("sbatch", "--partition=cpu", *arguments, "--wrap=true")
    assert done.returncode == 1
    assert words in done.stderr


def test_gpus_and_memory_are_consumed(box: Box) -> None:
    many = box.sbatch("--partition=teach", "--nodelist=t1", "--gpus-per-node=3", "--mem=100", "--wrap=sleep 60")
    big = box.sbatch("--partition=cpu", "--nodelist=c1", "--mem=12000", "--wrap=sleep 60")
    box.wait_for_job(many, "RUNNING")
    box.wait_for_job(big, "RUNNING")
    more = box.sbatch("--partition=teach", "--nodelist=t1", "--gpus-per-node=2", "--mem=100", "--wrap=true")
    bigger = box.sbatch("--partition=cpu", "--nodelist=c1", "--mem=5000", "--wrap=true")
    beside = box.sbatch("--partition=cpu", "--nodelist=c1", "--mem=3000", "--time=1", "--wrap=true")
    box.wait_for_job(beside, "COMPLETED")
    assert {*box.states(more).values(), *box.states(bigger).values()} == {"PENDING"}
    box.ask("scancel", many, big)
    box.wait_for_job(more, "COMPLETED")
    box.wait_for_job(bigger, "COMPLETED")


def test_export_none_gives_the_job_the_users_login_environment(box: Box) -> None:
    job = box.sbatch("--partition=cpu", "--mem=100", "--export=NONE", "--wrap=env", env={"MINE": "1"})
    assert box.wait_for_job(job) == {job: "COMPLETED"}
    lines = (box.home / f"slurm-{job}.out").read_text().splitlines()
    assert f"HOME={box.home}" in lines
    assert "MINE=1" not in lines


def test_a_node_dies_and_comes_back(box: Box) -> None:
    job = box.sbatch("--partition=cpu", "--nodelist=c4", "--mem=100", "--wrap=sleep 300 & sleep 300")
    box.wait_for_job(job, "RUNNING")
    assert len(box.stepds("c4")) == 1
    before = set(box.on_node("c4"))
    box.kill_node("c4")
    assert box.on_node("c4") == []
    assert not before & set(box.processes())
    box.ask("scancel", job)
    box.start_node("c4")
    box.wait_for_job(job, "CANCELLED")
    box.wait_idle()


def test_the_controller_comes_back_with_its_jobs(box: Box) -> None:
    job = box.sbatch("--partition=cpu", "--mem=100", "--wrap=sleep 300")
    box.wait_for_job(job, "RUNNING")
    box.restart_slurmctld()
    box.wait_for_job(job, "RUNNING")
    box.ask("scancel", job)
    box.wait_for_job(job, "CANCELLED")


def test_a_second_box_beside_the_first_leaves_nothing_and_does_not_touch_it(box: Box) -> None:
    outside = {path: path.stat().st_mtime_ns for path in Path("/etc").iterdir()}
    mounts = Path("/proc/self/mounts").read_text()
    job = box.sbatch("--partition=cpu", "--mem=100", "--wrap=sleep 300")
    box.wait_for_job(job, "RUNNING")
    other = Box().start(Setup(hetjobs=False))
    mine = other.sbatch("--partition=cpu", "--mem=100", "--wrap=setsid sleep 300 & sleep 300")
    other.wait_for_job(mine, "RUNNING")
    assert Box.of(other.folder).setup == other.setup
    assert set(other.processes()).isdisjoint(box.processes())
    processes = set(other.processes())
    other.stop()
    assert other.processes() == {}
    assert not any(alive(pid) for pid in processes)
    assert not other.folder.exists()
    assert Path("/proc/self/mounts").read_text() == mounts
    assert {path: path.stat().st_mtime_ns for path in Path("/etc").iterdir()} == outside
    assert box.states(job) == {job: "RUNNING"}
    box.ask("scancel", job)


def test_a_start_that_fails_leaves_nothing() -> None:
    with Box() as other, pytest.raises(RuntimeError, match="slurmctld has ended"):
        other.start(Setup(partitions=(Partition("cpu", "no-such-node"),)))
    assert other.processes() == {}
    assert not other.folder.exists()


def test_a_box_goes_down_with_the_process_that_started_it() -> None:
    code = (
        "import os; from tests.slurm.box import Box; box = Box()\n"
        "try: box.start()\n"
        "finally: print(box.folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    other = Box(Path(done.stdout.strip()))
    assert done.returncode == -9
    wait_for(lambda: not other.folder.exists() and other.processes() == {}, 30, lambda: str(other.processes()))


def test_what_jobs_leave_in_tmp_goes_with_the_box(box: Box) -> None:
    name = f"/tmp/left-by-{box.folder.name}"
    box.ask("touch", name)
    assert Path(name).name in box.ask("ls", "/tmp").split()
    assert not Path(name).exists()


def test_closed_folders_are_opened_as_little_as_needed(tmp_path: Path) -> None:
    for name in ("closed/deep/python/bin", "closed/secret", "open/code"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    needed = [tmp_path / "closed" / "deep" / "python", tmp_path / "open" / "code"]
    found = paths_to_open(needed, private=())
    above = [path for path in tmp_path.parents if not path.stat().st_mode & stat.S_IXOTH]
    assert found == {above[-1]: sorted(needed)} if above else {tmp_path / "closed": needed[:1]}


def test_the_user_runs_this_interpreter_and_this_package(box: Box) -> None:
    code = "import json, os, sys, kd_launch; print(json.dumps([sys.prefix, os.getuid(), kd_launch.__version__]))"
    from kd_launch import __version__

    assert json.loads(box.ask(sys.executable, "-c", code)) == [sys.prefix, UID, __version__]
    assert box.kd("--version").stdout.strip().endswith(__version__)

"""The preflight beside what sbatch really does: a spec that is right, and one for each fault."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kd_launch.checks.finding import Level
from tests.slurm.box import Box
from tests.slurm.checked import POOLS, SPEC, Checked, wrong
from tests.slurm.faults import FAULTS, SITE, Fault, prepare
from tests.slurm.projects import write_project
from tests.slurm.setup import USER, Setup

WAITS_S = 6
"""Several times as long as a job takes to start that can."""


@pytest.fixture(scope="module")
def site(box_with: Callable[[Setup], Box]) -> Box:
    box = box_with(SITE)
    prepare(box)
    return box


@pytest.fixture(scope="module")
def checked(site: Box, models: Path) -> Checked:
    return Checked(write_project(site, "it's checked", models, pools=POOLS, **SPEC))


def start_of(box: Box, job: str) -> dict[str, tuple[str, str]]:
    """Component -> (state, reason)."""
    text = box.ask("squeue", "-h", "-a", "-j", job, "-o", "%i|%T|%r")
    return {row[0]: (row[1], row[2]) for row in (line.split("|") for line in text.splitlines())}


def test_a_good_spec_is_clean_and_its_job_starts(checked: Checked, site: Box) -> None:
    found = checked.look()
    assert {finding.level for finding in found} == {Level.OK}, [finding.line() for finding in found]
    job = site.sbatch(str(checked.script("good")))
    try:
        # Not what becomes of it: there are no GPUs here.
        states = site.wait_for_job(job, "RUNNING", "FAILED", "COMPLETING", "COMPLETED", timeout=30)
        assert len(states) == 2
    finally:
        site.call("scancel", job)
        site.wait_idle()


def test_a_node_out_of_order_makes_a_job_wait(checked: Checked, site: Box) -> None:
    site.ask("scontrol", "update", "NodeName=t2", "State=DRAIN", "Reason=a disk", as_root=True)
    try:
        found = checked.look()
        assert wrong(found) == {}
        warned = {finding.what: finding.says for finding in found if finding.level is Level.WARNING}
        assert (
            "1 of the 2 that fit is up: the job waits. Out of order: t2 (t2 DRAIN+IDLE: a disk"
            in warned["teacher: nodes"]
        )
        assert "Requested node configuration is not available" in warned["sbatch --test-only"]
        job = site.sbatch(str(checked.script("waits")))
        site.ask("sleep", "3")
        assert {state for state, _ in start_of(site, job).values()} == {"PENDING"}
        site.ask("scontrol", "update", "NodeName=t2", "State=RESUME", as_root=True)
        site.wait_for_job(job, "RUNNING", "FAILED", "COMPLETING", "COMPLETED", timeout=30)
        site.call("scancel", job)
    finally:
        site.call("scontrol", "update", "NodeName=t2", "State=RESUME", as_root=True)
        site.wait_idle()


def test_of_several_partitions_one_that_takes_the_job_is_enough(checked: Checked, site: Box) -> None:
    assert wrong(checked.look("cluster.pools.0.partition='single,teach'")) == {}
    unknown = wrong(checked.look("cluster.pools.0.partition='nope,teach'"))
    assert "'nope' is no partition here" in unknown["teacher: partition"]
    done = site.call("sbatch", str(checked.script("list", "cluster.pools.0.partition='nope,teach'")))
    assert "invalid partition specified: nope" in done.stderr


def test_a_hidden_partition_is_no_fault(checked: Checked, site: Box) -> None:
    assert wrong(checked.look("cluster.pools.0.partition=hidden")) == {}
    assert (
        site.call("sbatch", "--test-only", str(checked.script("hid", "cluster.pools.0.partition=hidden"))).returncode
        == 0
    )


@pytest.fixture(scope="module")
def sent(checked: Checked, site: Box) -> Iterator[dict[str, str]]:
    """Fault -> sbatch's words, or the job's id: all of them wait beside each other, on nodes that are idle."""
    answers = {}
    for number, (name, fault) in enumerate(FAULTS.items()):
        done = site.call("sbatch", "--parsable", str(checked.script(f"fault-{number}", *fault.settings)))
        answers[name] = done.stdout.strip() if done.returncode == 0 else done.stderr
    site.ask("sleep", str(WAITS_S))
    assert set(site.ask("sinfo", "-h", "-N", "-o", "%T").split()) <= {"idle", "planned"}
    yield answers
    site.ask("scancel", "--user", USER)
    site.wait_idle()


@pytest.mark.parametrize(("name", "fault"), FAULTS.items(), ids=FAULTS)
def test_what_check_finds_fails_in_slurm(
    name: str, fault: Fault, checked: Checked, site: Box, sent: dict[str, str]
) -> None:
    failed = wrong(checked.look(*fault.settings))
    assert fault.says in failed[fault.what]
    answer = sent[name]
    if fault.refused is not None:
        assert fault.refused in answer
        return
    assert answer.isdigit(), answer
    waiting = start_of(site, answer)
    assert {state for state, _ in waiting.values()} == {"PENDING"}
    assert fault.reason is None or any(fault.reason in reason for _, reason in waiting.values()), waiting

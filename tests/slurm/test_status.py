"""What status says beside what a real Slurm does: reasons, estimates, components, requeues, jobs it has forgotten."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kd_launch.run_dir import RunDir
from kd_launch.runs.standing import SUBMITTING_S
from tests.slurm.box import Box
from tests.slurm.pretended import FOREVER, Pretended, wait_until, write_pretended
from tests.slurm.setup import Setup

EXCLUSIVE = ['--set=cluster.pools.0.sbatch=["--exclusive"]', '--set=cluster.pools.1.sbatch=["--exclusive"]']
ONE_POOL = ["--set=teacher.pool=cpu", "--set=student.pool=cpu"]
DONE: list[Any] = [["beat", 10], ["step", 6], ["print", "learned"], "done"]


@pytest.fixture(scope="module")
def prepared(box: Box, models: Path) -> Pretended:
    return write_pretended(box, "followed runs", models)


@pytest.fixture
def place(prepared: Pretended) -> Iterator[Pretended]:
    """With an empty queue, which it leaves so."""
    yield prepared
    for line in prepared.box.ask("squeue", "-h", "-a", "-o", "%A").split():
        prepared.box.call("scancel", line, as_root=True)
    prepared.box.wait_idle()


def polled(place: Pretended, run: RunDir, until: Callable[[dict[str, Any]], bool], seconds: float = 90) -> list[Any]:
    """Every status that was seen until one is as wanted, which is the last."""
    seen: list[Any] = []

    def look() -> bool:
        seen.append(place.status(run))
        return until(seen[-1])

    wait_until(look, seconds)
    return seen


def by_role(status: dict[str, Any], key: str) -> dict[str, Any]:
    return {component["role"]: component[key] for component in status["components"]}


# Waiting


def test_a_waiting_run_tells_why_and_when(place: Pretended) -> None:
    place.running(*EXCLUSIVE)
    run = place.submit(*EXCLUSIVE)
    status = polled(place, run, lambda found: found["start_estimate"] is not None)[-1]
    assert (status["state"], status["ended"], status["attempt"]) == ("PENDING", False, 0)
    job = status["job_id"]
    assert by_role(status, "job_id") == {"teacher": f"{job}+0", "student": f"{job}+1"}
    assert set(by_role(status, "reason").values()) <= {"Resources", "Priority"}
    slurms = place.box.ask("squeue", "-h", "-j", job, "-O", "StartTime:0").split()
    assert status["start_estimate"] == max(slurms)
    shown = place.kd("status", run.name).stdout
    assert "waits: its nodes are busy (Resources)" in shown or "waits: other jobs come first (Priority)" in shown
    assert "starts about " in shown
    place.box.call("scontrol", "hold", job)
    held = place.status(run)
    assert (held["state"], held["way_on"]) == ("PENDING", f"scontrol release {job}")
    place.box.call(*held["way_on"].split())
    assert place.status(run)["way_on"] is None


# Running


@pytest.mark.parametrize("launch", ["hetjob", "hetstep", "ranks"])
def test_each_role_is_on_the_nodes_on_which_its_ranks_are(place: Pretended, launch: str) -> None:
    pools = [] if launch == "hetjob" else ONE_POOL
    run = place.running(f"--set=launch={launch}", *pools)
    status = place.status(run)
    beats = [json.loads(path.read_text()) for path in run.heartbeats.glob("*.json")]
    hosts = {role: {beat["host"] for beat in beats if beat["role"] == role} for role in ("teacher", "student")}
    assert {role: set(nodes) for role, nodes in by_role(status, "nodes").items()} == hosts
    assert by_role(status, "state") == {"teacher": "RUNNING", "student": "RUNNING"}
    assert by_role(status, "het_group") == (
        {"teacher": 0, "student": 1} if launch == "hetjob" else dict.fromkeys(hosts)
    )


# Ending


def test_a_component_that_is_cancelled_makes_the_run_cancelled_and_it_ends_so(place: Pretended) -> None:
    run = place.running()
    job = place.job_id(run)
    place.box.call("scancel", f"{job}+1")
    seen = polled(place, run, lambda found: found["ended"])
    assert {status["state"] for status in seen} <= {"RUNNING", "CANCELLED"}
    assert seen[-1]["state"] == "CANCELLED"
    assert by_role(seen[-1], "state")["student"] == "CANCELLED"


def test_a_job_that_slurm_calls_completed_without_a_finished_student_has_failed(place: Pretended) -> None:
    """As a line of a site's setup may bring about."""
    run = place.submit('--set=cluster.setup=test -z "$SLURM_JOB_ID" || exit 0')
    status = polled(place, run, lambda found: found["ended"])[-1]
    assert (status["state"], set(by_role(status, "state").values())) == ("FAILED", {"COMPLETED"})
    assert "no record of a finished student" in status["reason"]


# Between attempts


def test_a_requeued_run_never_seems_to_have_ended(place: Pretended) -> None:
    run = place.running(every=["say_attempt", *FOREVER])
    job = place.job_id(run)
    assert place.box.call("scontrol", "requeue", job).returncode == 0
    seen = polled(place, run, lambda found: found["attempt"] == 2)
    assert not any(status["ended"] for status in seen)
    assert {status["state"] for status in seen} <= {"RUNNING", "PENDING", "REQUEUED"}
    assert "PENDING" in {status["state"] for status in seen}
    waited = next(status for status in seen if status["state"] == "PENDING")
    assert (waited["job_id"], waited["attempt"]) == (job, 1)
    wait_until(lambda: "attempt 2" in place.kd("logs", run.name).stdout)
    lines = place.kd("logs", run.name, "--attempt", "1").stdout.splitlines()
    assert sorted(line for line in lines if "attempt" in line) == [f"{rank}: attempt 1" for rank in range(6)]
    assert place.kd("logs", run.name, "--attempt", "3").returncode == 2


# Which run


def test_a_run_is_found_by_the_number_of_a_component(place: Pretended) -> None:
    run = place.running()
    for text in (place.job_id(run), f"{place.job_id(run)}+1"):
        assert place.project.status(Path(text))["run"] == run.name


# A Slurm that does not answer


def test_without_a_controller_the_runs_own_records_are_shown(place: Pretended) -> None:
    done = place.submit(every=DONE)
    polled(place, done, lambda found: found["ended"])
    run = place.running(every=[["beat", 1], ["wait_for", "go"], *DONE])
    place.box.stop_slurmctld()
    try:
        questions = [[str(run.path)], [], [str(done.path)]]
        with ThreadPoolExecutor() as pool:  # squeue takes its time to find out that nobody answers
            answer, listed, finished = pool.map(lambda asked: place.kd("status", *asked, "--json"), questions)
            waiting = pool.submit(place.kd, "status", str(run.path), "--wait", "--json")
            time.sleep(3)
            place.box.start_slurmctld()
            (run.path / "go").touch()
            waited = waiting.result()
    finally:
        if place.box.call("scontrol", "ping").returncode:
            place.box.start_slurmctld()
    assert answer.returncode == listed.returncode == 6
    assert "Unable to contact slurm controller" in answer.stderr
    status = json.loads(answer.stdout)
    assert (status["state"], status["ended"]) == ("RUNNING", False), "its ranks live"
    assert status["reason"].startswith("Slurm does not answer: ")
    states = {one["run"]: (one["state"], one["reason"]) for one in json.loads(listed.stdout)}
    assert states[done.name] == ("COMPLETED", None)
    assert states[run.name][1] == status["reason"]
    assert (finished.returncode, json.loads(finished.stdout)["state"]) == (0, "COMPLETED")
    assert (waited.returncode, json.loads(waited.stdout)["state"]) == (0, "COMPLETED"), waited.stderr


# A job that Slurm has forgotten


def test_what_becomes_of_runs_whose_jobs_slurm_forgets(box_with: Callable[[Setup], Box], models: Path) -> None:
    place = write_pretended(box_with(Setup(min_job_age_s=2)), "forgotten runs", models)
    failed = place.submit(every=[["failure", "ValueError: no"], ["exit", 1]])
    cancelled = place.running()
    place.box.call("scancel", place.job_id(cancelled))
    ends = {run.name: polled(place, run, lambda found: found["ended"])[-1]["state"] for run in (failed, cancelled)}
    assert ends == {failed.name: "FAILED", cancelled.name: "CANCELLED"}
    wait_until(lambda: not place.box.ask("squeue", "-h", "-a", "-t", "all"))
    seen: list[dict[str, str]] = []
    for _ in range(4):  # the accounting may still have to catch up
        listed = json.loads(place.kd("status", "--json").stdout)
        seen.append({one["run"]: one["state"] for one in listed})
    assert seen[-1] == ends
    assert all(state in (ends[name], "UNKNOWN") for states in seen for name, state in states.items())
    state = json.loads(cancelled.state.read_text())
    long_ago = {**state["token"], "since": state["token"]["since"] - SUBMITTING_S}
    cancelled.state.write_text(json.dumps({**state, "job_id": "4000000", "token": long_ago}))
    for path in cancelled.heartbeats.iterdir():
        path.unlink()  # these ranks count as alive for ten minutes
    unknown = place.status(cancelled)
    assert (unknown["state"], unknown["ended"]) == ("UNKNOWN", True)
    assert unknown["reason"].startswith("Slurm does not know job 4000000")


def test_watching_shows_a_run_to_its_end(place: Pretended) -> None:
    run = place.running(every=[["beat", 1], ["wait_for", "go"], *DONE])
    argv = [sys.executable, "-m", "kd_launch.cli", "status", str(run.path), "--watch"]
    watching = place.box.popen(*argv, cwd=place.folder)
    assert watching.stdout is not None
    assert "RUNNING" in watching.stdout.readline()
    (run.path / "go").touch()
    assert "COMPLETED" in watching.communicate(timeout=60)[0]
    assert watching.returncode == 0

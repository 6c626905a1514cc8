"""Submit, cancel and resume on the real cluster, with ranks that only pretend."""

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kd_launch.run_dir import RunDir
from tests.slurm.box import Box
from tests.slurm.pretended import FOREVER, Pretended, wait_until, write_pretended

ONE_POOL = ["--set=teacher.pool=cpu", "--set=student.pool=cpu"]
HOLD = '--set=cluster.pools.0.sbatch=["--hold"]'
GAP = "a\n\n\nb  \n\n'c' \\ $HOME \"d\""
DONE: list[Any] = [["beat", 10], ["step", 6], "done"]


@pytest.fixture(scope="module")
def prepared(box: Box, models: Path) -> Pretended:
    return write_pretended(box, 'it\'s a "pretended" $HOME', models)


@pytest.fixture
def place(prepared: Pretended) -> Iterator[Pretended]:
    """With an empty queue, which it leaves so."""
    yield prepared
    for line in prepared.box.ask("squeue", "-h", "-a", "-o", "%A").split():
        prepared.box.call("scancel", line, as_root=True)
    prepared.box.wait_idle()


# The script


@pytest.mark.parametrize("launch", ["hetjob", "two_steps", "hetstep", "ranks"])
def test_render_job_sbatch_and_what_slurm_holds_are_the_same(place: Pretended, launch: str) -> None:
    """An empty line too, which sbatch drops from the script of a heterogeneous job."""
    pools = [] if launch in ("hetjob", "two_steps") else ONE_POOL
    gap = [f"--set=cluster.environment.GAP={json.dumps(GAP)}", '--set=cluster.setup="true\n\n\nFROM_SETUP=1"']
    name = f'my "{launch[:4]}" it\'s'  # not the word itself: older Slurms take it for a separator
    arguments = [*place.told(every=["describe", *FOREVER]), f"--set=launch={launch}", *pools, *gap, f"--run-dir={name}"]
    rendered = place.kd("render", "distill.yaml", *arguments)
    assert rendered.returncode == 0, rendered.stderr
    assert place.kd("submit", "distill.yaml", *arguments, "--dry-run").stdout == rendered.stdout
    assert not (place.folder / name).exists()
    run = place.submit(f"--set=launch={launch}", *pools, *gap, f"--run-dir={name}", every=["describe", *FOREVER])
    assert run.script.read_bytes() == rendered.stdout.encode()
    held = place.folder / "held"
    place.box.ask("scontrol", "write", "batch_script", place.job_id(run), str(held))
    assert held.read_bytes() == run.script.read_bytes()
    found = json.loads(wait_until(lambda: text_of(run.path / "rank-0.json")))
    assert found["environ"]["GAP"] == GAP
    assert place.cancel(run).returncode == 0


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_words_at_the_end(place: Pretended) -> None:
    done = place.send(HOLD)
    run = place.runs[-1]
    assert done.stdout.splitlines() == [
        f"{run.name} is Slurm's job {place.job_id(RunDir(run))}. To follow it:",
        f"  kd-launch status {run.name} --watch", f"  kd-launch logs {run.name} --follow", str(run),
    ]  # fmt: skip
    told = json.loads(place.send(HOLD, "--json").stdout)
    other = RunDir(place.runs[-1])
    assert told == {
        "run": other.name, "run_dir": str(other.path), "job_id": place.job_id(other), "launch": "hetjob",
        "script": str(other.script),
    }  # fmt: skip
    assert {path.name for path in other.path.iterdir() if path.is_dir()} == {
        "logs", "attempts", "failures", "heartbeats"
    }  # fmt: skip


def test_wait_tells_how_it_ended(place: Pretended) -> None:
    well = place.send("--wait", every=DONE)
    assert (well.returncode, well.stderr.splitlines()[-1].split()[-1]) == (0, "COMPLETED"), well.stderr
    badly = place.send("--wait", every=[["failure", "ValueError: no"], ["exit", 1]])
    assert badly.returncode == 5
    assert "ValueError: no" in badly.stderr


# What surrounds it


def test_a_caller_inside_another_job_leaks_nothing(place: Pretended) -> None:
    strange = {
        "SBATCH_ACCOUNT": "nobody", "SBATCH_PARTITION": "short", "SBATCH_EXPORT": "NONE", "SLURM_TIME_FORMAT": "%s",
        "SQUEUE_STATES": "FAILED", "SCANCEL_STATE": "PENDING", "RANK": "9", "MASTER_ADDR": "other", "PMI_RANK": "3",
        "SLURM_HINT": "nomultithread", "CUDA_VISIBLE_DEVICES": "7",
    }  # fmt: skip
    every = ["describe", *DONE]
    words = [f"{place.folder}/kd-launch", "submit", "distill.yaml", *place.told(every=every), "--wait"]
    line = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    exports = "".join(f"export {name}='{value}'\n" for name, value in strange.items())
    python = place.box.ask("sh", "-c", "command -v python").strip()
    place.project.write("kd-launch", f'#!/bin/sh\nexec {shlex.quote(python)} -m kd_launch.cli "$@"\n').chmod(0o755)
    outer = place.project.write("outer.sh", f"#!/bin/bash\n{exports}{line}\n")
    job = place.box.sbatch("--partition=cpu", "--nodes=1", "--mem=500", str(outer), cwd=place.folder)
    ended = place.box.wait_for_job(job, timeout=120)
    assert set(ended.values()) == {"COMPLETED"}, (place.folder / f"slurm-{job}.out").read_text()
    run = RunDir(place.runs[-1])
    for rank in range(6):
        environ = json.loads((run.path / f"rank-{rank}.json").read_text())["environ"]
        assert environ["SLURM_JOB_ID"] in (place.job_id(run), str(int(place.job_id(run)) + 1))
        assert environ["SLURM_NTASKS"] == "6"
        assert not strange.keys() & environ.keys()


# What Slurm says


def test_a_refusal_leaves_nothing(place: Pretended) -> None:
    before = place.runs
    done = place.send("--set=cluster.account=other", "--no-check")
    assert done.returncode == 4
    assert "Invalid account or account/partition combination specified" in done.stderr
    assert place.runs == before
    done = place.send("--set=cluster.account=other", "--no-check", "--run-dir=refused")
    assert (done.returncode, (place.folder / "refused").exists()) == (4, False)
    assert place.held() == ""


def test_a_slurm_that_is_down_leaves_nothing(place: Pretended) -> None:
    before = place.runs
    with slurm_down(place.box):
        done = place.send("--no-check", "--run-dir=silent")
    assert done.returncode == 6
    assert "Unable to contact slurm controller" in done.stderr
    assert (place.runs, (place.folder / "silent").exists()) == (before, False)


@contextmanager
def slurm_down(box: Box) -> Iterator[None]:
    """Nobody answers, but what Slurm knew is not lost."""
    box._end("slurmctld", signal.SIGTERM)
    try:
        yield
    finally:
        box.start_slurmctld()


def test_a_job_that_sbatch_did_not_hear_of_is_found(place: Pretended) -> None:
    """The controller is stopped until sbatch has given up: it has read the job all the same."""
    tools = place.folder / "tools"
    tools.mkdir()
    wrapper = place.project.write(
        "tools/sbatch", f'#!/bin/sh\n/usr/bin/sbatch "$@"\ncode=$?\ntouch {"gave-up"}\nexit $code\n'
    )
    wrapper.chmod(0o755)
    path = f"{tools}:{place.box.ask('printenv', 'PATH').strip()}"
    controller = place.box._daemons["slurmctld"]
    os.kill(controller, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(place.send, HOLD, "--no-check", env={"PATH": path})
            wait_until((place.folder / "gave-up").exists)
            os.kill(controller, signal.SIGCONT)
            done = waiting.result()
    finally:
        os.kill(controller, signal.SIGCONT)
    assert done.returncode == 0, done.stderr
    job = place.job_id(RunDir(place.runs[-1]))
    assert place.box.states(job) == {f"{job}+0": "PENDING", f"{job}+1": "PENDING"}


def test_a_submit_that_was_killed_after_sbatch_leaves_a_run_that_is_found(place: Pretended) -> None:
    for command in ("status", "cancel", "resume"):
        run = killed(place, f"killed, before | {command}")
        assert place.job_id(run) == "None"
        done = place.kd(command, str(run.path))
        job = place.job_id(run)
        assert job.isdigit(), done.stderr
        if command == "resume":
            assert done.returncode == 3
            assert f"has not ended: its job {job} is" in done.stderr
        elif command == "cancel":
            assert done.stdout == f"{run.name} CANCELLED\n"
            assert job not in place.box.ask("squeue", "-h", "-a", "-o", "%A").split()
        else:
            assert place.status(run)["job_id"] == job


def killed(place: Pretended, name: str) -> RunDir:
    """A run whose submit was killed between sbatch's answer and its own writing it down."""
    tools = place.folder / f"tools of {name}"
    tools.mkdir()
    wrapper = tools / "sbatch"
    wrapper.write_text('#!/bin/sh\n/usr/bin/sbatch "$@"\nkill -9 $PPID\n')
    wrapper.chmod(0o755)
    place.box.give(tools)
    path = f"{tools}:{place.box.ask('printenv', 'PATH').strip()}"
    done = place.send("--no-check", f"--run-dir={name}", env={"PATH": path})
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    return RunDir(place.folder / name)


# Cancel


def gone(place: Pretended, run: RunDir) -> None:
    """Nothing of it runs or will run."""
    assert place.held() == ""
    # A controller that has just come back lets go of a job before its nodes have.
    wait_until(lambda: not [pid for node in place.box.nodes for pid in place.box.stepds(node)], 30)
    status = place.status(run)
    assert (status["state"], status["ended"]) == ("CANCELLED", True)


def test_cancel_of_a_run_that_waits(place: Pretended) -> None:
    run = place.submit(HOLD)
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    gone(place, run)
    assert place.cancel(run).stdout == f"{run.name} has already ended: CANCELLED\n"


def test_cancel_of_a_run_that_runs(place: Pretended) -> None:
    run = place.running()
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    gone(place, run)


def test_cancel_in_the_middle_of_a_save(place: Pretended) -> None:
    """The ranks do not hear TERM while they write."""
    run = place.running(every=["ignore_term", *FOREVER])
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    gone(place, run)


def test_cancel_of_a_run_that_is_ending(place: Pretended) -> None:
    run = place.running(every=["ignore_term", *FOREVER])
    place.box.ask("scancel", place.job_id(run))
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    gone(place, run)


def test_cancel_between_two_attempts(place: Pretended) -> None:
    run = place.running()
    place.box.ask("scontrol", "requeue", place.job_id(run))
    wait_until(lambda: "PENDING" in place.box.states(place.job_id(run)).values())
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    gone(place, run)
    assert run.attempt_numbers() == [1]


def test_cancel_while_it_is_being_requeued(place: Pretended) -> None:
    run = place.running(every=["ignore_term", *FOREVER])
    place.box.ask("scontrol", "requeue", place.job_id(run))
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    time.sleep(8)  # longer than a requeued job waits here
    gone(place, run)


def test_cancel_of_a_run_that_has_ended(place: Pretended) -> None:
    run = place.submit("--wait", every=DONE)
    done = place.cancel(run)
    assert (done.returncode, done.stdout) == (0, f"{run.name} has already ended: COMPLETED\n")
    assert not run.cancel_record.exists()


def test_cancel_of_a_run_that_slurm_has_forgotten(place: Pretended) -> None:
    run = place.submit("--wait", every=DONE)
    state = json.loads(run.state.read_text())
    run.state.write_text(json.dumps({**state, "job_id": "99999999"}))
    assert place.cancel(run).returncode == 0


def test_cancel_of_another_user_s_run(place: Pretended) -> None:
    run = place.submit(HOLD, as_root=True)
    done = place.cancel(run)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{run.name} is another user's: {run.path} may not be written" in done.stderr
    run.path.chmod(0o777)
    done = place.cancel(run)
    assert done.returncode == 3
    assert "may not be cancelled" in done.stderr
    assert "is it another user's?" in done.stderr
    assert not run.cancel_record.exists()
    assert place.job_id(run) in place.held()


def test_cancel_while_slurm_is_down(place: Pretended) -> None:
    run = place.running()
    with slurm_down(place.box):
        done = place.cancel(run)
    assert done.returncode == 6
    assert "no attempt follows the present one" in done.stderr
    assert json.loads(run.cancel_record.read_text())["job_id"] == place.job_id(run)
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    gone(place, run)


# Resume


def test_two_requeues_and_a_resume_leave_the_logs_of_four_attempts(place: Pretended) -> None:
    run = place.running(every=[["say_attempt"], *FOREVER])
    first = place.job_id(run)
    for attempt in (1, 2):
        wait_for_words(run, attempt)
        place.box.ask("scontrol", "requeue", first)
    wait_for_words(run, 3)
    refused = place.kd("resume", str(run.path))
    assert refused.returncode == 3
    assert f"its job {first} is RUNNING" in refused.stderr
    place.cancel(run)
    done = place.kd("resume", str(run.path))
    assert done.returncode == 0, done.stderr
    assert "starts from the beginning" in done.stderr
    wait_for_words(run, 4)
    second = place.job_id(run)
    assert json.loads(run.state.read_text())["earlier_jobs"] == [first]
    assert f"is Slurm's job {second}" in done.stdout
    for attempt in (1, 2, 3, 4):
        lines = {line for role in ("teacher", "student") for line in words(run, attempt, role)}
        assert lines == {f"{rank}: attempt {attempt}" for rank in range(6)}
    assert not run.cancel_record.exists()  # it may be requeued again
    assert place.cancel(run).stdout == f"{run.name} CANCELLED\n"
    gone(place, run)
    assert place.status(run)["attempt"] == 4


def words(run: RunDir, attempt: int, role: str) -> list[str]:
    path = run.role_log(attempt, role)
    return [line for line in path.read_text().splitlines() if "attempt" in line] if path.exists() else []


def wait_for_words(run: RunDir, attempt: int) -> None:
    wait_until(lambda: len(words(run, attempt, "teacher")) == 4 and len(words(run, attempt, "student")) == 2)


def test_of_two_resumes_at_once_one_sends(place: Pretended) -> None:
    run = place.submit(HOLD)
    place.cancel(run)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: place.kd("resume", str(run.path)), range(2)))
    assert sorted(one.returncode for one in done) == [0, 3]
    assert len(place.held().splitlines()) == 2  # the components of one job


def test_resume_of_a_run_that_is_done(place: Pretended) -> None:
    run = place.submit("--wait", every=DONE)
    done = place.kd("resume", str(run.path))
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{run.name} is COMPLETED: its student is {run.model}" in done.stderr
    assert place.held() == ""

"""The local backend with real processes: who starts, who watches, who ends, and what is left."""

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Project

from kd_launch.run_dir import RunDir

FOREVER: list[Any] = [["sleep", 60]]


def wait_until(condition: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def end_of(run: Path) -> dict[str, Any]:
    path = RunDir(run).end_record(1)
    wait_until(path.exists)
    return dict(json.loads(path.read_text()))


def written(run: Path, name: str) -> Any:
    wait_until((run / name).exists)
    return json.loads((run / name).read_text())


def assert_nothing_left(project: Project) -> None:
    wait_until(lambda: not project.processes())


# The whole way


def test_a_run_to_its_end(project: Project) -> None:
    run = project.submit(
        rank0=[["print", "I teach"], ["beat", 10]],
        rank1=[["print", "I learn"], ["step", 10], ["beat", 10], "done"],
    )
    assert run.parent == project.runs
    assert end_of(run) | {"time": 0} == {
        "exit_codes": [0, 0], "cancelled": False, "timed_out": False, "time": 0, "first": None,
    }  # fmt: skip
    assert_nothing_left(project)
    status = project.status(run, "--wait")
    assert (status["state"], status["ended"], status["attempt"]) == ("COMPLETED", True, 1)
    assert status["progress"]["step"] == 10
    logs = RunDir(run).logs / "attempt-1"
    assert (logs / "teacher.log").read_text() == "0: I teach\n"
    assert (logs / "student.log").read_text() == "1: I learn\n"


def test_the_run_folder(project: Project) -> None:
    done = project.call("submit", "distill.yaml", project.ranks(every=[]), "--set", "training.steps=7", "--json")
    submitted = json.loads(done.stdout)
    run = RunDir(Path(submitted["run_dir"]))
    assert submitted == {
        "run": run.name, "run_dir": str(run.path), "job_id": submitted["job_id"], "launch": None,
        "script": str(run.script),
    }  # fmt: skip
    assert run.spec.read_bytes() == project.config.read_bytes()
    assert run.cluster.read_bytes() == (project.folder / "cluster.yaml").read_bytes()
    plan = json.loads(run.plan.read_text())
    assert plan["spec"]["training"]["steps"] == 7
    assert plan["spec"]["teacher"]["model"] == str(project.folder / "teacher")
    assert plan["tokens"]["train"] == str(project.runs / "tokens" / "abc")
    state = json.loads(run.state.read_text())
    assert state["job_id"] == submitted["job_id"] == str(state["controller"]["pid"])
    assert state["command"][1:3] == ["submit", "distill.yaml"]
    assert state["versions"]["submitit"] == "1.5.4"
    assert state["attempts"] == 1


def test_the_script_is_what_render_shows(project: Project) -> None:
    run = project.submit(every=[])
    rendered = project.call("render", "distill.yaml", project.ranks(every=[]), "--run-dir", str(run))
    assert rendered.stdout == (run / "job.sbatch").read_text()
    assert subprocess.run(["bash", "-n", run / "job.sbatch"], check=False).returncode == 0
    dry = project.call("submit", "distill.yaml", project.ranks(every=[]), "--dry-run", "--run-dir", str(run))
    assert dry.stdout == rendered.stdout


def test_the_sources_are_named(project: Project) -> None:
    git = ["git", "-C", str(project.folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (project.folder / ".gitignore").write_text("*\n")
    subprocess.run([*git, "add", "-f", ".gitignore"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    run = project.submit(every=[])
    assert json.loads((run / "state.json").read_text())["git"] == {"sha": head, "dirty": False}
    (project.folder / ".gitignore").write_text("other\n")
    run = project.submit(every=[])
    assert json.loads((run / "state.json").read_text())["git"] == {"sha": head, "dirty": True}


def test_colocated_ranks_have_both_roles(project: Project) -> None:
    run = project.submit("--set=placement=colocated", every=["describe", ["print", "both"], "done"])
    assert written(run, "rank-0.json")["argv"][-1] == "both"
    assert end_of(run)["exit_codes"] == [0]
    status = project.status(run)
    assert (status["state"], [one["role"] for one in status["components"]]) == ("COMPLETED", ["both"])
    assert project.call("logs", str(run)).stdout == "0: both\n"
    assert (run / "logs" / "attempt-1" / "student.log").exists()


# What surrounds the ranks


def test_what_a_rank_finds(project: Project) -> None:
    project.environ.update(RANK="7", MASTER_ADDR="other", TORCHELASTIC_RUN_ID="x", KD_LAUNCH_ATTEMPT="9", KEPT="yes")
    run = project.submit(every=["describe"])
    found = written(run, "rank-1.json")
    environ = found["environ"]
    state = json.loads((run / "state.json").read_text())
    assert found["argv"][1:] == ["-m", "kd_launch.runtime", str(run), "--role", "student"]
    assert environ["SUBMITIT_LOCAL_GLOBALID"] == environ["SUBMITIT_LOCAL_LOCALID"] == "1"
    assert environ["SUBMITIT_LOCAL_NTASKS"] == "2"
    assert environ["SUBMITIT_LOCAL_JOB_ID"] == state["job_id"]
    assert (environ["KD_LAUNCH_ATTEMPT"], environ["HF_HUB_OFFLINE"], environ["KEPT"]) == ("1", "1", "yes")
    assert (environ["OMP_NUM_THREADS"], environ["PYTHONUNBUFFERED"]) == ("1", "1")
    assert not {"RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & environ.keys()
    assert environ["KD_LAUNCH_RUN_DIR"] == str(run)
    # One process per rank, below the controller and in its session.
    assert found["controller"] == found["session"] == state["controller"]["pid"]
    assert found["descriptors"]["0"] == "/dev/null"
    assert found["descriptors"]["1"] == found["descriptors"]["2"]
    assert found["descriptors"]["1"].startswith("pipe:")


def test_the_cluster_decides_about_variables(project: Project) -> None:
    settings = ["HF_HUB_OFFLINE='0'", "OMP_NUM_THREADS='2'", 'ODD="it\'s $HOME"']
    run = project.submit(*(f"--set=cluster.environment.{setting}" for setting in settings), every=["describe"])
    environ = written(run, "rank-0.json")["environ"]
    assert (environ["HF_HUB_OFFLINE"], environ["OMP_NUM_THREADS"], environ["ODD"]) == ("0", "2", "it's $HOME")


def test_setup_lines_come_first(project: Project) -> None:
    run = project.submit("--set=cluster.setup='export FROM_SETUP=\"a  b\"'", every=["describe"])
    found = written(run, "rank-0.json")
    assert found["environ"]["FROM_SETUP"] == "a  b"
    assert found["controller"] == json.loads((run / "state.json").read_text())["controller"]["pid"]


def test_setup_lines_that_fail_fail_the_rank(project: Project) -> None:
    done = project.call("submit", "distill.yaml", "--set=cluster.setup='exit 5'", project.ranks(every=[]))
    assert done.returncode == 3
    assert "ended with exit code 5" in done.stderr
    assert list(project.folder.glob("runs/distill*")) == []


def test_the_controller_holds_nothing_of_ours(project: Project) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    process = project.start(
        "submit", "distill.yaml", project.ranks(every=[["beat", 1], *FOREVER]), close_fds=False, stdin=subprocess.PIPE
    )
    os.close(writer)
    # Both return although the ranks go on: nobody but the submit itself has held the pipes.
    output, errors = process.communicate(timeout=120)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert process.returncode == 0, errors
    run = Path(output.splitlines()[-1])
    pid = json.loads((run / "state.json").read_text())["controller"]["pid"]
    assert os.getsid(pid) == pid != os.getsid(0)
    ranks = [written(run, f"heartbeats/rank-0000{rank}.json")["pid"] for rank in (0, 1)]
    assert project.processes().keys() == {pid, *ranks}
    links = {int(entry.name): str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert links[0] == "/dev/null"
    assert links[1] == links[2] == str(run / "logs" / "batch.log")
    others = {link for number, link in links.items() if number > 2}
    logs = {str(run / "logs" / "attempt-1" / f"{role}.log") for role in ("teacher", "student")}
    pipes = {str(Path(f"/proc/{rank}/fd/1").readlink()) for rank in ranks}
    assert others == logs | pipes
    assert project.call("cancel", run.name).returncode == 0
    assert_nothing_left(project)


def test_an_interpreter_that_is_not_there(project: Project) -> None:
    done = project.call("submit", "distill.yaml", "--set=cluster.python=./nothing")
    assert done.returncode == 3
    assert "nothing cannot be started: No such file or directory; set python in the cluster file" in done.stderr
    assert not list(project.runs.glob("distill*"))


def test_an_interpreter_without_torch(project: Project) -> None:
    probe = json.dumps(json.dumps({"missing": ["torch", "transformers"], "version": "0"}))
    done = project.call("submit", "distill.yaml", f"--set=cluster.environment.FAKE_PROBE={probe}", "--no-check")
    assert done.returncode == 3
    assert "has no torch, transformers; give it" in done.stderr
    assert "-m pip install 'kd-launch[runtime]'" in done.stderr


def test_a_preparation_that_fails(project: Project) -> None:
    done = project.call("submit", "distill.yaml", "--set=cluster.environment.FAKE_PREPARE='2'")
    assert done.returncode == 2
    assert "error: the tokenizers are different\n" in done.stderr
    assert done.stdout == ""
    assert not list(project.runs.glob("distill*"))


# Names and places


def test_a_second_run_in_the_same_second(project: Project) -> None:
    names = [project.submit_impatiently(every=[]).name for _ in range(3)]
    assert names == ["distill-20260131-235959", "distill-20260131-235959-2", "distill-20260131-235959-3"]


def test_a_folder_that_exists_is_not_touched(project: Project) -> None:
    (project.folder / "mine").mkdir()
    for option in ("mine", str(project.folder / "mine"), "distill.yaml"):
        done = project.call("submit", "distill.yaml", project.ranks(every=[]), "--run-dir", option)
        assert done.returncode == 2
        assert "exists; --run-dir names a folder that is made for this run" in done.stderr
    assert list((project.folder / "mine").iterdir()) == []


def test_a_folder_that_is_named(project: Project) -> None:
    run = project.submit("--run-dir", "deep/er/my run", every=["describe"])
    assert run == project.folder / "deep" / "er" / "my run"
    assert written(run, "rank-0.json")["argv"][3] == str(run)


def test_a_path_that_stands_for_a_job_number(project: Project) -> None:
    done = project.call("submit", "distill.yaml", project.ranks(every=[]), "--run-dir", "100%job")
    assert done.returncode == 2
    assert "%j, which stands for a job's number in paths" in done.stderr


def test_a_run_root_below_a_file(project: Project) -> None:
    done = project.call("submit", "distill.yaml", project.ranks(every=[]), "--set=cluster.run_root=distill.yaml/runs")
    assert done.returncode == 3
    assert "run_root: " in done.stderr
    done = project.call("submit", "distill.yaml", "--no-check", "--set=cluster.run_root=distill.yaml/runs")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "set run_root in the cluster file" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
@pytest.mark.parametrize(
    ("options", "words"), [("size=16k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_full_or_read_only_disk(project: Project, options: str, words: str) -> None:
    project.runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(project.runs)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        checked = project.call("submit", "distill.yaml", project.ranks(every=[]))
        forced = project.call("submit", "distill.yaml", project.ranks(every=[]), "--no-check")
        left = list(project.runs.iterdir())
    finally:
        subprocess.run(["umount", str(project.runs)], check=True)
    assert (checked.returncode, forced.returncode) == (3, 2), forced.stderr
    assert words in checked.stderr or "iB are free" in checked.stderr
    assert words in forced.stderr
    assert "Traceback" not in checked.stderr + forced.stderr
    assert forced.stdout == ""
    assert left == []
    assert_nothing_left(project)


def test_a_disk_that_fills_up_after_the_controller_has_started(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(run: RunDir, _: object) -> None:
        wait_until(project.processes)
        time.sleep(1)  # long enough for ranks to start, if any did before their run is on disk
        assert run.batch_log.read_text() == ""
        raise OSError(errno.ENOSPC, "No space left on device", str(run.state))

    monkeypatch.setattr("kd_launch.submission.write_state", fill_up)
    with pytest.raises(OSError, match="No space left"):
        project.submit_impatiently(every=[["beat", 1], *FOREVER])
    assert list(project.runs.iterdir()) == []
    assert project.processes() == {}


# One rank dies


def test_a_rank_that_dies_ends_the_others(project: Project) -> None:
    run = project.submit_impatiently(rank0=FOREVER, rank1=[["wait_for", "go"], ["exit", 3]])
    (run / "go").touch()
    end = end_of(run)
    assert end["exit_codes"] == [-signal.SIGTERM, 3]
    assert end["first"] == {"rank": 1, "role": "student", "exit_code": 3}
    assert_nothing_left(project)
    status = project.status(run, "--wait")
    assert status["state"] == "FAILED"
    assert status["failure"]["rank"] == 1
    assert status["failure"]["error"] == "ended with exit code 3; its log has the reason"


def test_a_record_of_the_rank_itself_stays(project: Project) -> None:
    run = project.submit_impatiently(rank0=[], rank1=[["failure", "ValueError: no"], ["exit", 1]])
    end_of(run)
    assert project.status(run)["failure"]["error"] == "ValueError: no"


def test_a_rank_that_is_killed(project: Project) -> None:
    run = project.submit_impatiently(rank0=["ignore_term", ["beat", 1], *FOREVER], rank1=[["beat", 1], *FOREVER])
    pid = written(run, "heartbeats/rank-00001.json")["pid"]
    written(run, "heartbeats/rank-00000.json")
    os.kill(pid, signal.SIGKILL)
    failure = written(run, "failures/attempt-1.json")
    assert failure["error"] == "killed by signal 9 (SIGKILL)"
    assert (failure["role"], failure["rank"], failure["traceback"]) == ("student", 1, None)
    end = end_of(run)
    assert end["first"] == {"rank": 1, "role": "student", "signal": 9}
    assert end["exit_codes"][1] == -9
    assert_nothing_left(project)


def test_what_ranks_leave_behind_ends_with_them(project: Project) -> None:
    run = project.submit_impatiently(rank0=["child"], rank1=["child", ["exit", 1]])
    end_of(run)
    assert_nothing_left(project)


def test_ranks_that_end_without_a_student(project: Project) -> None:
    run = project.submit_impatiently(every=[])
    end_of(run)
    status = project.status(run)
    assert status["state"] == "FAILED"
    assert status["failure"] is None
    assert status["components"][0]["reason"] == "every rank ended with 0, but without a finished student"


# The controller dies


def test_a_controller_that_is_killed(project: Project) -> None:
    run = project.submit_impatiently(every=[["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    pid = json.loads((run / "state.json").read_text())["controller"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: project.status(run)["ended"])
    status = project.status(run)
    assert status["state"] == "FAILED"
    assert status["components"][0]["reason"] == f"its controller (process {pid}) is gone and left no end record"
    assert_nothing_left(project)  # the ranks look after their parent


def test_a_submit_that_is_interrupted_before_the_start_leaves_nothing(project: Project) -> None:
    """git is asked just before the start: here it waits until it is told to end."""
    tools = project.folder / "tools"
    tools.mkdir()
    git = tools / "git"
    git.write_text('#!/bin/sh\ntouch "$(dirname "$0")/asked"\nexec sleep 60\n')
    git.chmod(0o755)
    project.environ["PATH"] = f"{tools}:{project.environ['PATH']}"
    process = project.start("submit", "distill.yaml", project.ranks(every=FOREVER), start_new_session=True)
    wait_until((tools / "asked").exists)
    assert len(list(project.runs.glob("distill*"))) == 1
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "error: interrupted")
    assert list(project.runs.glob("distill*")) == []
    assert_nothing_left(project)


# Time limit


def test_a_time_limit(project: Project) -> None:
    run = project.submit("--set=slurm.time_limit='0:01'", every=FOREVER)
    end = end_of(run)
    assert (end["timed_out"], end["cancelled"]) == (True, False)
    assert project.status(run)["state"] == "TIMEOUT"
    assert_nothing_left(project)

"""The promises to programs: what goes where, exit codes, and nothing slower or needier than it must be."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Project
from run_folders import alive, end, failure, make_run, step
from test_submit import FOREVER, assert_nothing_left, wait_until, written
from typer.testing import CliRunner

from kd_launch import __version__
from kd_launch.cli.__main__ import app
from kd_launch.cluster import Cluster
from kd_launch.errors import KdLaunchError
from kd_launch.spec import Spec

HEAVY = ("torch", "transformers", "datasets", "submitit", "jinja2", "numpy", "huggingface_hub")


def invoke(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app, list(arguments), **options)


def python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


CALL = "import sys; from kd_launch.cli.__main__ import main; sys.argv[0] = 'kd-launch'; main()"


# Imports


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["submit", "--help"], ["status", "--run-root", "/nothing"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys, atexit; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr)); {CALL}"
    done = python(code, *arguments)
    assert done.returncode == 0
    imported = done.stderr.splitlines()[-1]
    assert [name for name in HEAVY if f"'{name}'" in imported] == []


def test_planning_and_rendering_do_without_the_runtime(project: Project) -> None:
    runtime = ["torch", "transformers", "datasets", "numpy", "kd_launch.runtime"]
    block = f"import sys; sys.modules.update(dict.fromkeys({runtime}))"
    for command in (["plan", "--json"], ["render"], ["submit", "--dry-run"], ["schema"], ["--help"]):
        files = [] if command[0] in ("schema", "--help") else [str(project.config)]
        done = python(f"{block}; {CALL}", *command, *files)
        assert done.returncode == 0, done.stderr


# Errors


def test_an_error_is_a_line_for_each_thing_and_an_exit_code(project: Project) -> None:
    done = project.call("plan", "distill.yaml", "--set", "training.steps=no", "--set", "training.stps=1")
    assert (done.returncode, done.stdout) == (2, "")
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert all(error.startswith("error: --set training.st") for error in errors)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "nothing.yaml"], 2, "nothing.yaml: no such file"),
        (["plan", "distill.yaml", "--cluster", "nothing.yaml"], 2, "nothing.yaml"),
        (["plan", "distill.yaml", "--set=teacher.gpus=7"], 2, "teacher"),
        (["plan", "distill.yaml", "--set=teacher.model=./nothing"], 2, "teacher.model"),
        (["plan", "distill.yaml", "--set=cluster.pools.0.memory_gib=0.01"], 3, "GiB"),
        (["plan", "distill.yaml", "--top", "0"], 2, "--top"),
        (["plan", "distill.yaml", "--set=student.model=null", "--set=student.start_from={teacher_layers: [0, 5]}"], 2,
         "student.start_from.teacher_layers: 5 do not exist: "),
        (["plan"], 2, "CONFIG"),
        (["fly"], 2, "fly"),
        (["status", "nothing", "--run-root", "."], 2, "no such run"),
        (["logs"], 2, "there is none in"),
        (["cancel", "nothing"], 2, "there is none in"),
        (["status", "--wait"], 2, "latest"),
        (["render", "distill.yaml", "--output", "nothing/x"], 2, "nothing/x: No such file or directory"),
        (["render", "distill.yaml", "--output", "data"], 2, "data: Is a directory"),
        (["render", "distill.yaml", "--output", "cluster.yaml"], 2, "--output cluster.yaml: exists and is no script"),
        (["render", "distill.yaml", "--run-dir", "a/.."], 2, "--run-dir a/..: is no name of a new folder"),
        (["render", "distill.yaml", "--run-dir", "n" * 300], 2, "is too long for the files in it"),
        (["init", "distill.yaml"], 2, "distill.yaml"),
        (["submit", "distill.yaml", "--set=cluster.scheduler=slurm", "--set=cluster.pools.0.partition=p",
          "--set=cluster.pools.0.gpu_directive=null"], 6, "is this machine part of a Slurm cluster"),
        (["submit", "distill.yaml", "--no-check", "--set=cluster.scheduler=slurm", "--set=cluster.pools.0.partition=p"],
         3, "is not prepared; give `kd-launch prepare distill.yaml` where there is network"),
        (["resume", "nothing"], 2, "there is none in"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_without_a_traceback(
    project: Project, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("PATH", "/nothing")  # no Slurm of this machine
    done = invoke(*arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert not project.runs.exists()


def test_an_answer_that_stdout_cannot_encode_is_an_error_for_people(project: Project) -> None:
    project.environ["PYTHONIOENCODING"] = "ascii"
    done = project.call("render", "distill.yaml", "--run-dir", "läufe")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the answer holds '\\xe4', which stdout's encoding, ascii, lacks; give LC_ALL=C.UTF-8" in done.stderr


def test_a_bug_of_ours_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("kd_launch.runs.lookup.list_runs", broken)
    with pytest.raises(ZeroDivisionError):
        invoke("status", catch_exceptions=False)


def test_every_branch_of_the_tree_has_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    branches = list(KdLaunchError.__subclasses__())
    assert {branch.exit_code for branch in branches} == {2, 3, 4, 5, 6}
    for branch in branches:

        def broken(*_: object, kind: type[KdLaunchError] = branch) -> None:
            raise kind("two\nlines")

        monkeypatch.setattr("kd_launch.runs.lookup.list_runs", broken)
        done = invoke("status")
        assert (done.exit_code, done.stderr) == (branch.exit_code, "error: two\nerror: lines\n")


def test_who_has_read_enough_is_left_in_peace(project: Project) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = project.start("schema", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("command", ["schema", "--help", "--version"])
def test_an_answer_that_cannot_be_written(project: Project, command: str) -> None:
    with open("/dev/full", "w") as full:
        process = project.start(command, stdout=full)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (2, "error: the answer cannot be written: No space left on device\n")


def test_a_folder_that_was_removed_under_us(project: Project) -> None:
    gone = project.folder / "gone"
    code = f"import os; os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); {CALL}"
    for command in (["status"], ["plan", str(project.config)]):
        done = python(code, *command)
        assert (done.returncode, done.stderr) == (2, "error: the current folder was removed; cd to another one\n")


# Answers


def test_version() -> None:
    assert invoke("--version").stdout == f"kd-launch {__version__}\n"


def test_help_names_every_command() -> None:
    shown = invoke("--help").stdout
    before, about = (
        ("init", "prepare", "plan", "calibrate", "estimate", "render", "check"),
        ("submit", "resume", "cancel", "status", "logs"),
    )
    for command in (*before, *about, "schema"):
        assert f" {command} " in shown
        assert invoke(command, "--help").exit_code == 0


def test_schema_describes_the_spec() -> None:
    schema = json.loads(invoke("schema").stdout)
    assert (schema["title"], schema["$schema"]) == ("kd-launch spec", "https://json-schema.org/draft/2020-12/schema")
    assert set(schema["properties"]) == set(Spec.model_fields)
    steps = schema["$defs"]["Training"]["properties"]["steps"]
    assert (steps["description"], steps["minimum"]) == ("Optimizer steps.", 1)
    assert set(schema["$defs"]["Cluster"]["properties"]) == set(Cluster.model_fields)


def test_plan(project: Project) -> None:
    done = project.call("plan", "distill.yaml", "--json", "--top", "2")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert (found["name"], found["chosen"]["launch"], len(found["candidates"]) <= 2) == ("distill", None, True)
    assert project.call("plan", "distill.yaml").stdout.startswith("distill: 4 x 64 tokens a step")
    assert len(project.call("plan", "distill.yaml", "--explain").stdout) > len(
        project.call("plan", "distill.yaml").stdout
    )


def test_plan_of_a_student_made_of_the_teachers_layers(project: Project) -> None:
    kept = ["--set=student.model=null", "--set=student.start_from={teacher_layers: [1]}"]
    one, whole = (project.call("plan", "distill.yaml", "--json", *options).stdout for options in (kept, []))
    # The student of the project is the teacher with one layer.
    assert json.loads(one)["chosen"]["student"] == json.loads(whole)["chosen"]["student"]


def test_set_and_cluster_reach_the_files(project: Project) -> None:
    other = project.folder / "other.yaml"
    cluster = json.loads((project.folder / "cluster.yaml").read_text())
    other.write_text(json.dumps({**cluster, "pools": [{**cluster["pools"][0], "name": "there"}]}))
    done = project.call(
        "plan", "distill.yaml", "--json", "--cluster", "other.yaml", "--set=training.global_batch_size=8"
    )
    chosen = json.loads(done.stdout)["chosen"]
    assert (chosen["student"]["pool"], chosen["global_batch_size"]) == ("there", 8)


def test_render_writes_through_links_and_pipes(project: Project) -> None:
    link, pipe, target = (project.folder / name for name in ("link", "pipe", "target"))
    target.touch()
    link.symlink_to(target)
    os.mkfifo(pipe)
    kept_open = os.open(pipe, os.O_RDWR)
    try:
        for output in (link, pipe):
            done = project.call("render", "distill.yaml", "--run-dir", "x", "--output", str(output))
            assert done.returncode == 0, done.stderr
        assert os.read(kept_open, 1 << 16) == target.read_bytes() != b""
    finally:
        os.close(kept_open)
    assert link.is_symlink()
    assert pipe.is_fifo()


def test_render_says_which_folder_it_is_for(project: Project) -> None:
    done = project.call("render", "distill.yaml")
    assert done.stdout.startswith("#!/bin/bash\n")
    assert f"in {project.runs}/distill-" in done.stderr
    named = project.call("render", "distill.yaml", "--run-dir", "x", "--output", "script.sh")
    assert (named.stdout, named.stderr) == ("", "")
    assert str(project.folder / "x").replace("'", "'\"'\"'") in (project.folder / "script.sh").read_text()


def test_prepare(project: Project) -> None:
    done = project.call("prepare", "distill.yaml")
    store = str(project.runs / "tokens" / "abc")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{store}\n", "prepared\n")
    answer = json.loads(project.call("prepare", "distill.yaml", "--json").stdout)
    assert answer == {"train": store, "eval": None, "stores": [], "created": True}


def test_init_then_plan(project: Project) -> None:
    project.environ["PATH"] = "/nothing"  # a Slurm of this machine is not meant
    done = project.call("init", "new folder")
    assert done.stdout == "new folder/cluster.yaml\nnew folder/distill.yaml\n"
    again = project.call("init", "new folder")
    assert (again.returncode, again.stdout) == (2, "")
    assert "cluster.yaml: exists, and init never overwrites" in again.stderr


def test_init_with_slurm(project: Project) -> None:
    tools = project.folder / "tools"
    tools.mkdir()
    answers = {
        "config": "ClusterName = big\nSelectType = select/cons_tres",
        "partition": "PartitionName=gpu State=UP MaxTime=08:00:00",
        "node": "NodeName=a1 CPUTot=96 RealMemory=1900000 Gres=gpu:h100:8 State=IDLE Partitions=gpu",
    }
    cases = "".join(f"*{name}) echo '{answer}' ;;\n" for name, answer in answers.items())
    (tools / "scontrol").write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\n')
    (tools / "sacctmgr").write_text("#!/bin/sh\necho no accounting >&2\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    project.environ["PATH"] = f"{tools}:{project.environ['PATH']}"
    assert project.call("init", "new").returncode == 0
    assert "partition: gpu" in (project.folder / "new" / "cluster.yaml").read_text()


# Runs


def test_submit_ends_with_the_folder(project: Project) -> None:
    done = project.call("submit", "distill.yaml", project.ranks(every=[]))
    lines = done.stdout.splitlines()
    name = Path(lines[-1]).name
    assert lines[0].startswith(f"{name} runs on this machine as process ")
    assert lines[1:3] == [f"  kd-launch status {name} --watch", f"  kd-launch logs {name} --follow"]
    assert Path(lines[-1]).is_dir()
    assert done.stderr == ""
    elsewhere = project.call(
        "submit", "distill.yaml", project.ranks(every=[]), "--run-dir", "my run"
    ).stdout.splitlines()
    spoken = subprocess.run(["bash", "-c", f"printf %s {elsewhere[1].split(' ', 4)[4].removesuffix(' --watch')}"],
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert spoken == elsewhere[-1] == str(project.folder / "my run")


def test_submit_wait(project: Project) -> None:
    done = project.call("submit", "distill.yaml", "--wait", project.ranks(
        rank0=[["beat", 5], ["sleep", 0.5]], rank1=[["beat", 5], ["step", 5], ["sleep", 0.5], "done"]
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(project.runs))
    errors = done.stderr.splitlines()
    assert "step 5 of 10, loss 2.5000, 1,000 tokens/s; teacher 5 of 10 micro-batches; student 5 of 10 steps" in errors
    assert errors[-1].endswith(" COMPLETED")


def test_submit_wait_of_a_run_that_fails(project: Project) -> None:
    done = project.call(
        "submit", "distill.yaml", "--wait", "--json", project.ranks(rank1=[["failure", "ValueError: no"], ["exit", 1]])
    )
    run = Path(json.loads(done.stdout)["run_dir"])
    assert done.returncode == 5
    what = "student rank 1 on here (attempt 1): ValueError: no"
    log = f"{run}/logs/attempt-1/student.log"
    assert done.stderr.splitlines()[-1] == f"error: {run.name} FAILED: {what}; see {log}"


def test_interrupting_the_waiting_leaves_the_run_alone(project: Project) -> None:
    process = project.start(
        "submit", "distill.yaml", "--wait", project.ranks(every=[["beat", 1], *FOREVER]), start_new_session=True
    )
    assert process.stdout is not None
    run = Path([process.stdout.readline() for _ in range(4)][-1].strip())
    written(run, "heartbeats/rank-00001.json")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{run.name} is left as it is; to end it: kd-launch cancel {run.name}" in errors
    assert project.status(run)["state"] == "RUNNING"
    assert project.call("cancel", "latest").returncode == 0
    assert_nothing_left(project)


def test_bars_on_a_terminal(project: Project) -> None:
    ours, theirs = pty.openpty()
    process = project.start("submit", "distill.yaml", "--wait", project.ranks(
        rank0=[["beat", 5], ["sleep", 1]], rank1=[["beat", 5], ["step", 5], ["sleep", 1], "done"]
    ), stderr=theirs)  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:
        pass  # how Linux says that a terminal has closed
    os.close(ours)
    assert process.wait(60) == 0
    assert b"5 of 10 micro-batches" in shown
    assert b"5 of 10 steps" in shown


def test_status_of_all_runs(tmp_path: Path) -> None:
    for number in range(200):
        make_run(tmp_path / f"run-{number:03}", created=1.0 + number, end=end(cancelled=True), metrics=[step(5)])
    make_run(tmp_path / "now", alive(), created=1000.0, failure=failure())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("{}")
    found = json.loads(invoke("status", "--json", "--run-root", str(tmp_path)).stdout)
    assert len(found) == 202
    states = {one["run"]: one["state"] for one in found}
    assert (states["now"], states["run-007"], states["broken"]) == ("RUNNING", "CANCELLED", "UNKNOWN")
    table = invoke("status", "--run-root", str(tmp_path)).stdout.splitlines()
    assert len(table) == 203
    assert any(line.startswith("now ") and "ValueError: no" in line for line in table)
    empty = invoke("status", "--json", "--run-root", str(tmp_path / "nothing"))
    assert (json.loads(empty.stdout), empty.exit_code) == ([], 0)


@pytest.mark.parametrize(
    ("records", "state"), [({"end": end()}, "FAILED"), ({"end": end(cancelled=True)}, "CANCELLED")]
)
def test_status_exits_0_whatever_the_state_unless_it_waits(tmp_path: Path, records: Any, state: str) -> None:
    run = make_run(tmp_path / "run", **records)
    done = invoke("status", str(run.path), "--json")
    assert (done.exit_code, json.loads(done.stdout)["state"]) == (0, state)
    waited = invoke("status", str(run.path), "--wait", "--json")
    assert (waited.exit_code, json.loads(waited.stdout)["state"]) == (5, state)
    assert f"error: run {state}: " in waited.stderr
    assert invoke("status", str(run.path), "--watch").exit_code == 0


def test_status_wait_returns_at_the_end(project: Project) -> None:
    run = project.submit_impatiently(rank0=[["wait_for", "go"]], rank1=[["wait_for", "go"], "done"])
    waiting = project.start("status", str(run), "--wait")
    wait_until(lambda: project.status(run)["state"] == "RUNNING")
    assert waiting.poll() is None
    (run / "go").touch()
    output, errors = waiting.communicate(timeout=60)
    assert (waiting.returncode, errors) == (0, "")
    assert output.startswith(f"{run.name}  COMPLETED")


def test_logs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", end=end())
    run.role_log(1, "teacher").write_bytes(b"0: \xff teaches\n")
    run.role_log(1, "student").write_bytes(b"1: learns\n")
    both = invoke("logs", str(run.path))
    assert both.stdout_bytes == b"0: \xff teaches\n1: learns\n"
    assert both.stderr.splitlines() == [f"==> {run.role_log(1, role)}" for role in ("teacher", "student")]
    one = invoke("logs", str(run.path), "--role", "student")
    assert (one.stdout, one.stderr) == ("1: learns\n", "")
    assert invoke("logs", "latest", "--run-root", str(tmp_path), "--rank", "1").stdout == "1: learns\n"
    assert invoke("logs", str(run.path), "--follow", "--role", "student").stdout == "1: learns\n"
    assert invoke("logs", str(run.path), "--rank", "9").exit_code == 2
    assert invoke("logs", str(run.path), "--role", "both").exit_code == 2


def test_logs_follow_a_run_to_its_end(project: Project) -> None:
    run = project.submit_impatiently(
        rank0=[["wait_for", "go"]], rank1=[["print", "one"], ["wait_for", "go"], ["print", "two"]]
    )
    following = project.start("logs", str(run), "--follow", "--role", "student")
    assert following.stdout is not None
    assert following.stdout.readline() == "1: one\n"
    (run / "go").touch()
    output, _ = following.communicate(timeout=60)
    assert (following.returncode, output) == (0, "1: two\n")

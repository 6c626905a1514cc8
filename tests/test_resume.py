"""Resume: what may go on and what may not, and that nothing of before is lost; on this machine with real processes."""

import json
from pathlib import Path

import pytest
from conftest import Project
from fake_slurm import DOWN, LATE, FakeSlurm, Says
from test_cancel_job import UNKNOWN, squeue
from test_sending import NAME, SENT, place, row, state, submit  # noqa: F401 - a fixture
from test_submit import FOREVER, assert_nothing_left, end_of, wait_until, written

from kd_launch import commands
from kd_launch.errors import CheckError, KdLaunchError, MaybeSentError, SlurmRefusedError, SlurmSilentError
from kd_launch.resumption import resume
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runs.state import read_state, write_state
from kd_launch.submission import Caller, Submitted

ONCE = [["print", "once more"], ["exit", 1]]


def ended_run(project: Project) -> Path:
    """A run on this machine that has ended; its tokens are not looked at."""
    run = project.submit_impatiently(every=ONCE)
    end_of(run)
    forget_tokens(run)
    return run


def forget_tokens(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "tokens": None}))


# On this machine


def test_the_next_attempt_keeps_all_of_the_first(project: Project) -> None:
    run = ended_run(project)
    first = json.loads((run / "state.json").read_text())
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "state.json"}
    done = project.call("resume", run.name, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{run.name} starts from the beginning: it has no checkpoint\n"
    wait_until(RunDir(run).end_record(2).exists)
    assert {path: path.read_bytes() for path in kept if path != RunDir(run).batch_log} == {
        path: text for path, text in kept.items() if path != RunDir(run).batch_log
    }
    assert (run / "logs" / "attempt-2" / "teacher.log").read_text() == "0: once more\n"
    again = json.loads((run / "state.json").read_text())
    assert again["earlier_jobs"] == [first["job_id"]]
    assert again["job_id"] == json.loads(done.stdout)["job_id"] == str(again["controller"]["pid"])
    assert (again["attempts"], again["created"]) == (2, first["created"])
    status = project.status(run)
    assert (status["attempt"], status["state"]) == (2, "FAILED")
    assert_nothing_left(project)


def test_it_goes_on_in_another_layout_that_learns_the_same(project: Project) -> None:
    run = ended_run(project)
    before = {name: (run / name).read_bytes() for name in ("plan.json", "job.sbatch")}
    names = set(run.iterdir())
    for arguments, words in (
        (["--set=placement=colocated"], "--set and --cluster of resume need --replan"),
        (["--replan", "--set=training.steps=11"], "training.steps: would become 11, but the run began with 10"),
        (["--replan", "--set=cluster.scheduler=slurm"], "scheduler"),
    ):
        refused = project.call("resume", run.name, *arguments)
        assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
        assert set(run.iterdir()) == names
    done = project.call("resume", run.name, "--replan", "--set=placement=colocated")
    assert done.returncode == 0, done.stderr
    wait_until(RunDir(run).end_record(2).exists)
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["layout"]["placement"], plan["tokens"]) == ("colocated", None)
    kept = {"plan.json": "plan.until-attempt-1.json", "job.sbatch": "job.until-attempt-1.sbatch"}
    assert {name: (run / kept[name]).read_bytes() for name in before} == before
    assert (run / "job.sbatch").read_bytes() != before["job.sbatch"]
    assert (run / "logs" / "attempt-2" / "student.log").read_text().startswith("0: once more")


def test_it_ends_with_the_commands_to_follow_it(project: Project) -> None:
    run = ended_run(project)
    lines = project.call("resume", run.name).stdout.splitlines()
    assert lines[1:] == [f"  kd-launch status {run.name} --watch", f"  kd-launch logs {run.name} --follow", str(run)]


def test_what_runs_and_what_is_done_is_refused(project: Project) -> None:
    run = project.submit_impatiently(every=[["beat", 1], *FOREVER])
    written(run, "heartbeats/rank-00001.json")
    running = project.call("resume", run.name)
    assert (running.returncode, running.stdout) == (3, "")
    assert "has not ended; `kd-launch cancel` ends it" in running.stderr
    project.call("cancel", run.name)
    (RunDir(run).done_record(1)).write_text("{}")
    done = project.call("resume", run.name)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"is COMPLETED: its student is {run / 'model'}" in done.stderr
    assert RunDir(run).attempt_numbers() == [1]


def test_ranks_that_cannot_be_started_leave_the_run_as_it_was(project: Project) -> None:
    run = ended_run(project)
    plan = json.loads((run / "plan.json").read_text())
    plan["cluster"]["setup"] = "carriage\rreturn"
    (run / "plan.json").write_text(json.dumps(plan))
    text = (run / "state.json").read_text()
    before = set(run.rglob("*"))
    assert project.call("resume", run.name).returncode == 2
    assert set(run.rglob("*")) == before
    assert json.loads((run / "state.json").read_text()) == json.loads(text)


def test_a_run_that_was_moved_or_never_started(project: Project) -> None:
    run = ended_run(project)
    moved = run.rename(run.with_name("moved"))
    done = project.call("resume", str(moved))
    assert done.returncode == 3
    assert f"was moved here from {run}" in done.stderr
    (moved / "state.json").unlink()
    assert "never started" in project.call("resume", str(moved)).stderr


# On Slurm


def again(project: Project, slurm: FakeSlurm) -> Submitted:
    from conftest import NOW

    caller = Caller(NOW.replace(hour=23, minute=59, second=59, day=30), ["test"], project.folder, project.environ)
    return resume(RunDir(project.runs / NAME), caller, slurm, sleep=lambda _: None)


@pytest.fixture
def ended(place: Project) -> Project:  # noqa: F811
    """A run whose job 5 has ended; its tokens are not looked at."""
    submit(place, FakeSlurm({"sbatch": [SENT]}))
    forget_tokens(place.runs / NAME)
    return place


def files(project: Project) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in project.runs.rglob("*") if path.is_file()}


def test_the_same_script_is_sent_as_a_new_job(ended: Project) -> None:
    script = ended.runs / NAME / "job.sbatch"
    script.write_text("#!/bin/bash\n# changed by hand\n")
    write_json(ended.runs / NAME / "cancel.json", {"job_id": "5", "time": 0.0})
    slurm = FakeSlurm({"squeue": [UNKNOWN], "sbatch": [Says("Submitted batch job 9\n")]})
    assert again(ended, slurm).job_id == "9"
    assert slurm.called("sbatch") == [("sbatch", str(script))]
    assert script.read_text() == "#!/bin/bash\n# changed by hand\n"
    assert (state(ended).job_id, state(ended).earlier_jobs) == ("9", ("5",))
    assert not (ended.runs / NAME / "cancel.json").exists()  # else its next attempts would not be requeued
    assert again(ended, FakeSlurm({"sbatch": [Says("Submitted batch job 12\n")]})).job_id == "12"
    assert state(ended).earlier_jobs == ("5", "9")


@pytest.mark.parametrize("word", ["PENDING", "RUNNING", "COMPLETING"])
def test_a_job_that_slurm_holds_is_refused(ended: Project, word: str) -> None:
    before = files(ended)
    slurm = FakeSlurm({"squeue": [squeue("COMPLETED", word, name=NAME)]})
    with pytest.raises(CheckError, match=f"{NAME} has not ended: its job 5 is .*; `kd-launch cancel` ends it"):
        again(ended, slurm)
    assert slurm.called("sbatch") == []
    assert files(ended) == before


@pytest.mark.parametrize(
    ("slurm", "error"),
    [
        (FakeSlurm({"sbatch": [Says(stderr="sbatch: error: no\n", returncode=1)]}), SlurmRefusedError),
        (FakeSlurm({"sbatch": [DOWN]}), SlurmSilentError),
        (FakeSlurm({"sbatch": [LATE]}), SlurmSilentError),
        (FakeSlurm({"squeue": [DOWN]}), SlurmSilentError),
    ],
    ids=["refused", "down", "late", "squeue is down"],
)
def test_a_job_that_is_not_sent_leaves_the_run_as_it_was(
    ended: Project, slurm: FakeSlurm, error: type[KdLaunchError]
) -> None:
    write_json(ended.runs / NAME / "cancel.json", {"job_id": "5", "time": 0.0})
    before = files(ended)
    with pytest.raises(error):
        again(ended, slurm)
    assert files(ended) == before


def test_where_it_cannot_be_known_the_token_of_the_new_job_stays(ended: Project) -> None:
    with pytest.raises(MaybeSentError):
        again(ended, FakeSlurm({"squeue": [UNKNOWN, DOWN], "sbatch": [LATE]}))
    assert (state(ended).job_id, state(ended).earlier_jobs) == (None, ("5",))


def test_a_lost_job_that_runs_is_found_before_another_is_sent(ended: Project) -> None:
    write_state(RunDir(ended.runs / NAME), state(ended).model_copy(update={"job_id": None}))
    slurm = FakeSlurm({"squeue": [Says(row(ended)), squeue("RUNNING", job_id=7, name=NAME)]})
    with pytest.raises(CheckError, match="its job 7 is RUNNING"):
        again(ended, slurm)
    assert state(ended).job_id == "7"


def test_a_job_that_never_came_about_is_sent(ended: Project) -> None:
    """Its submit was killed before sbatch."""
    write_state(RunDir(ended.runs / NAME), state(ended).model_copy(update={"job_id": None}))
    assert again(ended, FakeSlurm({"sbatch": [Says("Submitted batch job 9\n")]})).job_id == "9"
    assert (state(ended).earlier_jobs, state(ended).job_id) == ((), "9")


def test_tokens_that_are_gone(ended: Project) -> None:
    run = RunDir(ended.runs / NAME)
    plan = json.loads(run.plan.read_text())
    run.plan.write_text(json.dumps({**plan, "tokens": {"train": "/gone", "eval": None}}))
    with pytest.raises(KdLaunchError, match=r"/gone/store.json: does not exist; run `kd-launch prepare`"):
        again(ended, FakeSlurm({"sbatch": [SENT]}))
    assert read_state(run) == state(ended)


def test_a_run_on_a_machine_that_cannot_be_seen(project: Project) -> None:
    run = ended_run(project)
    found = read_state(RunDir(run))
    assert found is not None
    assert found.controller is not None
    elsewhere = {"host": "elsewhere", "boot_id": "other"}
    controller = type(found.controller)(**{**vars(found.controller), **elsewhere})
    write_state(RunDir(run), found.model_copy(update={"controller": controller}))
    RunDir(run).end_record(1).unlink()
    caller = Caller.__new__(Caller)
    with pytest.raises(CheckError, match="runs on elsewhere: only there it can be seen"):
        resume(RunDir(run), caller, commands.run)

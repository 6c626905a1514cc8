"""From the run folder to the job: what is on disk at each moment, whatever sbatch says, and what is left after it."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NOW, Project
from fake_slurm import DOWN, LATE, TIMED_OUT, FakeSlurm, Says

from kd_launch.calibration.probing import as_probe, layout_of_probe, order_for
from kd_launch.errors import CheckError, MaybeSentError, SlurmRefusedError, SlurmSilentError, SpecError
from kd_launch.plan import TokenStores, read_run_plan
from kd_launch.preparation import Source, load_and_plan, load_inputs
from kd_launch.run_dir import RunDir, alone
from kd_launch.runs.lost_job import with_job_id
from kd_launch.runs.state import RunState, read_state
from kd_launch.sending import LOOKS_AFTER_S
from kd_launch.submission import Caller, Submitted, submit_slurm

SLURM = ["cluster.scheduler=slurm", "cluster.pools.0.partition=p", "cluster.hetjobs=true", "cluster.hetjob_steps=true"]
SENT = Says("Submitted batch job 5\n")
REFUSED = Says(stderr="sbatch: error: Batch job submission failed: Invalid account\n", returncode=1)
NAME = "distill-20260131-235959"


@pytest.fixture
def place(project: Project, tmp_path: Path) -> Project:
    """With an sbatch to be found on PATH; nothing calls it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").touch(mode=0o755)
    project.environ["PATH"] = f"{tools}:{project.environ['PATH']}"
    return project


def submit(place: Project, slurm: Any, given: str | None = None, slept: list[float] | None = None) -> Submitted:
    source = Source(place.config, SLURM, None, place.environ, place.folder)
    inputs, plan = load_and_plan(source)
    caller = Caller(NOW, ["test"], place.folder, place.environ)
    path = Path(given) if given else None
    sleep: Callable[[float], None] = (slept if slept is not None else []).append
    return submit_slurm(inputs, plan.chosen, TokenStores(train="/t"), path, caller, slurm, sleep)


def state(place: Project) -> RunState:
    found = read_state(RunDir(place.runs / NAME))
    assert found is not None
    return found


def row(place: Project, job_id: str = "7") -> str:
    """squeue's answer about a job of ours."""
    return f"{job_id}|2026-02-01T00:00:00|{place.runs / NAME / 'job.sbatch'}\n"


def test_a_job_that_was_taken(place: Project) -> None:
    done = submit(place, FakeSlurm({"sbatch": [SENT]}))
    run = RunDir(place.runs / NAME)
    assert json.loads(done.model_dump_json()) == {
        "run": NAME, "run_dir": str(run.path), "job_id": "5", "launch": "ranks", "script": str(run.script)
    }  # fmt: skip
    names = {"spec.yaml", "cluster.yaml", "plan.json", "job.sbatch", "state.json"}
    assert {path.name for path in run.path.iterdir()} == names | {"logs", "attempts", "failures", "heartbeats"}
    found = state(place)
    assert (found.scheduler, found.job_id, found.attempts, found.controller) == ("slurm", "5", 0, None)
    assert found.earlier_jobs == ()
    assert json.loads(run.plan.read_text())["tokens"]["train"] == "/t"


def test_a_probe_is_sent_as_a_run_is(place: Project) -> None:
    inputs = as_probe(load_inputs(Source(place.config, SLURM, None, place.environ, place.folder)))
    layout = layout_of_probe(inputs)
    order = order_for(inputs.spec, layout, inputs.teacher, inputs.student)
    caller, slurm = Caller(NOW, ["test"], place.folder, place.environ), FakeSlurm({"sbatch": [SENT]})
    done = submit_slurm(inputs, layout, None, None, caller, slurm, probe=order)
    assert (done.run, done.job_id) == ("distill-calibrate-20260131-235959", "5")
    run = RunDir(Path(done.run_dir))
    assert "--time=00:15:00" in run.script.read_text()
    assert read_run_plan(run.plan).probe == order


def test_the_token_is_on_disk_before_sbatch_is_called(place: Project) -> None:
    seen: list[RunState] = []

    def look() -> Says:
        seen.append(state(place))
        return SENT

    submit(place, FakeSlurm({"sbatch": [look]}))
    token = seen[0].token
    assert token is not None
    assert (seen[0].job_id, token.job_name, token.since) == (None, NAME, NOW.timestamp())
    assert token.script == str(place.runs / NAME / "job.sbatch")
    assert state(place) == seen[0].model_copy(update={"job_id": "5"})


def test_a_refusal_leaves_nothing(place: Project) -> None:
    with pytest.raises(SlurmRefusedError, match="Invalid account"):
        submit(place, FakeSlurm({"sbatch": [REFUSED]}))
    assert list(place.runs.iterdir()) == []


@pytest.mark.parametrize("says", [LATE, TIMED_OUT, Says("Thank you.\n")], ids=["late", "silent", "no id"])
def test_a_job_that_slurm_has_all_the_same_is_found(place: Project, says: Says) -> None:
    other = f"6|2026-02-01T00:00:00|{place.folder}/other/job.sbatch\n"
    slurm = FakeSlurm({"sbatch": [says], "squeue": [DOWN, Says(other), Says(other + row(place))]})
    assert submit(place, slurm).job_id == "7"
    assert state(place).job_id == "7"


def test_a_job_that_slurm_does_not_have_leaves_nothing(place: Project) -> None:
    slept: list[float] = []
    with pytest.raises(SlurmSilentError, match=f"Slurm has no job of {NAME}: try again") as silent:
        submit(place, FakeSlurm({"sbatch": [LATE]}), slept=slept)
    assert not isinstance(silent.value, MaybeSentError)
    assert sum(slept) >= 3  # a job that is late
    assert list(place.runs.iterdir()) == []


def test_where_it_cannot_be_known_the_folder_stays(place: Project) -> None:
    slurm = FakeSlurm({"sbatch": [LATE], "squeue": [DOWN]})
    with pytest.raises(MaybeSentError, match="`kd-launch cancel` of that folder ends the job"):
        submit(place, slurm)
    assert len(slurm.called("squeue")) == len(LOOKS_AFTER_S)
    assert state(place).job_id is None
    # Later somebody looks again.
    run = RunDir(place.runs / NAME)
    found = with_job_id(run, state(place), FakeSlurm({"squeue": [Says(row(place))]}))
    assert (found.job_id, state(place).job_id) == ("7", "7")


def test_slurm_that_nobody_reaches_leaves_nothing(place: Project) -> None:
    slurm = FakeSlurm({"sbatch": [DOWN], "squeue": [DOWN]})
    with pytest.raises(SlurmSilentError, match="try again when `sinfo` answers"):
        submit(place, slurm)
    assert slurm.called("squeue") == []
    assert list(place.runs.iterdir()) == []


def interrupt() -> Says:
    raise KeyboardInterrupt


def test_ctrl_c_while_sbatch_is_at_work_takes_the_job_back(place: Project) -> None:
    slurm = FakeSlurm({"sbatch": [interrupt], "squeue": [Says(row(place))]})
    with pytest.raises(KeyboardInterrupt):
        submit(place, slurm)
    assert slurm.called("scancel") == [("scancel", "7")]
    assert list(place.runs.iterdir()) == []


def test_ctrl_c_with_a_silent_slurm_keeps_the_folder(place: Project) -> None:
    with pytest.raises(MaybeSentError, match=r"Unable to contact .*, while a job was being taken back"):
        submit(place, FakeSlurm({"sbatch": [interrupt], "squeue": [DOWN]}))
    assert state(place).job_id is None


def test_a_disk_that_fills_up_after_sbatch_takes_the_job_back(place: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up() -> Says:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("kd_launch.sending.write_state", full)
        return SENT

    slurm = FakeSlurm({"sbatch": [fill_up], "squeue": [Says(row(place, "5"))]})
    with pytest.raises(OSError, match="No space left"):
        submit(place, slurm)
    assert slurm.called("scancel") == [("scancel", "5")]
    assert list(place.runs.iterdir()) == []


def test_a_submit_that_is_killed_between_sbatch_and_its_answer_leaves_a_job_that_is_found(place: Project) -> None:
    def killed() -> Says:
        os.kill(os.getpid(), signal.SIGKILL)
        return SENT

    process = multiprocessing.get_context("fork").Process(target=submit, args=(place, FakeSlurm({"sbatch": [killed]})))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = RunDir(place.runs / NAME)
    assert with_job_id(run, state(place), FakeSlurm({"squeue": [Says(row(place))]})).job_id == "7"


def test_runs_of_the_same_second_get_their_own_folders_and_names(place: Project) -> None:
    names = [submit(place, FakeSlurm({"sbatch": [SENT]})).run for _ in range(2)]
    assert names == [NAME, f"{NAME}-2"]
    assert f"--job-name={NAME}-2" in (place.runs / f"{NAME}-2" / "job.sbatch").read_text()


@pytest.mark.parametrize("given", ["100%j", "100%x", "a\nb", "hetjob-1", "back\\slash"])
def test_a_folder_that_no_directive_can_name_is_refused_before_sbatch(place: Project, given: str) -> None:
    slurm = FakeSlurm({"sbatch": [SENT]})
    with pytest.raises(SpecError):
        submit(place, slurm, given)
    assert slurm.called("sbatch") == []
    assert not (place.folder / given).exists()


def test_two_commands_do_not_send_one_run_at_once(place: Project) -> None:
    def meanwhile() -> Says:
        with (
            pytest.raises(CheckError, match="another kd-launch starts it just now"),
            alone(RunDir(place.runs / NAME)),
        ):
            pass
        return SENT

    submit(place, FakeSlurm({"sbatch": [meanwhile]}))
    with alone(RunDir(place.runs / NAME)):
        pass

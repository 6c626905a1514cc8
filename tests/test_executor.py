"""submitit's seams: that they are where we build on them, and what our classes do there."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import submitit
from fake_slurm import DOWN, LATE, TIMED_OUT, FakeSlurm, Says
from submitit.core.core import Executor, InfoWatcher, Job, PicklingExecutor
from submitit.core.utils import FailedSubmissionError
from submitit.local.local import Controller, LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from kd_launch import submit
from kd_launch.errors import MaybeSentError, SlurmRefusedError, SlurmSilentError
from kd_launch.run_dir import RunDir
from kd_launch.slurm import executor
from kd_launch.slurm.call import ask
from kd_launch.slurm.environ import for_questions, for_submission
from kd_launch.slurm.executor import HetSlurmExecutor, HetSlurmJob, HetSlurmWatcher, send

# What is overridden, and what calls it or is called by it: the first half of the SHA-256 of its source in 1.5.4.
SEAMS: dict[Any, str] = {
    Executor.submit: "a4266f3d94b653d4",
    Executor.map_array: "c106a8ec3fad2ad9",
    Executor._submit_delayed_batch: "c34308a5dc32dc73",
    PicklingExecutor.__init__: "8e9007a688ddd0ea",
    PicklingExecutor._submit_command: "286fa2f9891c2863",
    SlurmExecutor.__init__: "449f166ff96fd7af",
    SlurmExecutor._internal_process_submissions: "cd71325592178efb",
    SlurmExecutor._make_submission_file_text: "fa1ff3ec44d9876c",
    SlurmExecutor._make_submission_command: "24c31cb676bf8c20",
    SlurmExecutor._get_job_id_from_submission_command: "4ddda3f076ead565",
    SlurmExecutor._num_tasks: "18cb4fa4f3f3432a",
    SlurmExecutor.affinity.__func__: "6e8a1b603807bf5d",
    SlurmJob: "bdb88615d1fb4784",
    Job.__init__: "1dcc1dacd0a9e62d",
    Job._register_in_watcher: "07e81b705ed38023",
    Job.cancel: "40b67e661bf04e87",
    Job.done: "0df786ae9840309c",
    InfoWatcher.get_info: "d09c32de9603bb04",
    InfoWatcher.is_done: "ced4be800465841d",
    InfoWatcher.update: "25af45c51913cc65",
    SlurmInfoWatcher.get_state: "9f31785ceebcd070",
    SlurmInfoWatcher.read_info: "abe607abdfdc0242",
    SlurmInfoWatcher._make_command: "64ba09252af213cc",
    PicklingExecutor._internal_process_submissions: "ecea893a12f9b236",
    LocalExecutor.__init__: "c53dba3ba9098873",
    LocalExecutor._submit_command: "46539198e2708455",
    LocalJob.__init__: "b317f45897eef0a6",
    Controller.__init__: "9fbd024337eed8cf",
}


def fingerprint(code: Any) -> str:
    return hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:16]


def test_the_version_is_the_one_that_is_built_on() -> None:
    assert submitit.__version__ == "1.5.4"


@pytest.mark.parametrize("code", SEAMS, ids=lambda code: code.__qualname__)
def test_submitit_is_as_it_was_when_this_was_written(code: Any) -> None:
    assert fingerprint(code) == SEAMS[code], f"submitit changed {code.__qualname__}: read it, then executor, submit.py"


@pytest.mark.parametrize("ours", [HetSlurmExecutor, HetSlurmJob, HetSlurmWatcher, submit.LocalRunExecutor])
def test_what_is_overridden_is_there_with_the_same_arguments(ours: type) -> None:
    theirs = ours.__mro__[1]
    for name, code in vars(ours).items():
        if not name.startswith("__") and name not in ("_abc_impl", "send"):
            assert hasattr(theirs, name), f"submitit has no {theirs.__name__}.{name} any more"
            if inspect.isfunction(code):
                assert list(inspect.signature(code).parameters) == list(
                    inspect.signature(getattr(theirs, name)).parameters
                )


# Submitting


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / 'it\'s a "run"')
    made.path.mkdir()
    made.script.write_bytes(b"#!/bin/bash\n#SBATCH --nodes=1\n: \xe2\x82\xac\n")
    return made


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A PATH with an sbatch, which is looked for but never called."""
    program = tmp_path / "sbatch"
    program.touch(mode=0o755)
    return {"PATH": str(tmp_path)}


def sent(run: RunDir, environ: dict[str, str], says: Says) -> str:
    return send(run, 6, environ, FakeSlurm({"sbatch": [says]}))


@pytest.mark.parametrize(
    "said",
    [
        "Submitted batch job 123\n",
        "Submitted batch job 123 on cluster big\n",
        "You are at 3 of 5 jobs\nWelcome!\nSubmitted batch job 123\nBye\n",
        "123\n",
        "123;big\n",
        "--> Verifying job 7 of yours...OK\nSubmitted batch job 123\n",
        "Submitted batch job 123\n123\n",
    ],
)
def test_the_id_among_what_a_site_prints(run: RunDir, environ: dict[str, str], said: str) -> None:
    assert sent(run, environ, Says(said, "sbatch: warning: can't honor --ntasks-per-node\n")) == "123"


@pytest.mark.parametrize(
    "said", ["", "Sent.\n", "job 5 of 10\n", "Submitted batch job 1\nSubmitted batch job 2\n", "1\n2\n"]
)
def test_no_id_is_not_guessed(run: RunDir, environ: dict[str, str], said: str) -> None:
    with pytest.raises(MaybeSentError, match="sbatch named no job"):
        sent(run, environ, Says(said))
    with pytest.raises(FailedSubmissionError):
        HetSlurmExecutor._get_job_id_from_submission_command(said)


def test_a_refusal_is_shown_whole(run: RunDir, environ: dict[str, str]) -> None:
    words = (
        "sbatch: error: Give an account:\nsbatch: error:   -A abc\n\nsbatch: error: Batch job submission failed: No\n"
    )
    with pytest.raises(SlurmRefusedError) as refused:
        sent(run, {**environ, "SBATCH_ACCOUNT": "abc"}, Says(stderr=words, returncode=1))
    assert str(refused.value).splitlines() == [
        "sbatch: error: Give an account:", "sbatch: error:   -A abc", "sbatch: error: Batch job submission failed: No",
        "SBATCH_ACCOUNT of your environment is not used: the script says everything",
    ]  # fmt: skip
    with pytest.raises(SlurmRefusedError, match="on stdout only"):
        sent(run, environ, Says("on stdout only\n", returncode=1))
    with pytest.raises(SlurmRefusedError, match="exit code 3"):
        sent(run, environ, Says(returncode=3))


@pytest.mark.parametrize("says", [LATE, TIMED_OUT, Says(returncode=-9)])
def test_an_sbatch_that_was_not_answered_may_have_been_heard(run: RunDir, environ: dict[str, str], says: Says) -> None:
    with pytest.raises(MaybeSentError):
        sent(run, environ, says)


def test_an_sbatch_that_reached_nobody_was_not_heard(run: RunDir, environ: dict[str, str]) -> None:
    with pytest.raises(SlurmSilentError) as silent:
        sent(run, environ, DOWN)
    assert not isinstance(silent.value, MaybeSentError)


def test_a_machine_without_sbatch(run: RunDir) -> None:
    with pytest.raises(SlurmSilentError, match="sbatch is not found: is this machine part of a Slurm cluster"):
        send(run, 6, {"PATH": "/nothing"}, FakeSlurm({}))


def test_slurm_gets_the_run_s_own_script_and_nothing_is_left_beside_it(run: RunDir, environ: dict[str, str]) -> None:
    slurm = FakeSlurm({"sbatch": [Says("Submitted batch job 5\n")]})
    job = HetSlurmExecutor(run, 6, environ, slurm).send()
    assert slurm.calls == [("sbatch", str(run.script))]
    assert [path.name for path in run.path.iterdir()] == ["job.sbatch"]
    assert (type(job), job.job_id, job.num_tasks) == (HetSlurmJob, "5", 6)
    text = HetSlurmExecutor(run, 6, environ, slurm)._make_submission_file_text("", "")
    assert text.encode() == run.script.read_bytes()


def test_there_are_no_arrays(run: RunDir, environ: dict[str, str]) -> None:
    slurm = FakeSlurm({})
    with pytest.raises(NotImplementedError, match="cannot be arrays"):
        HetSlurmExecutor(run, 6, environ, slurm).map_array(print, [1, 2])
    assert slurm.calls == []


# The environment


def test_nothing_of_a_job_around_the_caller_leaks(run: RunDir, environ: dict[str, str]) -> None:
    kept = {"SLURM_CONF": "/c", "SLURM_CLUSTERS": "big", "SLURM_JWT": "t", "HOME": "/h", "KD_LAUNCH_RUNS": "r"}
    gone = [
        "SLURM_JOB_ID", "SLURM_NTASKS", "SLURMD_NODENAME", "SBATCH_ACCOUNT", "SRUN_DEBUG", "SLURM_TIME_FORMAT",
        "SQUEUE_STATES", "_SLURM_SPANK_OPTION_pyxis_container_image", "SUBMITIT_EXECUTOR", "RANK", "MASTER_ADDR",
        "PMI_RANK", "PMI2_X", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID",
        "KD_LAUNCH_ATTEMPT",
    ]  # fmt: skip
    slurm = FakeSlurm({"sbatch": [Says("Submitted batch job 5\n")]})
    send(run, 6, {**environ, **kept, **dict.fromkeys(gone, "1")}, slurm)
    assert slurm.environ == {**environ, **kept}


def test_questions_are_asked_as_they_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict.fromkeys(["SQUEUE_FORMAT", "SCANCEL_INTERACTIVE", "SACCT_FORMAT", "SLURM_TIME_FORMAT"], "1")
    assert for_questions({**options, "SLURM_CONF": "/c", "RANK": "0"}) == {"SLURM_CONF": "/c", "RANK": "0"}
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    slurm = FakeSlurm({})
    ask(slurm, ["squeue"])
    assert "PATH" in slurm.environ
    assert "SLURM_TIME_FORMAT" not in slurm.environ
    assert for_submission({"OMPI_MCA_btl": "tcp", "SPANKY": "x"}) == {"OMPI_MCA_btl": "tcp", "SPANKY": "x"}


# The watcher


def info(*rows: str) -> dict[str, dict[str, str]]:
    watcher = HetSlurmWatcher()
    return dict(watcher.read_info("\n".join(["JobID|State|NodeList", *rows]).encode()))


def test_a_het_job_is_one_job_with_the_worst_state() -> None:
    found = info(
        "28+0|COMPLETED|a[1-2]",
        "28+0.batch|COMPLETED|a1",
        "28.0+0|FAILED|a1",
        "28+1|TIMEOUT|b1",
        "30|PENDING|None assigned",
    )
    assert found == {
        "28": {"JobID": "28", "State": "TIMEOUT", "NodeList": "a[1-2],b1", "Held": ""},
        "30": {"JobID": "30", "State": "PENDING", "NodeList": "", "Held": "yes"},
    }
    assert info("5|CANCELLED by 1000|a1")["5"]["State"] == "CANCELLED"
    assert info("5|NEWSTATE|a1")["5"]["State"] == "UNKNOWN"
    assert info("torn", "5") == {}
    assert HetSlurmWatcher().read_info("") == {}


@pytest.mark.parametrize(
    ("leader", "student", "done"),
    [("RUNNING", "TIMEOUT", False), ("COMPLETED", "RUNNING", False), ("COMPLETED", "TIMEOUT", True)],
)
def test_a_job_is_done_when_all_of_it_is(leader: str, student: str, done: bool) -> None:
    watcher = HetSlurmWatcher()
    watcher._info_dict = info(f"28+0|{leader}|a", f"28+1|{student}|b")
    assert watcher.is_done("28", mode="cache") is done


def test_submitit_asks_about_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = HetSlurmWatcher()
    watcher.register_job("28")
    assert watcher._make_command() == ["sacct", "-o", "JobID,State,NodeList", "--parsable2", "-j", "28"]
    monkeypatch.setattr(
        "subprocess.check_output", lambda *_, **__: b"JobID|State|NodeList\n28+0|FAILED|a\n28+1|COMPLETED|b\n"
    )
    assert watcher.get_state("28", mode="force") == "FAILED"


def test_the_module_is_the_only_one_that_knows_submitit_s_slurm() -> None:
    package = Path(executor.__file__).parents[1]
    users = [path.name for path in package.rglob("*.py") if "submitit.slurm" in path.read_text()]
    assert users == ["executor.py"]

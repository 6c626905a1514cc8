"""Slurm's states, node lists and job ids; its programs' text, recorded and public; and how they are asked."""

from pathlib import Path

import pytest
from fake_slurm import DOWN, TIMED_OUT, FakeSlurm, Says

from kd_launch.errors import SlurmSilentError
from kd_launch.slurm.job_text import JobId, read_job_id, read_sacct, read_squeue, read_time
from kd_launch.slurm.jobs import FoundJob, ask_by_name, ask_jobs, look_up
from kd_launch.slurm.nodes import expand, fold
from kd_launch.slurm.reasons import in_words
from kd_launch.slurm.states import SEVERITY, read_state_word, worst

RECORDED = Path(__file__).parent / "slurm_output"
UNKNOWN_ID = Says(stderr="slurm_load_jobs error: Invalid job id specified\n", returncode=1)
NO_ACCOUNTS = Says(stderr="Slurm accounting storage is disabled\n", returncode=1)
DATABASE_DOWN = Says(
    stderr="sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection to host:db:6819: "
    "Connection refused\nsacct: error: Sending PersistInit msg: Connection refused\n"
    "sacct: error: Problem talking to the database: Connection refused\n",
    returncode=1,
)


# States


@pytest.mark.parametrize(
    ("text", "word", "state", "holds"),
    [
        ("PENDING", "PENDING", "PENDING", True),
        ("PD", "PENDING", "PENDING", True),
        ("R", "RUNNING", "RUNNING", True),
        ("CG", "COMPLETING", "RUNNING", True),
        ("CF", "CONFIGURING", "PENDING", True),
        ("S", "SUSPENDED", "PENDING", True),
        ("ST", "STOPPED", "PENDING", True),
        ("RS", "RESIZING", "RUNNING", True),
        ("SI", "SIGNALING", "RUNNING", True),
        ("SO", "STAGE_OUT", "RUNNING", True),
        ("RQ", "REQUEUED", "REQUEUED", True),
        ("RC", "REQUEUED_CRON", "REQUEUED", True),
        ("RF", "REQUEUE_FED", "REQUEUED", True),
        ("RH", "REQUEUE_HOLD", "REQUEUED", True),
        ("SE", "SPECIAL_EXIT", "REQUEUED", True),
        ("RD", "RESV_DEL_HOLD", "PENDING", True),
        ("EXPEDITING", "EXPEDITING", "REQUEUED", True),
        ("CD", "COMPLETED", "COMPLETED", False),
        ("CA", "CANCELLED", "CANCELLED", False),
        ("CANCELLED by 1000", "CANCELLED", "CANCELLED", False),
        ("F", "FAILED", "FAILED", False),
        ("TO", "TIMEOUT", "TIMEOUT", False),
        ("NF", "NODE_FAIL", "NODE_FAIL", False),
        ("PR", "PREEMPTED", "PREEMPTED", False),
        ("BF", "BOOT_FAIL", "NODE_FAIL", False),
        ("DL", "DEADLINE", "TIMEOUT", False),
        ("OOM", "OUT_OF_MEMORY", "OUT_OF_MEMORY", False),
        ("RV", "REVOKED", "CANCELLED", False),
        ("LAUNCH_FAILED", "LAUNCH_FAILED", "FAILED", False),
        ("POWER_UP_NODE", "POWER_UP_NODE", "PENDING", True),
        # A flag stands before the base state, whatever their order; the failure to launch after it.
        ("COMPLETED,COMPLETING", "COMPLETING", "RUNNING", True),
        ("NODE_FAIL,LAUNCH_FAILED", "NODE_FAIL", "NODE_FAIL", False),
        ("PENDING,LAUNCH_FAILED", "PENDING", "PENDING", True),
        ("RUNNING,CONFIGURING,POWER_UP_NODE", "CONFIGURING", "PENDING", True),
        # A word of a version to come is no proof that the job has ended.
        ("MELTING", "MELTING", "UNKNOWN", True),
        ("?", "?", "UNKNOWN", True),
        ("", "", "UNKNOWN", True),
    ],
)
def test_words_for_states(text: str, word: str, state: str, holds: bool) -> None:
    found = read_state_word(text)
    assert (found.word, found.state, found.holds) == (word, state, holds)


def test_the_worst_of_some_states_is_the_one_that_explains_the_others() -> None:
    assert worst(["COMPLETED", "TIMEOUT"]) == "TIMEOUT"
    assert worst(["FAILED", "CANCELLED"]) == "CANCELLED"
    assert worst(["RUNNING", "COMPLETED"]) == "RUNNING"
    assert worst(["RUNNING", "PENDING"]) == "PENDING"
    assert worst([]) == "UNKNOWN"
    assert len(SEVERITY) == len(set(SEVERITY)) == 11


# Nodes and numbers


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("(null)", ()),
        ("None assigned", ()),
        ("Unknown", ()),
        ("n1", ("n1",)),
        ("n[1-2,10],a1", ("n1", "n2", "n10", "a1")),
        ("nid[0008-0010]", ("nid0008", "nid0009", "nid0010")),
        ("rack[0-1]n[1,3]", ("rack0n1", "rack0n3", "rack1n1", "rack1n3")),
        ("n[1-", ()),
        ("@all", ("@all",)),
    ],
)
def test_node_lists(text: str, names: tuple[str, ...]) -> None:
    assert expand(text) == names
    assert not names or expand(fold(names)) == tuple(sorted(names, key=names.index)) or "a1" in names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123", JobId("123", None, None, None)),
        ("123+1", JobId("123", 1, None, None)),
        ("123+0.batch", JobId("123", 0, None, "batch")),
        ("123_4", JobId("123", None, "4", None)),
        ("123_[2-4%25]", JobId("123", None, "[2-4%25]", None)),
        ("123_[1-100,...]", JobId("123", None, "[1-100,...]", None)),
        ("123.0", JobId("123", None, None, "0")),
        ("123.0+1", JobId("123", None, None, "0+1")),
        ("123.extern", JobId("123", None, None, "extern")),
        ("123.ext+", JobId("123", None, None, "ext+")),
        ("123+", None),
        ("JOBID", None),
        ("CLUSTER: one", None),
        ("", None),
    ],
)
def test_job_ids(text: str, expected: JobId | None) -> None:
    assert read_job_id(text) == expected


def test_times() -> None:
    assert read_time("2026-11-24T08:39:27") == pytest.approx(read_time("2026-11-24T08:39:26") or 0, abs=1.01)
    assert [read_time(text) for text in ("N/A", "Unknown", "None", "NONE", "")] == [None] * 5


def test_reasons_in_words() -> None:
    assert in_words("QOSMaxGRESPerUser") == "a limit of the account or QOS is reached (QOSMaxGRESPerUser)"
    assert in_words("ReqNodeNotAvail, UnavailableNodes:n[1-2]").endswith("(ReqNodeNotAvail, UnavailableNodes:n[1-2])")
    assert in_words("SomethingNew") == "SomethingNew"
    assert in_words("Nodes required for job are DOWN, DRAINED") == "Nodes required for job are DOWN, DRAINED"


# Recorded text

PENDING, RUNNING = ("PENDING", "PENDING"), ("RUNNING", "RUNNING")


@pytest.mark.parametrize(
    ("name", "squeue", "sacct", "held"),
    [
        ("waits-for-nodes", PENDING, PENDING, True),
        ("waits-for-another-job", PENDING, PENDING, True),
        ("begins-later", PENDING, (), True),
        ("held", PENDING, PENDING, True),
        ("requeued", PENDING, ("REQUEUED", "REQUEUED"), True),
        ("requeued-after-node-failure", PENDING, PENDING, True),
        ("requeued-and-held", RUNNING, ("REQUEUED", "REQUEUED"), True),
        ("suspended", PENDING, PENDING, True),
        ("component-cancelled", ("RUNNING", "CANCELLED"), ("RUNNING", "CANCELLED"), True),
        ("time-limit-of-one-component", ("RUNNING", "TIMEOUT"), ("RUNNING", "TIMEOUT"), True),
        ("failed", ("FAILED", "FAILED"), ("FAILED", "FAILED"), False),
        ("cancelled", ("CANCELLED", "CANCELLED"), ("CANCELLED", "CANCELLED"), False),
        ("cancelled-while-waiting", ("CANCELLED", "CANCELLED"), ("CANCELLED", "CANCELLED"), False),
        ("one-component-failed", ("FAILED",), ("FAILED",), False),
    ],
)
def test_recorded_answers(name: str, squeue: tuple[str, ...], sacct: tuple[str, ...], held: bool) -> None:
    (job,) = read_squeue((RECORDED / f"{name}.squeue").read_text()).values()
    assert tuple(component.state for component in job.components) == squeue
    assert job.held is held
    text = RECORDED / f"{name}.sacct"
    jobs = read_sacct(text.read_text()) if text.exists() else {}
    assert [tuple(component.state for component in one.components) for one in jobs.values()] == (
        [sacct] if sacct else []
    )
    assert not any(one.held for one in jobs.values()), "what squeue does not know is held no more"


def test_every_recorded_answer_is_read_by_a_test() -> None:
    told = Path(__file__).read_text()
    assert [path.name for path in RECORDED.glob("*.s*") if f'"{path.stem}' not in told] == []


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_all_that_is_told_of_a_waiting_job() -> None:
    job = read_squeue(recorded("waits-for-nodes.squeue"))["18"]
    assert [component.job_id for component in job.components] == ["18+0", "18+1"]
    teacher = job.components[0]
    assert (teacher.offset, teacher.slurm_state, teacher.nodes, teacher.reason) == (0, "PENDING", (), "Resources")
    assert (teacher.start_estimate, teacher.restarts, teacher.source) == ("2026-11-24T08:46:04", 0, "squeue")
    assert read_squeue(recorded("held.squeue"))["18"].components[1].start_estimate is None
    assert read_squeue(recorded("requeued.squeue"))["3"].components[0].restarts == 1


def test_two_jobs_of_three_that_were_asked_for() -> None:
    jobs = read_squeue(recorded("two-jobs.squeue"))
    assert {leader: [part.nodes for part in job.components] for leader, job in jobs.items()} == {
        "3": [("big1", "big2"), ("small1",)], "5": [("big1", "big2"), ("small1",)],
    }  # fmt: skip
    component = jobs["3"].components[0]
    assert (component.reason, component.start_estimate, component.name) == (None, None, "het")
    assert read_sacct(recorded("two-jobs.sacct")).keys() == {"3", "5"}


@pytest.mark.parametrize(("name", "state"), [("just-started", "PENDING"), ("just-ended", "COMPLETED")])
def test_an_accounting_that_lags_behind_knows_neither_components_nor_the_name(name: str, state: str) -> None:
    (job,) = read_sacct(recorded(f"{name}.sacct")).values()
    assert [(part.job_id, part.state, part.name) for part in job.components] == [(job.leader, state, None)]
    assert not job.held


# Public text: each a form that a published text shows, in the fields that are asked for here


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # torchx, torchx/schedulers/test/slurm_scheduler_test.py: a heterogeneous job with its steps
        (
            "170+0|COMPLETED|n1|a\n170+0.batch|COMPLETED|n1|batch\n170+0.0|COMPLETED|n1|x\n170+1|COMPLETED|n2|b\n"
            "170+1.0|COMPLETED|n2|x\n",
            {"170": ["COMPLETED", "COMPLETED"]},
        ),
        # The same file: who cancelled it, and a torn last line
        ("88|CANCELLED by 2000|n1|a\n88.batch|CANCELLED|n1|batch\n    ", {"88": ["CANCELLED"]}),
        # submitit, submitit/slurm/test_slurm.py: a cut step name, tasks of arrays, states in their short form
        (
            "56|RUNNING|n1|a\n56.ext+|RUNNING|n1|extern\n20_0|RUNNING|n1|a\n20_[2-4%25]|PENDING||a\n12_1|R|n1|a\n",
            {"56": ["RUNNING"], "20": ["PENDING"], "12": ["RUNNING"]},
        ),
        # Slurm, doc/html/heterogeneous_jobs.shtml: sacct of three components, one row missing
        ("93+0|RUNNING|nid1|bash\n93+2|RUNNING|nid3|bash\n", {"93": ["RUNNING", "RUNNING"]}),
        # Slurm, src/plugins/accounting_storage/mysql/as_mysql_job.c: a job that never got nodes
        ("94|CANCELLED by 0|None assigned|a\n", {"94": ["CANCELLED"]}),
        ("", {}),
        ("\n\n", {}),
        ("95|RUNN", {}),
        ("96", {}),
    ],
)
def test_public_forms_of_sacct(text: str, expected: dict[str, list[str]]) -> None:
    found = read_sacct(text)
    assert {leader: [part.state for part in job.components] for leader, job in found.items()} == expected


@pytest.mark.parametrize(
    ("row", "reason", "state"),
    [
        # ReFrame, reframe/core/schedulers/slurm.py: a reason with a comma and nodes
        ("7|PD|0|N/A||a|ReqNodeNotAvail, UnavailableNodes:nid00[408,411-415]", None, "PENDING"),
        # Slurm, src/slurmctld/job_scheduler.c, since 20.11 and with `%s` since 25.11
        ("7|PENDING|0|N/A||a|Nodes required for job are DOWN, DRAINED or reserved for jobs in higher", None, "PENDING"),
        # Slurm, src/slurmctld/job_mgr.c: requeued after its nodes could not start it
        ("7|PENDING|3|N/A|(null)|a|launch failed requeued held", None, "PENDING"),
        ("7|RUNNING|0|2026-11-24T08:37:18|n1|a|(null)", "", "RUNNING"),
        ("7|PENDING|0|N/A||a|a bar | in a plugin's words", None, "PENDING"),
    ],
)
def test_public_forms_of_squeue(row: str, reason: str | None, state: str) -> None:
    component = read_squeue(f"CLUSTER: one\n{row}\n8|RUNN")["7"].components[0]
    assert component.state == state
    assert component.reason == (row.split("|", 6)[6] if reason is None else None)


# Asking


def slurm(squeue: Says, sacct: Says = Says()) -> FakeSlurm:  # noqa: B008 - a frozen value
    return FakeSlurm({"squeue": [squeue], "sacct": [sacct]})


def test_one_squeue_for_all_and_one_sacct_for_what_it_does_not_know() -> None:
    programs = slurm(Says("5+0|RUNNING|0|N/A|n1|a|None\n5+1|RUNNING|0|N/A|n2|a|None\n"), Says("7|FAILED|n1|a\n"))
    found = ask_jobs(programs, ["5", "7", "9", "5"])
    assert {leader: (job.held, job.components[0].source) for leader, job in found.items()} == {
        "5": (True, "squeue"), "7": (False, "sacct"),
    }  # fmt: skip
    asked = [(argv[0], argv[argv.index("-j") + 1]) for argv in programs.calls]
    assert asked == [("squeue", "5,7,9"), ("sacct", "7,9")]


def test_no_program_is_started_for_nothing() -> None:
    programs = slurm(Says("5|RUNNING|0|N/A|n1|a|None\n"))
    assert ask_jobs(programs, []) == {}
    assert ask_jobs(programs, ["not a number"]) == {}
    assert programs.calls == []
    ask_jobs(programs, ["5"])
    look_up(programs, ["6"], [])
    assert [argv[0] for argv in programs.calls] == ["squeue", "squeue"]


def test_a_job_that_was_not_asked_for_is_not_answered() -> None:
    """squeue answers a component's own number with the whole job."""
    whole_job = Says("5+0|RUNNING|0|N/A|n1|a|None\n5+1|RUNNING|0|N/A|n2|a|None\n")
    assert ask_jobs(slurm(whole_job), ["6"]) == {}


def test_an_unknown_number_is_an_answer() -> None:
    assert ask_jobs(slurm(UNKNOWN_ID, Says("")), ["9"]) == {}
    assert ask_jobs(slurm(UNKNOWN_ID, NO_ACCOUNTS), ["9"]) == {}


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        (slurm(TIMED_OUT), "squeue gave no answer within"),
        (slurm(DOWN), "Unable to contact slurm controller"),
        (slurm(UNKNOWN_ID, DATABASE_DOWN), "Connection refused"),
        (slurm(UNKNOWN_ID, TIMED_OUT), "sacct gave no answer within"),
        (slurm(Says(stderr="squeue: error: Munge decode failed: Expired credential\n", returncode=1)), "Munge decode"),
    ],
)
def test_a_slurm_that_does_not_answer(programs: FakeSlurm, words: str) -> None:
    with pytest.raises(SlurmSilentError, match=words) as caught:
        ask_jobs(programs, ["9"])
    assert caught.value.exit_code == 6


def test_what_squeue_knows_is_kept_when_the_accounting_does_not_answer() -> None:
    found = look_up(slurm(Says("5|RUNNING|0|N/A|n1|a|None\n"), DATABASE_DOWN), ["5", "7"], ["5", "7"])
    assert found.jobs.keys() == {"5"}
    assert "Connection refused" in str(found.silent)


def test_a_job_is_found_by_its_name() -> None:
    queue = Says("7+0|2026-11-24T08:37:18|/runs/it's | a/job.sbatch\n7+1|2026-11-24T08:37:18|/runs/x/job.sbatch\n")
    since = read_time("2026-11-24T08:37:00")
    assert since is not None
    assert ask_by_name(slurm(queue), "chat", since) == [FoundJob("7", "/runs/it's | a/job.sbatch", since + 18)]
    programs = slurm(Says(""), Says("7+0|2026-11-24T08:37:18\n7+1|2026-11-24T08:37:18\n8|2026-11-20T00:00:00\n"))
    assert ask_by_name(programs, "chat", since) == [FoundJob("7", None, since + 18)]
    assert programs.called("sacct")[0][5:8] == ("2026-11-24T08:35:00", "--name", "chat")
    with pytest.raises(SlurmSilentError):
        ask_by_name(slurm(DOWN), "chat", since)

"""The preflight's questions to Slurm, on a site as it was recorded; tests/slurm/test_check.py asks a real one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Project
from recorded_site import RecordedSlurm, replaced

from kd_launch.checks.finding import Finding, Level, Place, error_of, failure, fine, warning
from kd_launch.checks.preflight import check
from kd_launch.checks.shared import judge, mount_of, parse_mounts
from kd_launch.errors import CheckError, SlurmSilentError
from kd_launch.local.machine import Machine
from kd_launch.preparation import Source, load_inputs, plan_inputs

FIGURES = {"nodes": 2, "gpu": "A100-SXM-80", "cpus_per_node": 8, "mem": "0", "inter_node_gb_per_s": 25.0}
POOLS = [
    {"name": "big", "partition": "teach", "gpus_per_node": 4, **FIGURES},
    {"name": "small", "partition": "train", "gpus_per_node": 2, **FIGURES},
]
ELSEWHERE = replaced("NodeAddr=127.0.0.1", "NodeAddr=10.0.0.1")
ROOT = "29 1 8:1 / / rw,relatime shared:1 - {} /dev/sda1 rw\n"


@pytest.fixture
def on_slurm(project: Project) -> Project:
    cluster = {"scheduler": "slurm", "python": "./python", "time_limit": "00:20:00", "pools": POOLS}
    (project.folder / "cluster.yaml").write_text(json.dumps({**cluster, "environment": {"FAKE_RANKS": "{}"}}))
    spec = json.loads(project.config.read_text())
    spec |= {
        "teacher": {"model": "./teacher", "pool": "big", "gpus": 8},
        "student": {"model": "./student", "pool": "small", "gpus": 2},
    }
    spec["training"]["global_batch_size"] = 16
    project.config.write_text(json.dumps(spec))
    return project


def look(project: Project, *settings: str, slurm: RecordedSlurm | None = None, mounts: str = "") -> dict[str, Finding]:
    """Without what is said of the tokens, which nobody has prepared here."""
    inputs = load_inputs(Source(project.config, settings, None, project.environ, project.folder))
    place = Place(
        Machine(2, 8.0, ()), project.environ, project.folder, slurm or RecordedSlurm(), "login1", mounts,
        lambda name: name,
    )  # fmt: skip
    found = list(check(inputs, lambda: plan_inputs(inputs).chosen, place))
    names = [finding.what for finding in found]
    assert len(set(names)) == len(names), "each thing is said once"
    return {finding.what: finding for finding in found if finding.what != "tokens"}


def told(found: dict[str, Finding], level: Level) -> dict[str, str]:
    return {what: finding.says for what, finding in found.items() if finding.level is level}


def test_everything_is_looked_at(on_slurm: Project) -> None:
    slurm = RecordedSlurm()
    found = look(on_slurm, slurm=slurm)
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert list(found)[list(found).index("slurm") :] == [
        "slurm",
        *(f"teacher: {topic}" for topic in ("partition", "account", "qos", "time limit", "nodes", "memory")),
        *(f"student: {topic}" for topic in ("partition", "account", "qos", "time limit", "nodes", "memory")),
        *("nodes of both roles", "limits", "launch", "requeue", "end signal", "files on the nodes"),
        "sbatch --test-only",
    ]
    assert found["slurm"].says == "22.05.8 of cluster box"
    assert found["teacher: partition"].says == "teach, t[1-2]"
    assert found["nodes of both roles"].says == "2 for the teacher and 1 for the student, of 4 that fit either"
    assert found["sbatch --test-only"].says.endswith("in partition teach. That is no proof that the job starts")
    (script,) = slurm.scripts
    assert script.startswith("#!/bin/bash\n")
    assert "#SBATCH hetjob\n" in script


def test_tokens_are_prepared_before(on_slurm: Project) -> None:
    inputs = load_inputs(Source(on_slurm.config, (), None, on_slurm.environ, on_slurm.folder))
    place = Place(Machine(2, 8.0, ()), on_slurm.environ, on_slurm.folder, RecordedSlurm())
    found = {one.what: one for one in check(inputs, lambda: plan_inputs(inputs).chosen, place)}
    assert found["tokens"].level is Level.FAIL
    assert found["tokens"].says.endswith("is not prepared; give `kd-launch prepare`")


def test_the_layout_line_names_a_split_teacher(on_slurm: Project) -> None:
    found = look(on_slurm, "teacher.parallelism={replicas: 4, tp: 2}")
    assert "4 replicas x tp 2" in told(found, Level.OK)["layout"]


# Slurm itself


def test_a_silent_slurm_is_said_after_everything_else(on_slurm: Project) -> None:
    slurm = RecordedSlurm()
    slurm.silent["scontrol"] = "scontrol: error: Unable to contact slurm controller (connect failure)\n"
    found = look(on_slurm, slurm=slurm)
    assert list(found)[-2:] == ["python", "slurm"]
    assert "Unable to contact slurm controller" in told(found, Level.SILENT)["slurm"]
    assert found["slurm"].line().startswith("FAIL slurm: ")
    assert isinstance(error_of(list(found.values())), SlurmSilentError)


def test_a_slurm_that_falls_silent_at_the_end(on_slurm: Project) -> None:
    slurm = RecordedSlurm()
    slurm.silent["sbatch"] = "allocation failure: Socket timed out on send/recv operation\n"
    assert told(look(on_slurm, slurm=slurm), Level.SILENT).keys() == {"sbatch --test-only"}


def test_a_slurm_that_refuses_to_tell(on_slurm: Project) -> None:
    slurm = RecordedSlurm()
    slurm.silent["scontrol"] = "slurm_load_ctl_conf error: Access/permission denied\n"
    found = look(on_slurm, slurm=slurm)
    assert "Access/permission denied; partitions, accounts" in told(found, Level.FAIL)["slurm"]


def test_the_error_that_ends_a_command() -> None:
    found = [fine("a", "1"), warning("b", "2"), failure("c", "3"), failure("d", "4")]
    assert error_of(found[:2]) is None
    assert str(error_of(found)) == "c: 3\nd: 4"
    assert isinstance(error_of(found), CheckError)
    assert str(error_of(found, "2 of these would fail")) == "2 of these would fail"
    silent = Finding(Level.SILENT, "slurm", "5")
    assert isinstance(error_of([*found, silent]), SlurmSilentError)


def test_sbatch_has_the_last_word(on_slurm: Project) -> None:
    slurm = RecordedSlurm()
    slurm.trial = (1, "sbatch: error: Not today\nallocation failure: Requested node configuration is not available\n")
    found = look(on_slurm, slurm=slurm)
    assert told(found, Level.FAIL) == {
        "sbatch --test-only": "Slurm refuses the job: Not today; allocation failure: Requested node configuration is "
        "not available"
    }
    # Where a node is out of order, it refuses what sbatch takes.
    slurm.changes["nodes"] = replaced("NodeName=t1", "NodeName=t1 State=DOWN* Reason=fan")
    found = look(on_slurm, slurm=slurm)
    assert told(found, Level.FAIL) == {}
    assert told(found, Level.WARNING).keys() == {"teacher: nodes", "sbatch --test-only"}


def test_a_site_that_changes_jobs_and_chooses_partitions(on_slurm: Project) -> None:
    lua = RecordedSlurm(config=replaced("JobSubmitPlugins        = (null)", "JobSubmitPlugins        = lua"))
    found = look(on_slurm, "cluster.pools.0.partition=null", slurm=lua)
    assert told(found, Level.FAIL) == {}
    notes = told(found, Level.NOTE)
    assert notes["submission"] == "the site may change a job as it comes in (JobSubmitPlugins = lua)"
    assert notes["teacher: partition"] == "none is asked for; the site chooses it (JobSubmitPlugins = lua)"
    assert look(on_slurm, "cluster.pools.0.partition=null")["teacher: partition"].says == "teach, t[1-2]"


# Partitions, accounts, time


def test_hidden_partitions_are_not_suggested(on_slurm: Project) -> None:
    says = told(look(on_slurm, "cluster.pools.0.partition=hiden"), Level.FAIL)["teacher: partition"]
    assert "did you mean" not in says
    assert "hidden" not in says


def test_the_users_groups_open_a_partition(on_slurm: Project) -> None:
    slurm = RecordedSlurm()
    slurm.groups = "kdbox\0daemon\0"
    assert told(look(on_slurm, "cluster.pools.0.partition=groups", slurm=slurm), Level.FAIL) == {}


def test_accounts_below_one_that_is_listed(on_slurm: Project) -> None:
    slurm = RecordedSlurm(
        associations=lambda text: text + "sub|kdbox|||normal|normal|||||||\n",
        accounts=lambda text: text + "sub|||other|normal||||||||\n",
    )
    settings = ("cluster.account=sub", "cluster.pools.0.partition=private")
    found = look(on_slurm, *settings, slurm=slurm)
    assert told(found, Level.FAIL) == {}
    assert told(found, Level.WARNING) == {
        "teacher: partition": "private takes account other; that sub is below it counts in newer Slurms only"
    }


def test_without_accounting_nothing_is_known(on_slurm: Project) -> None:
    slurm = RecordedSlurm()
    slurm.silent["sacctmgr"] = "sacctmgr: You are not running a supported accounting_storage plugin\n"
    found = look(on_slurm, "cluster.account=any", slurm=slurm)
    assert told(found, Level.FAIL) == {}
    assert told(found, Level.NOTE)["teacher: account"].endswith("account 'any' cannot be looked at")
    assert "limits" not in found


def test_a_user_without_an_account(on_slurm: Project) -> None:
    slurm = RecordedSlurm(associations=lambda _: "")
    slurm.default_account = ""
    says = told(look(on_slurm, slurm=slurm), Level.FAIL)["student: account"]
    assert says == "kdbox has no account on this cluster; ask the site for one"


def test_what_slurm_does_not_enforce_is_no_failure(on_slurm: Project) -> None:
    lax = RecordedSlurm(config=replaced("associations,limits,qos", "none"))
    found = look(on_slurm, "cluster.account=taem", slurm=lax)
    assert told(found, Level.FAIL) == {}
    assert "Slurm does not enforce it here" in told(found, Level.WARNING)["teacher: account"]
    found = look(on_slurm, "slurm.qos=onejob", slurm=lax)
    assert "QOS onejob lets a user have 1 running" in told(found, Level.NOTE)["limits"]


def test_a_qos_may_lift_the_limits_of_a_partition(on_slurm: Project) -> None:
    settings = ("cluster.pools.0.partition=short", "slurm.qos=long")
    assert "teacher: time limit" in told(look(on_slurm, *settings), Level.FAIL)
    lifted = RecordedSlurm(qos=replaced("long||", "long|PartitionTimeLimit,PartitionMaxNodes|"))
    assert told(look(on_slurm, *settings, slurm=lifted), Level.FAIL) == {}
    one = ("cluster.pools.0.partition=single", "slurm.qos=long")
    assert "teacher: partition" in told(look(on_slurm, *one), Level.FAIL)
    assert told(look(on_slurm, *one, slurm=lifted), Level.FAIL) == {}


def test_without_a_time_limit_the_partition_has_one(on_slurm: Project) -> None:
    found = told(look(on_slurm, "cluster.time_limit=null"), Level.WARNING)
    assert "partition teach ends the job after 00:30:00 (DefaultTime)" in found["teacher: time limit"]


# Nodes and memory


def test_nodes_that_both_wait_for(on_slurm: Project) -> None:
    """Each component could start; both together have to wait for the node."""
    settings = ("cluster.pools.1.partition=both", "cluster.pools.0.partition=both", "cluster.pools.0.gpus_per_node=2",
                "teacher.gpus=4", "student.gpus=4")  # fmt: skip
    assert told(look(on_slurm, *settings), Level.WARNING) == {
        "nodes of both roles": "2 for the teacher and 2 for the student make 4, and 3 of the 4 that fit either are up: "
        "the job waits. Out of order: s2"
    }


def test_excluded_nodes_do_not_count(on_slurm: Project) -> None:
    says = told(look(on_slurm, "cluster.pools.0.sbatch=['--exclude=t1']"), Level.FAIL)["teacher: nodes"]
    assert "2 are asked for, but partition teach has 1 (t2)" in says


def test_a_constraint_that_only_slurm_understands(on_slurm: Project) -> None:
    found = look(on_slurm, "cluster.pools.0.constraint='a100&'")
    assert told(found, Level.FAIL) == {}
    assert told(found, Level.NOTE) == {"teacher: constraint": "'a100&' is not understood here; Slurm judges it"}


def test_a_component_that_lacks_a_node_of_its_own_is_said_once(on_slurm: Project) -> None:
    gpus = ("cluster.pools.1.partition=teach", "cluster.pools.1.gpus_per_node=8", "student.gpus=8")
    found = told(look(on_slurm, *gpus), Level.FAIL)
    assert found.keys() == {"student: nodes"}


@pytest.mark.parametrize(
    ("mem", "level", "words"),
    [
        ("null", Level.WARNING, "about 12 GiB of a node, but it does not ask, and the site's default gives 3.91"),
        ("2G", Level.WARNING, "but mem gives 2"),
        ("14G", Level.OK, "14 GiB of a node"),
        ("'0'", Level.OK, "all of a node's, 15.62 GiB"),
    ],
)
def test_memory_that_a_component_gets(on_slurm: Project, mem: str, level: Level, words: str) -> None:
    found = look(on_slurm, f"cluster.pools.0.mem={mem}")["teacher: memory"]
    assert (found.level, words in found.says) == (level, True), found.says


def test_memory_that_nobody_counts(on_slurm: Project) -> None:
    slurm = RecordedSlurm(config=replaced("CR_CORE_MEMORY", "CR_CORE"))
    assert "teacher: memory" not in look(on_slurm, "cluster.pools.0.mem=null", slurm=slurm)


# The launch


def test_a_template_of_the_sites_own(on_slurm: Project) -> None:
    (on_slurm.folder / "own.j2").write_text(
        "#!/bin/bash\n{% for l in job.components[0] %}#SBATCH {{ l }}\n{% endfor %}x\n"
    )
    found = told(look(on_slurm, "cluster.template=own.j2"), Level.FAIL)
    assert found["launch"].startswith("hetjob needs 2 components, but the template makes 1; see `template`")
    (on_slurm.folder / "own.j2").write_text("#!/bin/bash\n#SBATCH -p teach\n#SBATCH hetjob\n#SBATCH -p train\n")
    assert told(look(on_slurm, "cluster.template=own.j2"), Level.WARNING)["end signal"].startswith("there is none")
    (on_slurm.folder / "own.j2").write_text("#!/bin/bash\n#SBATCH --comment='x\n")
    assert "No closing quotation" in told(look(on_slurm, "cluster.template=own.j2"), Level.FAIL)["directives"]


@pytest.mark.parametrize("problem", ["absent", "broken", "unknown value"])
def test_a_template_that_cannot_be_filled(on_slurm: Project, problem: str) -> None:
    text = {"broken": "{% if %}", "unknown value": "{{ job.nothing }}"}.get(problem)
    if text is not None:
        (on_slurm.folder / "own.j2").write_text(text)
    found = look(on_slurm, "cluster.template=own.j2")
    assert "own.j2" in told(found, Level.FAIL)["script"]
    assert "slurm" not in found


def test_a_job_that_does_not_come_back(on_slurm: Project) -> None:
    settings = "cluster.pools.0.sbatch=['--no-requeue']"
    assert "teacher has no --requeue; give" in told(look(on_slurm, settings), Level.WARNING)["requeue"]
    never = RecordedSlurm(config=replaced("JobRequeue              = 1", "JobRequeue              = 0"))
    assert "but the script says --requeue" in told(look(on_slurm, slurm=never), Level.NOTE)["requeue"]


@pytest.mark.parametrize("word", ["hetjob", "packjob"])
def test_a_name_that_older_slurms_misread(on_slurm: Project, word: str) -> None:
    found = told(look(on_slurm, f"name=my-{word}"), Level.FAIL)
    assert f"holds the word {word}, which older Slurms take for the start of another component" in found["script"]


# Time


def slow(on_slurm: Project, *settings: str, step: float) -> dict[str, Finding]:
    """What is found when a step is predicted to take so long."""
    inputs = load_inputs(Source(on_slurm.config, settings, None, on_slurm.environ, on_slurm.folder))
    chosen = plan_inputs(inputs).chosen
    seconds = chosen.step_seconds.model_copy(update={"p10": step, "p50": step, "p90": step})
    layout = chosen.model_copy(update={"step_seconds": seconds})
    place = Place(Machine(2, 8.0, ()), on_slurm.environ, on_slurm.folder, RecordedSlurm(), "login1")
    found = check(replace(inputs), lambda: layout, place)
    return {finding.what: finding for finding in found}


def test_time_around_the_end_signal(on_slurm: Project) -> None:
    assert slow(on_slurm, step=1.0)["end signal"].level is Level.OK
    lost = slow(on_slurm, "cluster.signal_before_end_s=4", step=1.0)["end signal"]
    assert (lost.level, "to agree on the last step and save it may take 5 s" in lost.says) == (Level.WARNING, True)
    short = slow(on_slurm, "cluster.time_limit='3'", step=61.0)["end signal"]
    assert (short.level, "leaves 60 s, but a step takes 61 s or more" in short.says) == (Level.FAIL, True)
    never = slow(on_slurm, "cluster.time_limit='2'", step=1.0)["end signal"]
    assert (never.level, "that is when the job starts" in never.says) == (Level.FAIL, True)
    none = slow(on_slurm, "cluster.signal_before_end_s=0", step=1.0)["end signal"]
    assert (none.level, none.says.startswith("there is none")) == (Level.WARNING, True)


def test_a_run_that_is_longer_than_its_job(on_slurm: Project) -> None:
    long = slow(on_slurm, step=110.0)["time limit of the run"]
    assert long.level is Level.OK
    assert long.says.startswith("10 steps take about 00:18:20, but the time limit is 00:20:00: about 2 jobs, each from")
    assert "time limit of the run" not in slow(on_slurm, step=100.0)
    unsaved = slow(on_slurm, "cluster.signal_before_end_s=4", "checkpoint.every_steps=20", step=130.0)
    assert unsaved["time limit of the run"].level is Level.FAIL
    assert "a job makes about 9 steps, fewer than checkpoint.every_steps 20" in unsaved["time limit of the run"].says


# What the nodes see


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("lustre", Level.OK, "run root, models and interpreter lie on network file systems"),
        ("nfs4", Level.OK, ""),
        ("tmpfs", Level.FAIL, "is in this host's memory (tmpfs), and the job runs elsewhere, on t1 for one"),
        ("ext4", Level.FAIL, "is in /tmp, of which every host has its own"),
    ],
)
def test_a_run_root_that_the_nodes_may_not_see(on_slurm: Project, kind: str, level: Level, words: str) -> None:
    assert on_slurm.folder.is_relative_to("/tmp")
    found = look(on_slurm, slurm=RecordedSlurm(nodes=ELSEWHERE), mounts=ROOT.format(kind))
    name = "files on the nodes" if level is Level.OK else "run_root on the nodes"
    assert (found[name].level, words in found[name].says) == (level, True)
    # Models and interpreter lie in the same folder.
    assert len(told(found, level)) == (4 if level is Level.FAIL else len(found))


def test_one_machine_that_is_the_whole_cluster(on_slurm: Project) -> None:
    assert look(on_slurm, mounts=ROOT.format("tmpfs"))["files on the nodes"].level is Level.OK


@pytest.mark.parametrize(
    ("path", "kind", "level"),
    [
        ("/home/ann/runs", "xfs", Level.WARNING),
        ("/home/ann/runs", "fuse.unheard_of", Level.NOTE),
        ("/home/ann/runs", "", Level.NOTE),
        ("/usr/bin/python3", "ext4", Level.NOTE),
        ("/scratch/local/x", "xfs", Level.FAIL),
        ("/tmp/x", "nfs", Level.OK),
        ("/dev/shm/x", "ext4", Level.FAIL),
    ],
)
def test_what_can_be_told_of_a_path(path: str, kind: str, level: Level) -> None:
    mounts = parse_mounts(ROOT.format(kind)) if kind else ()
    assert judge(Path(path), mounts, tmp_fs="/scratch/local")[0] is level


def test_mounts_with_blanks_over_and_below_each_other(tmp_path: Path) -> None:
    inner = tmp_path / "a b" / "c"
    inner.mkdir(parents=True)
    text = ROOT.format("ext4") + "".join(
        f"{number} 29 0:1 / {str(point).replace(' ', chr(92) + '040')} rw - {kind} x rw\n"
        for number, (point, kind) in enumerate([(tmp_path, "nfs"), (inner.parent, "xfs"), (inner.parent, "lustre")], 30)
    )
    mounts = parse_mounts(f"{text}torn line\n")
    assert len(mounts) == 4
    assert [getattr(mount_of(path, mounts), "type", None) for path in (inner, tmp_path, Path("/"))] == [
        "lustre",
        "nfs",
        "ext4",
    ]
    assert mount_of(inner, ()) is None

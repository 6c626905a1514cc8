"""The scripts: golden text, what bash and sbatch make of it, and values that try to break out of their quotes."""

import difflib
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from render_cases import (
    CASES,
    CPU,
    H100,
    MIXED,
    RUN_DIR,
    Case,
    cluster_of,
    golden_path,
    hetjob,
    layout_of,
    pool,
    role,
    shared,
    spec_of,
)

from kd_launch import commands
from kd_launch.cluster import Cluster
from kd_launch.errors import SpecError
from kd_launch.run_dir import job_name
from kd_launch.scripts.render import find_template
from kd_launch.scripts.shell_check import refuse_broken_shell

HERE = Path(__file__).parent
SHELLCHECK = Path(sysconfig.get_path("scripts"), "shellcheck")


# Golden text


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    path, text = golden_path(name), CASES[name].text()
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    golden = path.read_text()
    difference = difflib.unified_diff(
        golden.splitlines(), text.splitlines(), str(path), "rendered now (UPDATE_GOLDEN=1 keeps it)", lineterm=""
    )
    assert golden == text, "\n" + "\n".join(difference)


def test_every_golden_file_has_its_case() -> None:
    assert sorted(path.name for path in (HERE / "golden").iterdir()) == sorted(golden_path(n).name for n in CASES)


@pytest.mark.parametrize("name", CASES)
def test_bash_and_shellcheck_accept(name: str) -> None:
    subprocess.run(["bash", "-n", golden_path(name)], check=True)
    checked = subprocess.run(
        [SHELLCHECK, "--shell=bash", "--severity=style", golden_path(name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_shellcheck_objects_to_a_lost_quote() -> None:
    text = golden_path("local").read_text().replace('"${@:3}"', "${@:3}")
    checked = subprocess.run(
        [SHELLCHECK, "--shell=bash", "--severity=style", "-"], input=text, text=True, capture_output=True, check=False
    )
    assert checked.returncode == 1


# What sbatch reads


def sbatch_words(line: str) -> list[str]:
    """The words of a directive as sbatch's _get_argument reads them: a backslash escapes in every kind of quotes."""
    words: list[str] = []
    word, quote, escaped = None, "", False
    for character in line:
        if escaped:
            word, escaped = (word or "") + character, False
        elif character == "\\":
            word, escaped = word or "", True
        elif quote:
            quote = "" if character == quote else quote
            word = (word or "") + character if quote else word
        elif character in "\"'":
            word, quote = word or "", character
        elif character.isspace() and character.isascii():
            words, word = words + ([word] if word is not None else []), None
        elif word is None and character == "#":
            return words
        else:
            word = (word or "") + character
    assert not quote, f"sbatch would refuse an open quote: {line}"
    return words + ([word] if word is not None else [])


def directives(text: str) -> list[dict[str, str]]:
    """Each component's options, read up to the first line that is no comment, as sbatch does."""
    components: list[dict[str, str]] = [{}]
    for line in text.split("\n"):
        if line.startswith("#SBATCH"):
            words = sbatch_words(line.removeprefix("#SBATCH"))
            if words == ["hetjob"]:
                components.append({})
            for word in words if words != ["hetjob"] else []:
                name, _, value = word.partition("=")
                components[-1][name] = value
        elif line.strip() and not line.startswith("#"):
            break
    return components


def test_each_component_is_in_full() -> None:
    teacher, student = directives(hetjob().text())
    only_the_batch_scripts = {"--output", "--open-mode", "--signal", "--exclusive", "--gres", "--qos"}
    assert set(teacher) - set(student) == only_the_batch_scripts
    assert set(student) - set(teacher) == {"--constraint", "--gpus-per-node"}
    assert (teacher["--partition"], teacher["--gres"], teacher["--account"]) == ("a100", "gpu:a100:8", "team")
    assert (student["--partition"], student["--gpus-per-node"], student["--account"]) == ("h100", "4", "team-h")
    assert teacher["--output"] == str(RUN_DIR / "logs/batch.log")


def test_the_run_overrides_pool_and_cluster() -> None:
    cluster = cluster_of(pool("h100", account="of-pool", qos="of-pool"), account="of-cluster", time_limit="10")
    (options,) = directives(replace(CASES["hetstep"], cluster=cluster, spec=spec_of()).text())
    assert (options["--account"], options["--qos"], options["--time"]) == ("of-pool", "of-pool", "10")
    spec = spec_of(account="of-run", qos="of-run", time_limit="1-00")
    (options,) = directives(replace(CASES["hetstep"], cluster=cluster, spec=spec).text())
    assert (options["--account"], options["--qos"], options["--time"]) == ("of-run", "of-run", "1-00")


def test_whole_nodes_that_come_with_their_gpus_and_cpu_pools_ask_for_none() -> None:
    for changes in ({"gpu_directive": None}, {"gpu": "CPU"}):
        (options,) = directives(replace(CASES["hetstep"], cluster=cluster_of(pool("h100", **changes))).text())
        assert not [name for name in options if "gpu" in name]


def test_cores_that_are_not_known_are_not_asked_for() -> None:
    text = replace(CASES["hetstep"], cluster=cluster_of(pool("h100", cpus_per_node=None))).text()
    assert "cpus-per-task" not in text


@pytest.mark.parametrize(
    ("name", "nodes", "per_node", "srun"),
    [
        ("ranks-2-2", "1", "4", "--nodes=1 --ntasks=4 --ntasks-per-node=4"),
        ("ranks-5-3", "1", "8", "--nodes=1 --ntasks=8 --ntasks-per-node=8"),
        ("ranks-middle-node-shared", "3", "8", "--nodes=3 --ntasks=24 --ntasks-per-node=8"),
        ("ranks-last-node-smaller", "2", "8", "--nodes=2 --ntasks=12 --distribution=plane=8"),
        ("colocated", "2", "8", "--nodes=2 --ntasks=16 --ntasks-per-node=8"),
    ],
)
def test_tasks_per_node_are_all_gpus_in_use_on_a_node(name: str, nodes: str, per_node: str, srun: str) -> None:
    text = CASES[name].text()
    (options,) = directives(text)
    assert (options["--nodes"], options["--ntasks-per-node"], options["--gpus-per-node"]) == (nodes, per_node, per_node)
    assert srun in text


# What bash runs


@pytest.fixture
def bench(tmp_path: Path) -> "Bench":
    return Bench(tmp_path)


@dataclass(frozen=True)
class Rank:
    """What one rank was started with."""

    argv: list[str]
    env: dict[str, str]


class Bench:
    """A folder in which scripts run with a stand-in for srun, apptainer and the ranks."""

    def __init__(self, root: Path) -> None:
        self.root, self.record, self.run_dir = root, root / "record", root / "runs" / "a run"
        self.record.mkdir()
        (self.run_dir / "logs").mkdir(parents=True)
        self._program("srun", f'exec {shlex.quote(sys.executable)} -IS {shlex.quote(str(HERE / "fake_srun.py"))} "$@"')
        self._program("module", 'echo "module $*" >>"$FAKE_RECORD/modules"')
        self._program("apptainer", 'printf "%s\\0" "$@" >"$FAKE_RECORD/apptainer"; shift 4; exec "$@"')
        self.python = str(self.rank_program(self.root))

    def _program(self, name: str, text: str) -> Path:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return path

    def rank_program(self, folder: Path) -> Path:
        """A `python` in a folder, which notes what it was started with."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "python"
        path.write_text((HERE / "fake_rank.sh").read_text())
        path.chmod(0o755)
        return path

    def variables(self, **variables: str) -> dict[str, str]:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": "/nowhere", "FAKE_RECORD": str(self.record), **variables}

    def words(self, name: str) -> list[str]:
        """What a stand-in noted, word by word."""
        return (self.record / name).read_bytes().decode().split("\0")[:-1]

    def run(self, case: Case, **variables: str) -> subprocess.CompletedProcess[str]:
        """Renders for this folder and runs the script to its end."""
        case = replace(case, run_dir=self.run_dir, python=self.python)
        script = self.root / "script"
        script.write_text(case.text())
        return subprocess.run(
            ["bash", str(script)],
            cwd=self.root,
            env=self.variables(**variables),
            capture_output=True,
            text=True,
            check=False,
        )

    def ranks(self) -> list["Rank"]:
        """What each rank noted, in rank order."""
        numbers = sorted(int(path.name.removeprefix("argv-")) for path in self.record.glob("argv-*"))
        return [Rank(self.words(f"argv-{n}"), dict(w.split("=", 1) for w in self.words(f"env-{n}"))) for n in numbers]

    def roles(self) -> list[str]:
        return [rank.argv[-1] for rank in self.ranks()]

    def log(self, role_name: str, attempt: int = 1) -> list[str]:
        return (self.run_dir / f"logs/attempt-{attempt}/{role_name}.log").read_text().splitlines()


def lines_of(role_name: str, ranks: range, width: int = 1) -> list[str]:
    """A role's log when its ranks come one after another."""
    said = (f"role {role_name}", "no newline at the end")
    return [f"{rank:{width}}: {line}" for rank in ranks for line in said]


@pytest.mark.parametrize(
    ("name", "teachers", "students"),
    [
        ("hetjob", 16, 4),
        ("hetstep", 24, 8),
        ("two_steps", 16, 4),
        ("ranks-2-2", 2, 2),
        ("ranks-5-3", 5, 3),
        ("ranks-last-node-smaller", 8, 4),
    ],
)
def test_every_rank_has_its_role_and_every_role_its_log(bench: Bench, name: str, teachers: int, students: int) -> None:
    case = CASES[name]
    if name == "hetjob":
        case = replace(case, cluster=case.cluster.model_copy(update={"setup": "module load cuda\n"}))
    done = bench.run(case, FAKE_DONE="1")
    assert done.returncode == 0, done.stderr
    world = teachers + students
    width = len(str(world - 1))
    assert bench.roles() == ["teacher"] * teachers + ["student"] * students
    width = 1 if name == "two_steps" else width
    assert bench.log("teacher") == lines_of("teacher", range(teachers), width)
    assert bench.log("student") == lines_of("student", range(teachers, world), width)
    srun_log = (bench.run_dir / "logs/attempt-1/srun.log").read_text()
    assert set(srun_log.splitlines()) == {"srun: warning: words of its own"}
    for rank in bench.ranks():
        assert rank.argv[:3] == ["-m", "kd_launch.runtime", str(bench.run_dir)]
        assert rank.env["KD_LAUNCH_ATTEMPT"] == "1"


def test_colocated_ranks_have_both_roles(bench: Bench) -> None:
    assert bench.run(CASES["colocated"], FAKE_DONE="1").returncode == 0
    assert bench.roles() == ["both"] * 16
    assert bench.log("student") == lines_of("both", range(16), 2)


def test_pools_of_their_own_setup_run_it_and_nothing_of_the_other(bench: Bench) -> None:
    case = CASES["hetjob-pool-setup"]
    student_pool = case.cluster.pools[1].model_copy(update={"python": None})
    case = replace(case, cluster=case.cluster.model_copy(update={"pools": (case.cluster.pools[0], student_pool)}))
    done = bench.run(case, FAKE_DONE="1")
    assert done.returncode == 0, done.stderr
    assert bench.roles() == ["teacher"] * 8 + ["student"] * 16
    assert [rank.env["NCCL_SOCKET_IFNAME"] for rank in bench.ranks()] == ["ib0"] * 8 + ["it's ib1"] * 16
    modules = (bench.record / "modules").read_text().splitlines()
    assert modules == ["module load cuda/11.8"] * 8 + ["module load cuda/12.6"] * 16


def test_a_setup_that_fails_starts_nothing(bench: Bench) -> None:
    done = bench.run(replace(CASES["hetstep"], cluster=cluster_of(pool("h100"), setup="false\ntrue")))
    assert done.returncode == 1
    assert not (bench.record / "srun.json").exists()


def test_apptainer_runs_the_rank(bench: Bench) -> None:
    done = bench.run(CASES["hetstep-apptainer"], FAKE_DONE="1")
    assert done.returncode == 0, done.stderr
    words = (bench.record / "apptainer").read_text().split("\0")
    assert words[:5] == ["exec", "--nv", "--bind=/shared:/shared", "/shared/kd.sif", bench.python]
    assert bench.roles() == ["teacher"] * 16 + ["student"] * 4


def test_pyxis_is_asked_for_on_every_part(bench: Bench) -> None:
    bench.run(CASES["hetjob-pyxis"])
    words = json.loads((bench.record / "srun.json").read_text())
    for part in (words[: words.index(":")], words[words.index(":") :]):
        assert "--container-image=/shared/kd launch.sqsh" in part
        assert "--container-mounts=/shared:/shared,/scratch:/tmp" in part


def test_exit_0_of_a_local_script_needs_the_done_record(bench: Bench) -> None:
    done = bench.run(CASES["local"])
    assert done.returncode == 1
    assert "wrote no done.json" in done.stderr
    assert bench.run(CASES["local"], FAKE_DONE="1").returncode == 0


SLURM = ["hetjob", "hetstep", "ranks-2-2", "two_steps", "colocated"]


@pytest.mark.parametrize("name", SLURM)
def test_the_caretaker_watches_srun_and_decides_by_its_status(bench: Bench, name: str) -> None:
    done = bench.run(CASES[name], FAKE_FAILS="1", FAKE_NEXT="fail")
    assert done.returncode == 1
    assert bench.words("decide") == ["decide", str(bench.run_dir), "1", "7"]
    verb, run_dir, attempt, *pids = bench.words("watch")
    assert (verb, run_dir, attempt) == ("watch", str(bench.run_dir), "1")
    assert sorted(pids) == sorted(path.name.removeprefix("srun-") for path in bench.record.glob("srun-*"))
    assert len(pids) == (2 if name == "two_steps" else 1)


@pytest.mark.parametrize(("word", "status"), [("done", 0), ("fail", 1), ("", 1), ("nonsense", 1)])
def test_only_done_is_exit_0(bench: Bench, word: str, status: int) -> None:
    assert bench.run(CASES["hetjob"], FAKE_NEXT=word or " ").returncode == status


def test_a_watch_that_fails_costs_nothing_but_the_watch(bench: Bench) -> None:
    done = bench.run(CASES["hetjob"], FAKE_WATCH="1", FAKE_NEXT="done")
    assert done.returncode == 0
    assert "attempt 1 is not watched" in done.stderr
    assert len(bench.ranks()) == 20


def test_where_a_full_disk_takes_no_words_the_script_goes_on(bench: Bench) -> None:
    bench.run(CASES["hetjob"], FAKE_NEXT="done")
    variables = bench.variables(FAKE_WATCH="1", FAKE_NEXT="done")
    with Path("/dev/full").open("w") as full:
        assert (
            subprocess.run(["bash", bench.root / "script"], env=variables, cwd=bench.root, stderr=full).returncode == 0
        )


def test_a_decision_that_fails_requeues_nothing(bench: Bench) -> None:
    bench._program("scontrol", 'touch "$FAKE_RECORD/scontrol"')
    case = CASES["hetjob"]
    pools = tuple(pool.model_copy(update={"python": "/nowhere/python"}) for pool in case.cluster.pools)
    done = bench.run(replace(case, cluster=case.cluster.model_copy(update={"pools": pools})), SLURM_JOB_ID="12")
    assert done.returncode == 1
    assert not (bench.record / "scontrol").exists()


def test_a_requeued_script_waits_for_slurm_to_end_it(bench: Bench) -> None:
    bench._program("scontrol", 'printf "%s\\0" "$@" >"$FAKE_RECORD/scontrol"; sleep 0.2; kill "$PPID"')
    done = bench.run(CASES["hetjob"], FAKE_NEXT="requeue", SLURM_JOB_ID="12")
    assert done.returncode == -signal.SIGTERM
    assert bench.words("scontrol") == ["requeue", "12"]


def test_a_refused_requeue_is_said_and_is_exit_1(bench: Bench) -> None:
    bench._program("sleep", "exit 0")
    bench._program("scontrol", 'echo again >>"$FAKE_RECORD/scontrol"; exit 1')
    done = bench.run(CASES["hetjob"], FAKE_NEXT="requeue", SLURM_JOB_ID="12")
    assert done.returncode == 1
    assert "kd-launch: Slurm has not requeued job 12" in done.stderr
    assert (bench.record / "scontrol").read_text().splitlines() == ["again", "again"]


@pytest.mark.parametrize("name", ["hetstep", "ranks-2-2", "local"])
def test_each_start_is_an_attempt(bench: Bench, name: str) -> None:
    (bench.run_dir / "attempts/attempt-2").mkdir(parents=True)
    assert bench.run(CASES[name], FAKE_DONE="1").returncode == 0
    assert bench.run(CASES[name], FAKE_DONE="1").returncode == 0
    assert bench.ranks()[0].env["KD_LAUNCH_ATTEMPT"] == "3"
    assert sorted(path.name for path in (bench.run_dir / "logs").iterdir()) == ["attempt-1", "attempt-3"]
    assert bench.log("student", 3) == bench.log("student", 1)


def test_attempts_that_cannot_be_made_end_the_script_with_the_reason(bench: Bench) -> None:
    (bench.run_dir / "attempts").mkdir()
    (bench.run_dir / "attempts/attempt-1").touch()
    done = bench.run(CASES["hetstep"])
    assert done.returncode == 1
    assert "attempt-1" in done.stderr
    assert not bench.ranks()


def test_environment_of_ranks(bench: Bench) -> None:
    assert bench.run(CASES["local"], FAKE_DONE="1").returncode == 0
    for i, rank in enumerate(bench.ranks()):
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "HF_HUB_OFFLINE")
        assert [rank.env[name] for name in names] == [str(i), str(i), "3", "3", "2", "1"]
    assert bench.roles() == ["teacher", "teacher", "student"]
    assert sorted(bench.log("teacher")) == sorted(lines_of("teacher", range(2)))
    assert bench.log("student") == lines_of("student", range(2, 3))


def test_local_ends_with_its_first_failing_rank(bench: Bench) -> None:
    done = bench.run(CASES["local"], FAKE_FAILS="1", FAKE_SLEEPS="0 2")
    assert done.returncode == 7
    assert sorted(path.name for path in bench.record.glob("terminated-*")) == ["terminated-0", "terminated-2"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_local_leaves_no_rank_behind(bench: Bench, number: signal.Signals, status: int) -> None:
    script = bench.root / "script"
    script.write_text(replace(CASES["local"], run_dir=bench.run_dir, python=bench.python).text())
    # What is ignored when bash starts, as under nohup, it cannot trap.
    process = subprocess.Popen(
        ["bash", str(script)], env=bench.variables(FAKE_SLEEPS="0 1 2"),
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    while len(list(bench.record.glob("asleep-*"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == status
    assert len(list(bench.record.glob("terminated-*"))) == 3


def test_local_colocated(bench: Bench) -> None:
    assert bench.run(CASES["local-colocated"], FAKE_DONE="1").returncode == 0
    assert bench.roles() == ["both", "both"]


# Values that try to break out

TINY = {
    "hetjob": Case(cluster_of(*MIXED), layout_of("hetjob", role("a100", 1, 1), role("h100", 1, 1))),
    "hetstep": Case(H100, layout_of("hetstep", role("h100", 1, 1), role("h100", 1, 1))),
    "ranks": shared(role("h100", 1, 1), role("h100", 1, 1), 1),
    "local": replace(CASES["local"], layout=layout_of(None, role("here", 1, 1), role("here", 1, 1), nodes=1)),
}
HOSTILE = [
    *("two words", " ends in blanks ", "it's", 'say "hi"', "\"'mixed'\"", "$HOME", "${HOME}", "$(touch canary)"),
    *("`touch canary`", ";touch canary", "& touch canary #", "| touch canary", "> canary", "'; touch canary; '"),
    *(
        '"; touch canary; "',
        "back\\slash",
        "ends in \\",
        "\\'; touch canary; \\'",
        "$'touch\\x20canary'",
        "!!",
        "*",
        "~",
    ),
    *("#comment", "#SBATCH --wrap=x", "a\n#SBATCH --wrap=x", "a\ntouch canary", "a\r\nb", "tab\there", "bell\x07"),
    *(
        "-dash",
        "--chdir=/",
        ":",
        "a:b",
        "a,b",
        "%j",
        "%%",
        "{n}",
        "{{ job }}",
        "{% raw %}",
        "{#",
        "EOF",
        "ünïcödé 名字",
    ),
    *("line\u2028separator", "\x85", "hetjob", "my Packjob.1"),
]
CONTROL = {value for value in HOSTILE if any(ord(c) < 32 for c in value)}
SEPARATORS = {"hetjob", "my Packjob.1"}


@pytest.fixture
def quick(bench: Bench) -> Bench:
    """A bench whose srun only notes its words."""
    bench._program("srun", 'printf "%s\\0" "$@" >"$FAKE_RECORD/srun"')
    return bench


def refused(act: Callable[[], object]) -> str:
    """The message of a refusal; "" when it was accepted."""
    try:
        act()
    except (SpecError, ValidationError) as error:
        return str(error)
    return ""


def with_pool(**changes: Any) -> Cluster:
    return cluster_of(MIXED[0] | changes, MIXED[1])


DIRECTIVES: dict[str, tuple[str, Callable[[str], Mapping[str, Any]]]] = {
    "slurm.account": ("--account", lambda v: {"spec": spec_of(account=v)}),
    "slurm.qos": ("--qos", lambda v: {"spec": spec_of(qos=v)}),
    "slurm.reservation": ("--reservation", lambda v: {"spec": spec_of(reservation=v)}),
    "slurm.dependency": ("--dependency", lambda v: {"spec": spec_of(dependency=v)}),
    "slurm.mail_user": ("--mail-user", lambda v: {"spec": spec_of(mail_user=v)}),
    "slurm.comment": ("--comment", lambda v: {"spec": spec_of(comment=v)}),
    "cluster.account": ("--account", lambda v: {"cluster": cluster_of(*MIXED, account=v)}),
    "pool.account": ("--account", lambda v: {"cluster": with_pool(account=v)}),
    "pool.partition": ("--partition", lambda v: {"cluster": with_pool(partition=v)}),
    "pool.mem": ("--mem", lambda v: {"cluster": with_pool(mem=v)}),
    "pool.qos": ("--qos", lambda v: {"cluster": with_pool(qos=v)}),
    "pool.constraint": ("--constraint", lambda v: {"cluster": with_pool(constraint=v)}),
    "run_name": ("--job-name", lambda v: {"run_name": v}),
}


@pytest.mark.parametrize("field", DIRECTIVES)
def test_directive_values_arrive_or_are_refused(field: str) -> None:
    option, changes = DIRECTIVES[field]
    for value in HOSTILE:
        message = refused(lambda value=value: replace(CASES["hetjob-pyxis"], **changes(value)).text())
        assert bool(message) == (value in CONTROL | SEPARATORS), (value, message)
        if not message:
            components = directives(replace(CASES["hetjob-pyxis"], **changes(value)).text())
            assert len(components) == 2
            assert components[0][option] == (job_name(value) if field == "run_name" else value)
            assert "--wrap" not in components[0] | components[1]
        elif value in SEPARATORS:
            assert value in message
            assert field.split(".")[-1].replace("run_name", "name") in message


@pytest.mark.parametrize("value", HOSTILE)
def test_no_directive_value_is_run(quick: Bench, value: str) -> None:
    if value in CONTROL | SEPARATORS:
        return
    options = dict.fromkeys(["account", "qos", "reservation", "dependency", "mail_user", "comment"], value)
    cluster = with_pool(partition=value, mem=value, constraint=value, sbatch=(f"--{value}",))
    case = replace(CASES["hetjob-pyxis"], cluster=cluster, spec=spec_of(**options), run_name=value)
    quick.run(case)
    assert quick.words("decide")[0] == "decide"
    assert not (quick.root / "canary").exists()


@pytest.mark.parametrize(("field", "line"), [("sbatch", "--x=hetjob"), ("gpu_directive", "--x=packjob:{n}")])
def test_directives_of_the_site_hold_no_separator(field: str, line: str) -> None:
    cluster = with_pool(**{field: (line,) if field == "sbatch" else line})
    with pytest.raises(SpecError, match=f"pool a100: {field}: '--x=.*job"):
        replace(CASES["hetjob-pyxis"], cluster=cluster).text()


def test_directives_of_the_site_are_options() -> None:
    with pytest.raises(SpecError, match="pool a100: sbatch: 'touch canary' is no directive"):
        replace(CASES["hetjob-pyxis"], cluster=with_pool(sbatch=("touch canary",))).text()
    (teacher, _) = directives(replace(CASES["hetjob-pyxis"], cluster=with_pool(gpu_directive="--x={n}{m}")).text())
    assert teacher["--x"] == "8{m}"


@pytest.mark.parametrize("name", TINY)
def test_environment_values_arrive(bench: Bench, name: str) -> None:
    case = TINY[name]
    given = {f"VALUE_{i}": value for i, value in enumerate([*HOSTILE, ""]) if "\r" not in value}
    pools = (case.cluster.pools[0].model_copy(update={"environment": given}), *case.cluster.pools[1:])
    for update in ({"environment": given}, {"pools": pools}):
        done = bench.run(replace(case, cluster=case.cluster.model_copy(update=update)), FAKE_DONE="1")
        assert done.returncode == 0, done.stderr
        assert {name: bench.ranks()[0].env.get(name) for name in given} == given
        assert not (bench.root / "canary").exists()
        assert "--wrap" not in directives((bench.root / "script").read_text())[0]


@pytest.mark.parametrize(
    ("changes", "where"), [({"environment": {"X": "a\r\nb"}}, "environment: X"), ({"setup": "a\r\nb"}, "setup")]
)
def test_what_sbatch_takes_for_dos_line_breaks_is_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError, match=f"^{where}: 'a.*' holds a carriage return"):
        replace(CASES["hetstep"], cluster=cluster_of(pool("h100"), **changes)).text()


@pytest.mark.parametrize("name", ["RANK", "attempt", "UID", "KD_LAUNCH_ATTEMPT"])
def test_environment_names_that_the_script_needs_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"environment: {name} is a variable"):
        replace(CASES["hetstep"], cluster=cluster_of(pool("h100"), environment={name: "1"})).text()


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", ["hetjob", "ranks", "local"])
def test_paths_arrive_or_are_refused(bench: Bench, name: str, value: str) -> None:
    """Both of the run folder and of the interpreter."""
    local = name == "local"
    folder = bench.root / "hostile" / value
    expected = value in CONTROL or (not local and (value in SEPARATORS or "%" in value or "\\" in value))
    message = refused(lambda: replace(TINY[name], run_dir=folder / "run").text())
    assert bool(message) == expected, message
    if expected:
        assert "run folder: " in message
        assert repr(value)[1:-1] in message or value in message
        return
    bench.run_dir, bench.python = folder / "run", str(bench.rank_program(folder))
    done = bench.run(TINY[name], FAKE_DONE="1")
    assert done.returncode == 0, done.stderr
    assert {rank.argv[2] for rank in bench.ranks()} == {str(bench.run_dir)}
    assert bench.log("student")
    assert not (bench.root / "canary").exists()
    if not local:
        text = (bench.root / "script").read_text()
        assert directives(text)[0]["--output"] == str(bench.run_dir / "logs/batch.log")


@pytest.mark.parametrize("value", HOSTILE)
def test_words_of_the_rank_command_arrive_or_are_refused(quick: Bench, value: str) -> None:
    """Python, the container's image and its mounts, each as the whole value."""
    option_like = value.startswith("-") or value == ":"
    for name, changes, arrived, expected in (
        ("python", {"python": value}, value, value in CONTROL or option_like),
        (
            "image",
            {"container": {"runtime": "pyxis", "image": value}},
            f"--container-image={value}",
            value in CONTROL or option_like,
        ),
        (
            "mounts",
            {"container": {"runtime": "pyxis", "image": "i", "mounts": (value,)}},
            f"--container-mounts={value if ':' in value else f'{value}:{value}'}",
            value in CONTROL or "," in value,
        ),
    ):
        message = refused(lambda changes=changes: replace(CASES["hetjob-pyxis"], cluster=with_pool(**changes)).text())
        assert bool(message) == expected, (name, message)
        if not message:
            quick.run(replace(CASES["hetjob-pyxis"], cluster=with_pool(**changes)))
            words = (quick.record / "srun").read_text().split("\0")
            assert arrived in words
            assert words.count(":") == 1
            assert not (quick.root / "canary").exists()


def test_a_directive_in_the_setup_is_refused() -> None:
    with pytest.raises(SpecError, match="setup: holds an #SBATCH line"):
        replace(CASES["hetstep"], cluster=cluster_of(pool("h100"), setup="true\n  #SBATCH --exclusive")).text()


@pytest.mark.parametrize(
    "setup",
    ["{", "}", "if true; then", "echo 'open", 'echo "$(', "cat <<END\nx", "case x in", "f() {", "$((", "a () b"],
)
def test_a_setup_that_is_no_whole_text_is_refused(setup: str) -> None:
    for changes in ({"setup": setup}, {"setup": "true", "pools": ({**MIXED[0], "setup": setup}, MIXED[1])}):
        cluster = Cluster.model_validate({"scheduler": "slurm", "pools": MIXED, **changes}, strict=False)
        with pytest.raises(
            SpecError, match=r"setup: is no whole shell text: bash: line \d+: .*; try it with `bash -n`"
        ):
            refuse_broken_shell(cluster, "", commands.run)
    refuse_broken_shell(cluster_of(*MIXED, setup="ls !(x)\nif true; then module load cuda; fi"), "", commands.run)
    refuse_broken_shell(cluster_of(*MIXED, setup=setup), "", lambda *_, **__: commands.run(["/nowhere"], timeout=1))


def test_a_run_folder_of_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"run folder: .* no UTF-8"):
        replace(CASES["hetstep"], run_dir=tmp_path / os.fsdecode(b"\xff")).text()


# Layouts that no script holds


def test_one_allocation_has_one_pool() -> None:
    layout = layout_of("hetstep", role("a100", 1, 8), role("h100", 1, 8))
    with pytest.raises(SpecError, match="hetstep takes both roles from one pool, but the teacher's is a100"):
        Case(cluster_of(*MIXED), layout).text()


def test_ranks_refuse_nodes_that_one_step_does_not_fill() -> None:
    layout = layout_of("ranks", role("h100", 1, 4), role("h100", 1, 8))
    with pytest.raises(SpecError, match=r"here to \[8, 4\] ranks, but the plan has nodes of \[4, 8\]"):
        Case(H100, layout).text()
    with pytest.raises(SpecError, match=r"here to \[8\] ranks, but the plan has 2 nodes"):
        shared(role("h100", 2, 2), role("h100", 2, 2), 2).text()


def test_cores_of_one_pool_only_are_refused() -> None:
    cluster = cluster_of(MIXED[0] | {"cpus_per_node": None}, MIXED[1])
    with pytest.raises(SpecError, match="pool a100: cpus_per_node is missing, but pool h100 has one"):
        replace(CASES["hetjob-pyxis"], cluster=cluster).text()


def test_pyxis_needs_srun() -> None:
    cluster = Cluster.model_validate(CPU | {"container": {"runtime": "pyxis", "image": "x"}}, strict=False)
    with pytest.raises(SpecError, match="pyxis is a part of srun"):
        replace(CASES["local"], cluster=cluster).text()


# Templates


def test_a_template_of_the_sites_own(tmp_path: Path) -> None:
    own = tmp_path / "own {{ }} 'template'.j2"
    own.write_text("{{ job.run_dir | quote }} {{ job.world_size | quote }}\n")
    case = replace(CASES["hetstep"], cluster=H100.model_copy(update={"template": str(own)}))
    assert case.text() == f"{RUN_DIR} 32\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("{{ job.nmae }}", "has no attribute 'nmae'"),
        ("{{ nmae }}", "'nmae' is undefined"),
        ("\n{% for %}", ":2: "),
        ("{{ job.name + 1 }}", "can only concatenate"),
        ("{{ 1 // 0 }}", "zero"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_wrong_template_is_an_error_for_people(tmp_path: Path, text: str | None, reason: str) -> None:
    own = tmp_path / "own.j2"
    if text is not None:
        own.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SpecError, match=f"{own}.*{reason}"):
        replace(CASES["hetstep"], cluster=H100.model_copy(update={"template": str(own)})).text()


@pytest.mark.parametrize("name", ["hetjob.sbatch.j2", "hetstep.sbatch.j2", "ranks.sbatch.j2", "local.sh.j2"])
def test_a_template_is_one_screen(name: str) -> None:
    lines = find_template(name).read_text().splitlines()
    assert len(lines) <= 62
    assert max(map(len, lines)) <= 120
    assert not [line for line in lines if "{% if" in line]

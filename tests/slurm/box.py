"""A real Slurm cluster on one machine, without containers: for tests, and by hand as `python -m tests.slurm.box`.

slurmctld, slurmdbd with a MariaDB and a munged of its own, and one slurmd per node, each with a host name of its own.
All of it runs in a private view of the machine's files (private_view.py), which is also how its processes are found
again: nothing is ended that is not in there. Needs root and Debian's packages slurmctld slurmd slurm-client slurmdbd
munge mariadb-server; jobs and commands run as an ordinary user.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.slurm import private_view
from tests.slurm.machine import all_pids, command_line, free_ports, kill_all, link, read, state_of, uts_inode, wait_for
from tests.slurm.setup import (
    ACCOUNTING,
    UID,
    USER,
    Ports,
    Setup,
    gres_conf,
    gres_files,
    slurm_conf,
    slurmdbd_conf,
)

CHECKOUT = Path(__file__).parents[2]
PROGRAMS = (
    "slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db", "unshare", "nsenter",
)  # fmt: skip
INSTALL = "apt-get install slurmctld slurmd slurm-client slurmdbd munge mariadb-server"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def why_not_here() -> str | None:
    """What this machine lacks for a box, with the way out."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=SYSTEM_PATH) is None]
    if missing:
        return f"a Slurm cluster of the tests' own needs {', '.join(missing)}: {INSTALL}"
    if os.geteuid() != 0:
        return "a Slurm cluster of the tests' own needs root, for slurmd starts other users' jobs"
    return None


class Box:
    """One cluster in one folder."""

    def __init__(self, folder: Path | None = None, *, stays: bool = False) -> None:
        """`stays`: when this process has ended; else the box goes down with it."""
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="kd-box-"))).resolve()
        self.setup, self._stays = Setup(), stays
        self.user, self.home, self.conf = USER, self.folder / "home", self.folder / "slurm.conf"
        self.view = 0
        """The process that holds the private view."""
        self._namespace = ""
        self._hosts: dict[str, int] = {}
        """Node -> its host-name namespace, by which its processes are found."""
        self._daemons: dict[str, int] = {}
        self._watch: subprocess.Popen[Any] | None = None
        self._children: list[subprocess.Popen[Any]] = []

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.setup.node_names

    @property
    def partitions(self) -> tuple[str, ...]:
        return (*(p.name for p in self.setup.partitions), *(["urgent"] if self.setup.preempt else []))

    # --- start and stop

    def start(self, setup: Setup | None = None) -> "Box":
        self.setup = setup or Setup()
        try:
            self._start()
        except BaseException:
            for child in self._children:  # one that has just been started may not be in the view yet
                child.kill()
            self._kill(self._members)
            raise
        return self

    def _start(self) -> None:
        first, second, *others = free_ports(2 + len(self.nodes))
        ports = Ports(first, second, dict(zip(self.nodes, others, strict=True)))
        self._make_folder()
        if not self._stays:
            self._watch_this_process()
        self._open_view()
        self._write_configuration(ports)
        self._start_munge()
        self._start_database()
        for accounting in ACCOUNTING:
            self._fill_accounting(accounting)
        # Not earlier: it could miss what is being added while it starts.
        self.start_slurmctld()
        for node in self.nodes:
            self.start_node(node)
        wait_for(self._all_idle, 120, lambda: f"nodes are not idle:\n{self._sinfo()}")

    def _all_idle(self) -> bool:
        ended = {child.pid for child in self._children if child.poll() is not None}
        for name, pid in self._daemons.items():
            if pid in ended:
                raise RuntimeError(f"{name} has ended: {self._log(name + '.out')}")
        return self._node_states() == {"idle"}

    def stop(self) -> None:
        """Ends every process of the box and removes its folder."""
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
        self._kill(self._members)
        for child in self._children:
            child.wait()
        shutil.rmtree(self.folder)

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @classmethod
    def of(cls, folder: Path) -> "Box":
        """A box that another process started."""
        box = cls(folder)
        state = json.loads((box.folder / "box.json").read_text())
        box.view, box._namespace, box._hosts, box._daemons = (state[k] for k in ("view", "namespace", "hosts", "pids"))
        box.setup = _setup_of(state["setup"])
        return box

    def _write_state(self) -> None:
        state = {"view": self.view, "namespace": self._namespace, "hosts": self._hosts, "pids": self._daemons}
        partial = self.folder / "box.json.partial"
        partial.write_text(json.dumps({**state, "setup": repr(self.setup)}))
        partial.rename(self.folder / "box.json")

    def _make_folder(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o755)
        if any(self.folder.iterdir()):
            raise FileExistsError(f"{self.folder} is not empty: take the box in it down first")
        for name in ("log", "ctld", "spool", "gpu", "munge", "home"):
            (self.folder / name).mkdir()
        for _, file in gres_files(self.folder, self.setup):
            file.touch()
            file.chmod(0o666)
        self.give(self.home)

    def _watch_this_process(self) -> None:
        """Starts what takes the box down when this process ends without having done so: killed, for one."""
        down = [sys.executable, "-m", "tests.slurm.box", "down", str(self.folder)]
        self._watch = subprocess.Popen(
            ["sh", "-c", 'cat >/dev/null; exec "$@"', "sh", *down], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            cwd=CHECKOUT, start_new_session=True,
        )  # fmt: skip

    def _open_view(self) -> None:
        needed = (Path(sys.base_prefix), Path(sys.prefix), CHECKOUT, self.folder)
        names = private_view.name_commands(self.folder, USER, UID, self.home, self.nodes)
        holder = private_view.hold([*private_view.opening_commands(needed), *names], self.folder / "log" / "view.log")
        self._children.append(holder)
        self.view = holder.pid
        self._namespace = link(self.view, "ns/mnt")
        self._hosts = {node: self.seen(self._host_file(node)).stat().st_ino for node in self.nodes}
        self._write_state()

    def _write_configuration(self, ports: Ports) -> None:
        host = socket.gethostname().split(".")[0]
        self.conf.write_text(slurm_conf(self.folder, self.setup, ports, host))
        (self.folder / "gres.conf").write_text(gres_conf(self.folder, self.setup))
        secret = self.folder / "slurmdbd.conf"
        secret.write_text(slurmdbd_conf(self.folder, ports))
        secret.chmod(0o600)

    def _host_file(self, node: str) -> Path:
        return self.folder / "uts" / node

    # --- daemons

    def _spawn(self, name: str, argv: Iterable[str], node: str | None = None) -> None:
        """Starts a daemon in the foreground, so that its process id is known; its words are in log/NAME.out."""
        # Before all ranks, so that a busy machine is not taken for dead nodes (PropagatePrioProcess spares the jobs).
        enter = ["nice", "-n", "-15", "nsenter", "-t", str(self.view), "-m", "--"]
        enter += ["nsenter", f"--uts={self._host_file(node)}", "--"] if node else []
        environ = self._environ({"PATH": SYSTEM_PATH, "MYSQL_UNIX_PORT": str(self.folder / "db.socket")})
        with (self.folder / "log" / f"{name}.out").open("a") as output:
            child = subprocess.Popen(
                [*enter, *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/",
                start_new_session=True, env=environ,
            )  # fmt: skip
        self._children.append(child)
        self._daemons[name] = child.pid

    def _start_munge(self) -> None:
        at = self.folder / "munge"
        key = at / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"key-file": key, "socket": at / "socket", "pid-file": at / "pid", "seed-file": at / "seed"}
        options = [f"--{option}={file}" for option, file in files.items()]
        self._spawn("munged", ["munged", "--foreground", "--force", *options, f"--log-file={at / 'log'}"])

    def _start_database(self) -> None:
        data, at = self.folder / "db", self.folder / "db.socket"
        self._as_root(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )  # fmt: skip
        self._spawn("mariadbd", [
            "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={at}",
            f"--pid-file={self.folder}/mariadbd.pid", "--skip-networking", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=16M",
        ])  # fmt: skip
        sql = "create user slurm@localhost identified by 'slurm'; grant all on slurm_acct.* to slurm@localhost"
        client = ("mariadb", "--no-defaults", "-S", str(at), "-u", "root", "-e", sql)
        wait_for(lambda: self.call(*client, as_root=True).returncode == 0, 30, lambda: self._log("mariadbd.out"))
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        wait_for(lambda: self.call("sacctmgr", "-n", "show", "cluster", as_root=True).returncode == 0, 30,
                 lambda: self._log("slurmdbd.out"))  # fmt: skip

    def _fill_accounting(self, round_: tuple[str, ...]) -> None:
        """At once: each command waits much longer for the daemon than it works."""
        started = [(line, self.popen("sacctmgr", "-i", *line.split(), as_root=True)) for line in round_]
        for line, process in started:
            output, errors = process.communicate(timeout=30)
            assert process.returncode == 0, f"sacctmgr {line}: {output}{errors}"

    def start_slurmctld(self) -> None:
        self._spawn("slurmctld", ["slurmctld", "-D"])
        self._write_state()

    def kill_slurmctld(self) -> None:
        """As a crash: what it had not written yet is lost."""
        self._end("slurmctld", signal.SIGKILL)

    def stop_slurmctld(self) -> None:
        """As an administrator does: what it knows is written down."""
        self._end("slurmctld", signal.SIGTERM)

    def restart_slurmctld(self) -> None:
        self.stop_slurmctld()
        self.start_slurmctld()

    def start_node(self, node: str) -> None:
        self._spawn(f"slurmd-{node}", ["slurmd", "-D", "-N", node], node)
        self._write_state()

    def kill_slurmd(self, node: str) -> None:
        """The daemon alone: what it started lives on."""
        self._end(f"slurmd-{node}", signal.SIGKILL)

    def kill_node(self, node: str) -> None:
        """Everything that runs on the node, as if its power were gone: at once, none sees the end of another."""
        while running := [pid for pid in self.on_node(node) if state_of(pid) not in ("T", "Z", "")]:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.01)
        self._kill(lambda: self.on_node(node))

    def on_node(self, node: str) -> list[int]:
        """Every process of the node: slurmd, slurmstepds, batch scripts and ranks."""
        return [pid for pid in self._members() if uts_inode(pid) == self._hosts[node]]

    def stepds(self, node: str) -> list[int]:
        return [pid for pid in self.on_node(node) if read(pid, "comm").strip() == b"slurmstepd"]

    def _end(self, name: str, number: signal.Signals) -> None:
        pid = self._daemons.pop(name)
        if pid in self._members():
            os.kill(pid, number)
        wait_for(lambda: pid not in self._members(), 30, lambda: f"{name} does not end")

    # --- processes

    def _members(self) -> list[int]:
        """The living processes of the private view; a process inside cannot leave it, and none comes in but by us."""
        return [pid for pid in all_pids() if self._namespace and link(pid, "ns/mnt") == self._namespace]

    def processes(self) -> dict[int, str]:
        """Everything that belongs to the box by its view, or names its folder: process id -> command line."""
        mark = os.fsencode(self.folder)
        found = {}
        for pid in set(all_pids()) - {os.getpid()}:
            told = read(pid, "cmdline") + read(pid, "environ") + os.fsencode(link(pid, "cwd"))
            if mark in told or (self._namespace and link(pid, "ns/mnt") == self._namespace):
                found[pid] = command_line(pid)
        return found

    def _kill(self, find: Callable[[], list[int]]) -> None:
        kill_all(find, self._reap)

    def _reap(self) -> None:
        for child in self._children:
            child.poll()

    # --- commands

    def _environ(self, more: dict[str, str]) -> dict[str, str]:
        """Nothing of our own environment."""
        path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
        return {"PATH": path, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "SLURM_CONF": str(self.conf), **more}

    def popen(
        self, *argv: str, cwd: Path | None = None, env: dict[str, str] | None = None, as_root: bool = False,
        **options: Any,
    ) -> "subprocess.Popen[str]":  # fmt: skip
        """Starts a command in the box, as the ordinary user."""
        user = [] if as_root else ["-S", str(UID), "-G", str(UID)]
        who = {"HOME": "/root"} if as_root else {"HOME": str(self.home), "USER": USER, "LOGNAME": USER}
        enter = ["nsenter", "-t", str(self.view), "-m", *user, "--", "env", "-C", str(cwd or self.home)]
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([*enter, *argv], env=self._environ({**who, **(env or {})}), text=True, **options)

    def call(self, *argv: str, timeout: float = 60, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Runs a command as `popen` does and waits for it."""
        with self.popen(*argv, **options) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def _as_root(self, *argv: str) -> str:
        return self.ask(*argv, as_root=True)

    def ask(self, *argv: str, **options: Any) -> str:
        """The answer of a command that has to succeed."""
        done = self.call(*argv, **options)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def kd(self, *arguments: str, cwd: Path | None = None, **options: Any) -> "subprocess.CompletedProcess[str]":
        """kd-launch, as the user."""
        return self.call(sys.executable, "-m", "kd_launch.cli", *arguments, cwd=cwd, **{"timeout": 300, **options})

    def seen(self, path: Path) -> Path:
        """A path of the private view, for this process: what is mounted in there, it finds only so."""
        return Path(f"/proc/{self.view}/root{path}")

    def give(self, *paths: Path) -> None:
        """Makes files and folders, with all that is in them, the user's."""
        for path in paths:
            for file in (path, *path.rglob("*")):
                os.chown(file, UID, UID, follow_symlinks=False)

    # --- Slurm

    def sbatch(self, *arguments: str, **options: Any) -> str:
        """Submits as the user and returns the job's id."""
        return self.ask("sbatch", "--parsable", *arguments, **options).split(";")[0].strip()

    def states(self, job: str) -> dict[str, str]:
        """Component (or job) id -> Slurm's word: from squeue while it knows the job, else from sacct."""
        queued = self.call("squeue", "-h", "-a", "-t", "all", "-o", "%i %T", "-j", job).stdout
        known = queued or self.ask("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", job).replace("|", " ")
        return dict(line.split(maxsplit=1) for line in known.splitlines())

    def wait_for_job(self, job: str, *states: str, timeout: float = 60) -> dict[str, str]:
        """Waits until every component is in one of the states (default: the states of a job that has ended)."""
        wanted = set(states) or ENDED
        told: dict[str, str] = {}

        def there() -> bool:
            told.clear()
            told.update(self.states(job))
            return bool(told) and {state.split()[0] for state in told.values()} <= wanted

        wait_for(there, timeout, lambda: f"job {job} is {told}, not {sorted(wanted)}")
        return told

    def wait_idle(self, timeout: float = 60) -> None:
        """Waits until no job is queued, running or completing and every node is idle."""

        def idle() -> bool:
            self.resume_drained()
            return self.ask("squeue", "-h", "-a").strip() == "" and self._node_states() == {"idle"}

        wait_for(idle, timeout, lambda: f"{self.ask('squeue')}{self._sinfo()}")

    def resume_drained(self) -> None:
        """A killed controller may start a job a second time, for which slurmd takes its node out of service."""
        for line in self.call("sinfo", "-a", "-h", "-N", "-o", "%N|%E").stdout.split("\n"):
            node, _, reason = line.partition("|")
            if reason == "Duplicate jobid":
                # A node that does not answer yet cannot be resumed: the next look tries again.
                self.call("scontrol", "update", f"NodeName={node}", "State=RESUME", as_root=True)

    def _node_states(self) -> set[str]:
        return set(self.call("sinfo", "-a", "-h", "-N", "-o", "%T").stdout.split())

    def _sinfo(self) -> str:
        done = self.call("sinfo", "-a", "-N", "-l")
        return done.stdout + done.stderr

    def _log(self, name: str) -> str:
        return (self.folder / "log" / name).read_text()[-3000:]


ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
}  # fmt: skip


def _setup_of(text: str) -> Setup:
    """The setup that `repr` wrote."""
    from tests.slurm import setup

    made = eval(text, vars(setup))
    assert isinstance(made, Setup)
    return made


if __name__ == "__main__":
    from tests.slurm.by_hand import main

    sys.exit(main())

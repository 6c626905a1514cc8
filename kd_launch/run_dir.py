"""Every file name of one run, and writing a file so that it appears whole or not at all."""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kd_launch.errors import CheckError, SpecError


@dataclass(frozen=True)
class RunDir:
    """The folder of one run. Each property is one name; nothing here touches the disk but the two that list."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def cluster(self) -> Path:
        return self.path / "cluster.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def script(self) -> Path:
        """What was sent: to sbatch, or, on a local cluster, what starts the same ranks."""
        return self.path / "job.sbatch"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def heartbeats(self) -> Path:
        return self.path / "heartbeats"

    def heartbeat(self, rank: int) -> Path:
        return self.heartbeats / f"rank-{rank:05d}.json"

    @property
    def probes(self) -> Path:
        """What the ranks of a probe measured."""
        return self.path / "probe"

    def probe(self, rank: int) -> Path:
        return self.probes / f"rank-{rank:05d}.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The student's state when so many steps are done. It is there when all of it is on disk."""
        return self.checkpoints / f"step-{step:08d}"

    @property
    def latest_checkpoint(self) -> Path:
        """A link to the newest one, for people; no program of ours follows it."""
        return self.checkpoints / "latest"

    def checkpoint_steps(self) -> list[int]:
        """Steps of which there is a checkpoint, in order; whether each is sound, its manifest tells."""
        names = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.checkpoints.glob("step-*"))
        return sorted(int(match[1]) for match in names if match)

    @property
    def model(self) -> Path:
        """The finished student in Hugging Face form."""
        return self.path / "model"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def batch_log(self) -> Path:
        return self.logs / "batch.log"

    def role_log(self, attempt: int, role: str) -> Path:
        return self.logs / f"attempt-{attempt}" / f"{log_name(role)}.log"

    def srun_log(self, attempt: int) -> Path:
        """What srun itself says, in an attempt on Slurm."""
        return self.logs / f"attempt-{attempt}" / "srun.log"

    @property
    def cancel_record(self) -> Path:
        """Written by `cancel` before it calls Slurm: the job that stands here is never requeued."""
        return self.path / "cancel.json"

    @property
    def failures(self) -> Path:
        return self.path / "failures"

    def failure(self, attempt: int) -> Path:
        return self.failures / f"attempt-{attempt}.json"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    def attempt(self, attempt: int) -> Path:
        return self.attempts / f"attempt-{attempt}"

    def job_record(self, attempt: int) -> Path:
        """Written by the batch script's watch: which Slurm job this attempt is, with its components."""
        return self.attempt(attempt) / "job.json"

    def start_record(self, attempt: int) -> Path:
        """Written by the first student rank when every rank has joined and training begins."""
        return self.attempt(attempt) / "start.json"

    def leave_record(self, attempt: int) -> Path:
        """Written by the first rank that was told to leave: by which signal, and why."""
        return self.attempt(attempt) / "leave.json"

    def done_record(self, attempt: int) -> Path:
        """Written by the first student rank when everything, the exported model too, is on disk."""
        return self.attempt(attempt) / "done.json"

    def end_record(self, attempt: int) -> Path:
        """Written by whoever started the ranks, when the last one is gone: exit codes, and whether it was cancelled."""
        return self.attempt(attempt) / "end.json"

    def store_address(self, attempt: int) -> Path:
        """Where the ranks meet: host, port and a secret of this attempt. Mode 0600."""
        return self.attempt(attempt) / "store.json"

    def attempt_numbers(self) -> list[int]:
        """Attempts that were begun, in order."""
        names = (re.fullmatch(r"attempt-(\d{1,6})", path.name) for path in self.attempts.glob("attempt-*"))
        return sorted(int(match[1]) for match in names if match)


def log_name(role: str) -> str:
    """After which role the log of a rank is named: ranks with both roles write to the student's."""
    return "student" if role == "both" else role


def run_name(name: str, now: datetime) -> str:
    """`<name>-<UTC time>`, such as quickstart-20260131-235959."""
    return f"{name}-{now:%Y%m%d-%H%M%S}"


def job_name(run: str) -> str:
    """What Slurm calls a run's job: its name without what squeue and sacct take for separators of names and fields."""
    return re.sub(r"[,|]", "_", run)


def create_run_dir(root: Path, name: str) -> RunDir:
    """Makes a folder below `root` that did not exist: `name`, else `name`-2, -3, ...

    Raises:
        SpecError: `root` cannot be made or written.
    """
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        with suppress(FileExistsError):
            return make_run_dir(root / f"{name}{suffix}")
    raise SpecError(f"{root}: a thousand runs are called {name}; set another name in the spec")


def make_run_dir(path: Path) -> RunDir:
    """Makes the folder `path`, which must not exist.

    Raises:
        FileExistsError: it exists.
        SpecError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError:
        if path.is_dir():
            raise
        raise SpecError(f"{path.parent}: is not a folder; set run_root in the cluster file to one") from None
    except OSError as error:
        raise SpecError(
            f"{path}: {error.strerror}; set run_root in the cluster file to a folder you may write"
        ) from error
    return RunDir(path)


@contextmanager
def alone(run: RunDir) -> Iterator[None]:
    """Keeps two commands from sending one run at the same time.

    Raises:
        CheckError: another one is at it, or the run is another user's.
    """
    try:
        file = run.plan.open("r+b")  # the one file that is never replaced; NFS wants it writable
    except PermissionError as error:
        raise CheckError(f"{run.name} is another user's: {run.plan} may not be written") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckError(f"{run.name}: another kd-launch starts it just now; wait for that") from error
        except OSError:
            pass  # a file system without locks
        yield


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a file beside its place and moves it there: a reader sees all of it or nothing."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:  # a full disk's names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, object], mode: int = 0o644) -> None:
    """`write_whole` of one JSON object."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode(), mode)


def write_first_json(path: Path, value: Mapping[str, object]) -> bool:
    """`write_json` unless the file is there already: of several writers the first one wins. Returns whether it did."""
    path.parent.mkdir(exist_ok=True)
    mine = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_json(mine, value)
    try:
        os.link(mine, path)  # unlike a rename it fails where there is a file
    except FileExistsError:
        return False
    finally:
        mine.unlink()
    return True


def write_failure(path: Path, record: Mapping[str, object]) -> bool:
    """Writes the failure record of an attempt: the first one stays, unless it only says that a peer was lost.

    Such a record is replaced by the first one that says more. Returns whether `record` is now what the file says.
    """
    if write_first_json(path, record):
        return True
    if record.get("kind") == "lost_peer" or (read_json(path) or {}).get("kind") != "lost_peer":
        return False
    # The first to make this link decides what the file becomes; whoever comes later only helps to put it there.
    better = path.with_name(f".{path.stem}.better")
    won = write_first_json(better, record)
    mine = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    os.link(better, mine)
    mine.replace(path)
    mine.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
    return won


def read_json(path: Path) -> dict[str, object] | None:
    """The JSON object in a file of the run folder; None where the file is not there (yet)."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: holds no JSON object")
    return value

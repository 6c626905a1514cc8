"""Saves the student's state from all of its ranks while they train on, and gives the folder its name when it is whole.

torch's async_save copies the tensors and writes them in a thread; here a second thread waits for it, sums up what this
rank has written, and says so to the first student, which writes the manifest. A save that fails costs the save: the
training goes on, and the checkpoints before it stay.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture

from kd_launch.run_dir import RunDir, write_json, write_whole
from kd_launch.runtime.checkpoint.folders import begin, partial_folder, prune, publish
from kd_launch.runtime.checkpoint.manifest import (
    TENSORS,
    FileSum,
    UnsoundError,
    read_manifest,
    sum_of,
    verify,
    write_manifest,
)
from kd_launch.runtime.checkpoint.state import PLAN, STATE, SavedState
from kd_launch.runtime.checkpoint.tensors import Copies, TrainState, own_files
from kd_launch.runtime.departure import say

_FILE_MODE = 0o644  # whatever the umask says: what others may write is not read again


class SaveError(Exception):
    """No checkpoint was made, and why."""


@dataclass(frozen=True)
class Storage:
    """Where checkpoints go, and by whom they are written."""

    run_dir: RunDir
    attempt: int
    keep: int
    role_rank: int
    group: dist.ProcessGroup
    """All students, and nobody else uses it."""

    @property
    def is_first(self) -> bool:
        return self.role_rank == 0


class Saver:
    """Of one student rank; all of them make the same calls in the same order."""

    def __init__(
        self, storage: Storage, state: TrainState, copies: Copies, last: int, before_naming: Callable[[], None]
    ) -> None:
        """
        Args:
            last: the step of the newest sound checkpoint; 0 where there is none.
            before_naming: on the first student, what must be on disk before a checkpoint says that it was done.
        """
        self._storage, self._state, self._copies, self._before_naming = storage, state, copies, before_naming
        self.last = last
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._one_at_a_time = threading.Lock()
        """The main thread may make the last save while another one is told to."""

    @property
    def folder(self) -> Path:
        """Of all checkpoints."""
        return self._storage.run_dir.checkpoints

    @property
    def busy(self) -> bool:
        """Whether the last save is still being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the last save that has ended came to nothing."""
        return not self.busy and self._problem is not None

    def changed(self) -> None:
        """The optimizer step has just been made."""
        self._copies.mark()

    def start(self, saved: SavedState) -> None:
        """Copies the state and returns; it is written meanwhile. The save before must have ended."""
        assert not self.busy
        folder = partial_folder(self._storage.run_dir, saved.step, self._storage.attempt)
        future = async_save(
            self._state.tensors(), storage_writer=_Writer(self._storage, saved.step, folder / TENSORS),
            process_group=self._storage.group, async_stager=self._copies,
        )  # fmt: skip
        assert isinstance(future, Future)
        self._problem = None
        self._thread = threading.Thread(target=self._finish, args=(future, saved, folder), daemon=True, name="saver")
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Until the last save has ended, well or not.

        Raises:
            SaveError: it takes longer.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise SaveError(f"the checkpoint is not written within {seconds:.0f} s")

    def save_now(self, describe: Callable[[], SavedState], seconds: float | None = None) -> None:
        """Saves and waits, unless that state is saved already.

        Raises:
            SaveError: it was not saved.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        if not self._one_at_a_time.acquire(timeout=-1 if seconds is None else seconds):
            raise SaveError(f"another save does not end within {seconds:.0f} s")
        try:
            self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            saved = describe()
            if saved.step <= self.last:
                return
            self.start(saved)
            self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if self._problem is not None:
                raise SaveError(self._problem)
        finally:
            self._one_at_a_time.release()

    def _finish(self, future: "Future[Any]", saved: SavedState, folder: Path) -> None:
        """The work of a thread."""
        began = time.monotonic()
        try:
            self._problem = self._written(future, saved, folder)
        except Exception as error:  # the peers are gone, for one: nobody waits for this thread
            self._problem = _words(error)
        if self._problem is None:
            self.last = saved.step
            if self._storage.is_first:
                say(f"checkpoint of step {saved.step} written in {time.monotonic() - began:.1f} s")
        elif self._storage.is_first:
            shutil.rmtree(folder, ignore_errors=True)
            before = f"the last one is of step {self.last}" if self.last else "there is none yet"
            say(
                f"warning: {folder.parent}: the checkpoint of step {saved.step} could not be written: {self._problem}; "
                f"{before}, and the training goes on"
            )

    def _written(self, future: "Future[Any]", saved: SavedState, folder: Path) -> str | None:
        """What went wrong, as every student comes to know; None: the checkpoint is there."""
        try:
            future.result()
        except CheckpointException as error:  # which every rank has got
            return _words(error)
        group = self._storage.group
        found: list[Any] = [None] * group.size()
        dist.all_gather_object(found, self._own_sums(folder), group=group)
        outcome: list[str | None] = [None]
        if self._storage.is_first:
            outcome[0] = self._name(saved, folder, found)
        dist.broadcast_object_list(outcome, group=group, group_src=0)
        return outcome[0]

    def _own_sums(self, folder: Path) -> dict[str, FileSum] | str:
        """Of the files that this rank has written, or why they cannot be read."""
        sums = {}
        try:
            for path in own_files(folder / TENSORS, self._storage.role_rank):
                path.chmod(_FILE_MODE)
                sums[str(path.relative_to(folder))] = sum_of(path)
        except OSError as error:
            return _words(error)
        return sums

    def _name(self, saved: SavedState, folder: Path, found: list[Mapping[str, FileSum] | str]) -> str | None:
        """Makes the folder of all ranks' files a checkpoint; what went wrong."""
        run = self._storage.run_dir
        sums: dict[str, FileSum] = {}
        for one in found:
            if isinstance(one, str):
                return one
            sums.update(one)
        if run.attempt(self._storage.attempt + 1).exists():
            return "a later attempt of this run has begun"
        try:
            self._before_naming()
            write_json(folder / STATE, saved.model_dump(mode="json"))
            write_whole(folder / PLAN, run.plan.read_bytes())
            for name in (STATE, PLAN):
                (folder / name).chmod(_FILE_MODE)
                sums[name] = sum_of(folder / name)
            write_manifest(folder, saved.step, sums)
            # Where modes or owners come out otherwise, no later attempt would read it: better heard now than then.
            verify(folder, read_manifest(folder), names=())
            publish(run, folder, saved.step)
        except OSError as error:
            return _words(error)
        except UnsoundError as error:
            return f"it could not be read again: {error}"
        prune(run, saved.step, self._storage.keep)
        return None


class _Writer(FileSystemWriter):
    """Into a folder that the first student makes anew."""

    def __init__(self, storage: Storage, step: int, folder: Path) -> None:
        super().__init__(folder)
        self._storage, self._step = storage, step

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Within torch's first collective: if it raises, every rank hears of it, and none has written yet."""
        if self._storage.is_first:
            begin(self._storage.run_dir, self._step, self._storage.attempt)
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "TorchFuture[list[WriteResult]]":
        """torch reports a full disk as a position that it did not expect."""
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            cause = _os_error(error)
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, cause.filename or str(self.path)) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's word among the errors that led to this one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _words(error: BaseException) -> str:
    """One line; of an error that torch has gathered from the ranks, the first."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (first, _) = next(iter(sorted(error.failures.items())))
        return f"{_words(first)} (student rank {rank})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

"""Writes a token store: rows as they come, then the header; the folder appears whole or not at all."""

import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kd_launch.errors import SpecError
from kd_launch.run_dir import sync_folder, write_json
from kd_launch.runtime.data import ARRAYS, Rows
from kd_launch.tokens import StoreHeader, header_path, is_complete

_PARTIAL = re.compile(r"\.[0-9a-f]+\.(?P<machine>[0-9a-f]{8})\.(?P<pid>\d+)(\.damaged)?\.partial")

ABANDONED_S = 24 * 3600.0
"""A partial folder of another machine that nobody wrote to for so long has no writer any more."""


class ArrayFile:
    """One .npy file that grows along its first axis."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self._file = path.open("xb")
        self._dtype, self._row_shape, self._rows = dtype, row_shape, 0
        self._write_header()
        self._start = self._file.tell()

    def append(self, rows: NDArray[Any]) -> None:
        """Adds rows [n, *row_shape]."""
        assert rows.shape[1:] == self._row_shape
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
        self._rows += len(rows)

    def finish(self) -> int:
        """Writes the final shape and waits until all is on disk; returns the size in bytes."""
        size = self._file.tell()
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._start  # numpy leaves room for the first axis to grow
        self._file.flush()
        os.fsync(self._file.fileno())
        return size

    def close(self) -> None:
        with suppress(OSError):  # unwritten bytes of a full disk: the error was raised where they were written
            self._file.close()

    def _write_header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape},
        )

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self._rows, *self._row_shape)


class StoreWriter:
    """The arrays of a store in an empty folder. A context: leaves no file open."""

    def __init__(self, folder: Path, sequence_length: int) -> None:
        self.folder = folder
        self._sequence_length = sequence_length
        self.sequences = self.loss_tokens = 0
        self._open = ExitStack()
        self._files: dict[str, ArrayFile] = {}

    def __enter__(self) -> Self:
        for name, kind in ARRAYS.items():
            shape = () if name == "loss_tokens" else (self._sequence_length,)
            self._files[name] = ArrayFile(self.folder / f"{name}.npy", np.dtype(kind), shape)
            self._open.callback(self._files[name].close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def append(self, rows: Rows) -> None:
        """Adds rows [n, sequence_length]."""
        loss_tokens = rows.loss.sum(axis=1, dtype=np.int32)
        for name, array in {**rows._asdict(), "loss_tokens": loss_tokens}.items():
            self._files[name].append(array)
        self.sequences += len(rows.ids)
        self.loss_tokens += int(loss_tokens.sum(dtype=np.int64))

    def finish(self) -> dict[str, int]:
        """Completes every file; returns their sizes by name."""
        return {f"{name}.npy": file.finish() for name, file in self._files.items()}


def write_header(folder: Path, header: StoreHeader) -> None:
    """Writes store.json, the last file of a store."""
    write_json(header_path(folder), header.model_dump())


# --- the folder


@contextmanager
def partial_folder(store: Path) -> Iterator[Path]:
    """An empty hidden folder beside `store`'s place. Gone at the end, unless `publish` moved it.

    Raises:
        SpecError: it cannot be made or, within, written: a full or read-only disk.
    """
    partial = store.with_name(f".{store.name}.{_machine()}.{os.getpid()}.partial")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(store.parent, time.time())
        partial.mkdir()
        yield partial
    except OSError as error:
        raise SpecError(
            f"{store}: cannot be written: {error.strerror or error}; free space there, or set run_root in the cluster "
            "file to a folder that you may write"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, store: Path) -> bool:
    """Moves a complete partial folder to its place.

    Returns False where another prepare was faster: then its store, which holds the same, stays.
    """
    sync_folder(partial)
    if store.exists() and not is_complete(store):
        _discard(store)
    try:
        partial.rename(store)
    except OSError:
        if is_complete(store):
            return False
        raise
    sync_folder(store.parent)
    return True


def _discard(damaged: Path) -> None:
    """Removes a folder so that it never looks half removed."""
    aside = damaged.with_name(f".{damaged.name}.{_machine()}.{os.getpid()}.damaged.partial")
    damaged.rename(aside)
    shutil.rmtree(aside)


def remove_abandoned(folder: Path, now: float) -> None:
    """Removes the partial folders whose writer is gone, such as after SIGKILL."""
    for partial in folder.glob(".*.partial"):
        with suppress(OSError):  # somebody else removes it at the same moment
            if _is_abandoned(partial, now):
                shutil.rmtree(partial)


def _is_abandoned(partial: Path, now: float) -> bool:
    name = _PARTIAL.fullmatch(partial.name)
    if name is None:
        return False
    if name["machine"] == _machine():
        return not _runs(int(name["pid"]))
    return now - max(path.stat().st_mtime for path in (partial, *partial.iterdir())) > ABANDONED_S


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _machine() -> str:
    """Where a process id means something: this boot of this machine, and this container of it."""
    parts: list[str] = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]

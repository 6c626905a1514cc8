"""manifest.json of a checkpoint: size and sha256 of each of its files; and whether a checkpoint may be read.

torch's own `.metadata` is a pickle, which can run anything: nothing of a checkpoint is read before its files are known
to be ours, writable by nobody else, and what was written.
"""

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kd_launch.run_dir import write_json

MANIFEST = "manifest.json"
TENSORS = "model-optim"
"""The folder of torch.distributed.checkpoint within a checkpoint."""
LATE_SECONDS = 10.0
"""A network file system may show a file of another node, or its size, so late."""
_BLOCK = 1 << 22
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class UnsoundError(Exception):
    """A checkpoint that must not be read, and why."""


class UnreadError(UnsoundError):
    """What is there may be sound, but cannot, or must not, be read as things are: a file system that fails, or modes
    that somebody has changed."""


@dataclass(frozen=True)
class FileSum:
    """What was written."""

    bytes: int
    sha256: str


Sums = Mapping[str, FileSum]
"""By path within the checkpoint."""


def sum_of(path: Path) -> FileSum:
    """Reads a whole file; other threads go on meanwhile."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileSum(size, digest.hexdigest())


def write_manifest(folder: Path, step: int, sums: Sums) -> None:
    """The last file of a checkpoint."""
    files = {name: vars(found) for name, found in sorted(sums.items())}
    write_json(folder / MANIFEST, {"version": 1, "step": step, "files": files})


def read_manifest(folder: Path, late: float = LATE_SECONDS) -> Sums:
    """What the checkpoint holds, by a manifest that nobody else can have written.

    Raises:
        UnsoundError: it is missing or damaged, or others may write there.
    """
    _wait_for(folder / MANIFEST, None, late)
    for path in (folder.parent.resolve(), folder, folder / MANIFEST):  # checkpoints/ may lie on another disk
        _trust(path)
    try:
        known = json.loads((folder / MANIFEST).read_bytes())
        sums = {name: FileSum(int(one["bytes"]), str(one["sha256"])) for name, one in known["files"].items()}
    except OSError as error:
        raise _of_system(MANIFEST, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsoundError(f"{MANIFEST} is damaged: {error}") from error
    for name in sums:
        if name.startswith("/") or ".." in Path(name).parts:
            raise UnsoundError(f"{MANIFEST} names {name}, which is not in the checkpoint")
    return sums


def verify(folder: Path, sums: Sums, names: Iterable[str] | None = None, late: float = LATE_SECONDS) -> None:
    """Compares files with the manifest: size, owner and mode of all of them, the contents of `names` (None: of all).

    Raises:
        UnsoundError: names the first file that is not what was written.
    """
    _trust(folder / TENSORS)
    for path in (*(folder / TENSORS).glob("*.distcp"), *(folder / TENSORS).glob(".metadata")):  # all that torch reads
        if f"{TENSORS}/{path.name}" not in sums:
            raise UnsoundError(f"{MANIFEST} does not name {TENSORS}/{path.name}")
    for name, expected in sums.items():
        _wait_for(folder / name, expected.bytes, late)
        _trust(folder / name)
    for name in sums if names is None else names:
        try:
            found = sum_of(folder / name)
        except OSError as error:
            raise _of_system(name, error) from error
        if found != sums[name]:
            raise UnsoundError(f"{name} is not what was written: its sha256 is {found.sha256[:12]}...")


def _of_system(name: str, error: OSError) -> UnsoundError:
    kind = UnsoundError if error.errno in _NOT_THERE else UnreadError
    return kind(f"{name} cannot be read: {error.strerror}")


def _wait_for(path: Path, size: int | None, seconds: float) -> None:
    """`size`: of the file; None: any."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found: int | None = path.lstat().st_size
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise _of_system(f"{path.parent.name}/{path.name}", error) from error
            found = None
        if found is not None and size in (found, None):
            return
        if time.monotonic() >= deadline:
            words = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise UnsoundError(f"{path.parent.name}/{path.name} {words}")
        time.sleep(0.5)


def _trust(path: Path) -> None:
    """Raises UnreadError unless the file or folder itself is ours, or root's, and nobody else may write it."""
    try:
        found = path.lstat()
    except OSError as error:
        raise _of_system(path.name, error) from error
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise UnreadError(f"{path.name} is a link or a device: it is not read")
    if found.st_uid not in (0, os.geteuid()):
        raise UnreadError(f"{path.name} belongs to user {found.st_uid}, not to {os.geteuid()}: it is not read")
    if found.st_mode & _OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(found.st_mode)
        raise UnreadError(f"others may write {path.name} (mode {mode:04o}): it is not read")

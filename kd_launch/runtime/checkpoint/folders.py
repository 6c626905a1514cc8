"""The folders of a run's checkpoints: one gets its name when it is whole, the newest stay, damaged ones stand aside."""

import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from kd_launch.run_dir import RunDir, sync_folder
from kd_launch.runtime.checkpoint.manifest import TENSORS, UnsoundError, read_manifest, verify

_MODE = 0o755  # whatever the umask says: what others may write is not read again


def partial_folder(run: RunDir, step: int, attempt: int) -> Path:
    """Where an attempt writes a checkpoint. The dot keeps it apart from the finished ones."""
    return run.checkpoints / f".step-{step:08d}.partial-{attempt}"


def begin(run: RunDir, step: int, attempt: int) -> Path:
    """An empty folder to write into."""
    run.checkpoints.mkdir(exist_ok=True)
    with suppress(OSError):
        run.checkpoints.chmod(run.checkpoints.stat().st_mode & 0o755)
    folder = partial_folder(run, step, attempt)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / TENSORS).mkdir(parents=True)
    for made in (folder, folder / TENSORS):
        made.chmod(_MODE)
    return folder


def publish(run: RunDir, partial: Path, step: int) -> None:
    """Gives a checkpoint whose manifest is written its name. One of that step that is sound stays as it is.

    Raises:
        OSError: it cannot be; the partial folder is left.
    """
    for folder in (partial / TENSORS, partial):
        sync_folder(folder)
    final = run.checkpoint(step)
    if final.exists() and not _replace_damaged(run, final):
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.replace(final)
        sync_folder(run.checkpoints)
    _point_latest(run, final)


def _replace_damaged(run: RunDir, final: Path) -> bool:
    """Whether there was a damaged one, which now stands aside."""
    try:
        verify(final, read_manifest(final, late=0), late=0)
    except UnsoundError:
        set_aside(run, int(final.name.removeprefix("step-")))
        return True
    return False


def _point_latest(run: RunDir, final: Path) -> None:
    beside = run.checkpoints / f".latest.{secrets.token_hex(4)}"
    with suppress(OSError):  # only for people
        beside.symlink_to(final.name)
        beside.replace(run.latest_checkpoint)
    with suppress(OSError):
        beside.unlink()


def set_aside(run: RunDir, step: int) -> None:
    """Takes a damaged checkpoint's name away, so that another one of its step can be written."""
    with suppress(OSError):
        run.checkpoint(step).replace(run.checkpoints / f".step-{step:08d}.damaged-{secrets.token_hex(4)}")


def prune(run: RunDir, newest: int, keep: int) -> None:
    """Removes what is older than the `keep` newest up to `newest`, which is known to be sound."""
    steps = [step for step in run.checkpoint_steps() if step <= newest]
    for step in steps[:-keep]:
        old = run.checkpoints / f".step-{step:08d}.old-{secrets.token_hex(4)}"
        with suppress(OSError):  # its name goes first: half of a checkpoint never has it
            run.checkpoint(step).replace(old)
            shutil.rmtree(old)


def tidy(run: RunDir, attempt: int) -> None:
    """Removes what earlier attempts have left half written or half removed."""
    for path in run.checkpoints.glob(".step-*"):
        found = re.fullmatch(r"\.step-\d+\.(?:partial-(\d+)|old-\w+)", path.name)
        if found and (found[1] is None or int(found[1]) < attempt):
            shutil.rmtree(path, ignore_errors=True)

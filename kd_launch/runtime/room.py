"""What is written when the training is over: a disk that does not take it is asked again; the weights are here."""

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from kd_launch.runtime.departure import say
from kd_launch.runtime.heartbeat import Progress

PATIENCE_SECONDS = 1200.0
"""Less than the others wait for the rank that writes, which is `meeting.PATIENCE`."""
AGAIN_SECONDS = 20.0
_MAY_PASS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN,
}  # fmt: skip


def write_patiently(
    path: Path,
    write: Callable[[], object],
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Writes something at `path`, again and again where the file system refuses it.

    Raises:
        OSError: it still does after `PATIENCE_SECONDS`, or for a reason that does not pass.
    """
    deadline, told = clock() + PATIENCE_SECONDS, False
    while True:
        try:
            write()
        except (OSError, SafetensorError) as error:
            problem = _of_system(error, path)
            if problem.errno not in _MAY_PASS or clock() >= deadline:
                raise problem from error
        else:
            return
        if not told:
            say(
                f"warning: {path}: {problem.strerror}; what is finished stays in memory and is written as soon as it "
                f"can be, within {PATIENCE_SECONDS / 60:.0f} minutes"
            )
        told = True
        progress.move()
        sleep(AGAIN_SECONDS)


def _of_system(error: Exception, path: Path) -> OSError:
    """safetensors hands the system's number on in words."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    if number is None:
        return OSError(0, str(error), str(path))
    return OSError(int(number[1]), str(error).partition(" (os error")[0].rpartition("error: ")[2], str(path))

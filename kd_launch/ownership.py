"""Whether only we can have written a file: what is asked before anything in it may run, as a pickle does."""

import os
import stat
from pathlib import Path

from kd_launch.errors import CheckError


def refuse_others(path: Path) -> None:
    """Looks at a file and its folder, which must be ours and closed to every other writer.

    Raises:
        CheckError: another user owns one of them, or may write it.
    """
    for place in (path.parent, path):
        found = place.lstat()
        if found.st_uid != os.getuid():
            raise CheckError(f"{place}: belongs to user {found.st_uid}, not to you; what stands there is not run")
        if stat.S_ISLNK(found.st_mode):
            raise CheckError(f"{place}: is a link; what stands behind it is not run")
        if found.st_mode & 0o022:
            raise CheckError(
                f"{place}: others may write it (mode {stat.S_IMODE(found.st_mode):04o}), so it is not run; "
                f"give `chmod go-w {place}` if nobody has"
            )

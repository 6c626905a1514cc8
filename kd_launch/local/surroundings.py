"""What surrounds the programs of a run on this machine: setup lines, and an environment without strangers."""

import re
from collections.abc import Mapping, Sequence

RUN_VARIABLE = "KD_LAUNCH_RUN_DIR"
"""In the environment of everything that belongs to a run, so that nothing of it can be left behind unseen."""

# What other launchers tell their ranks. A run started from inside one of those must not take them for its own.
_LAUNCHERS = re.compile(
    r"(GLOBAL_|LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|GROUP_NAME|ROLE_NAME"
    r"|(TORCHELASTIC|SUBMITIT)_.*|KD_LAUNCH_(ATTEMPT|RUN_DIR)"
)


def with_setup(setup: str, argv: Sequence[str]) -> list[str]:
    """The command after setup lines, in the same process: bash runs them and then becomes the command."""
    if not setup.strip():
        return list(argv)
    return ["bash", "-c", f'set -eo pipefail\n{setup}\nexec "$@"', "bash", *argv]


def without_launchers(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what another launcher, or another run, said to its ranks."""
    return {name: value for name, value in environ.items() if not _LAUNCHERS.fullmatch(name)}

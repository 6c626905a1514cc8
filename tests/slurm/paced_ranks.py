"""Ranks that train at the pace of larger models: python paced_ranks.py -m kd_launch.runtime RUN_DIR --role ROLE.

STEP_SECONDS of the environment: so much longer a step takes. NAMING_SECONDS: so long a checkpoint whose files are
written waits for its name. Nobody computes meanwhile.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kd_launch.runtime import __main__ as runtime
from kd_launch.runtime.checkpoint import manifest
from kd_launch.runtime.checkpoint.manifest import Sums
from kd_launch.runtime.gate import Gate

completing, write_manifest = Gate.completing, manifest.write_manifest


@contextmanager
def completing_late(gate: Gate, step: int) -> Iterator[None]:
    time.sleep(float(os.environ["STEP_SECONDS"]))
    with completing(gate, step):
        yield


def write_manifest_late(folder: Path, step: int, sums: Sums) -> None:
    time.sleep(float(os.environ["NAMING_SECONDS"]))
    write_manifest(folder, step, sums)


if __name__ == "__main__":
    Gate.completing = completing_late  # type: ignore[method-assign]
    manifest.write_manifest = write_manifest_late  # before the saver is imported, with torch
    code = runtime.main(sys.argv[3:])
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

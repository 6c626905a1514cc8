"""Many tiny runs in the same processes, since starting a rank costs more than its run: many_runs.py RANK RUN_DIR...

A rank that a run does not have waits in the next one.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_launch.plan import read_run_plan
from kd_launch.run_dir import RunDir
from kd_launch.runtime.__main__ import main
from tests.runtime.forked import AT_IMPORT, fork_rank
from tests.runtime.harness import Ranks, output_file, variables_of


def run_all(folder: Path, runs: Sequence[RunDir], ranks: int) -> Ranks:
    """Runs all of them to their ends, in this order, on as many processes as the largest has ranks."""
    folder.mkdir()
    arguments = [str(run.path) for run in runs]
    started = Ranks(
        RunDir(folder),
        [
            fork_rank((__file__, str(rank)), arguments, os.environ | AT_IMPORT, output_file(RunDir(folder), rank))
            for rank in range(ranks)
        ],
    )
    codes = started.wait()
    assert not any(codes), f"exit codes {codes}\n{started.outputs()}"
    return started


def work(rank: int, folders: Sequence[str]) -> int:
    """One process: its rank of every run that has one; ends with the first that fails."""
    for folder in folders:
        layout = read_run_plan(RunDir(Path(folder)).plan).layout
        if rank < layout.world_size:
            os.environ.update(variables_of("torchrun", rank, layout.world_size))
            code = main([folder, "--role", layout.role_of(rank)])
            if code:
                print(f"rank {rank} of {folder}: exit code {code}")
                return code
    return 0


if __name__ == "__main__":
    code = work(int(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

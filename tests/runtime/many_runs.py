"""One rank of many runs, one after the other, in one process: python many_runs.py RANK RUN_DIR...

Starting a process costs more than a tiny run. A rank that a run does not have waits in the next one.
"""

import os
import sys
from pathlib import Path

from kd_launch.plan import read_run_plan
from kd_launch.run_dir import RunDir
from kd_launch.runtime.__main__ import main
from tests.runtime.harness import variables_of

if __name__ == "__main__":
    rank, codes = int(sys.argv[1]), []
    for folder in sys.argv[2:]:
        layout = read_run_plan(RunDir(Path(folder)).plan).layout
        if rank < layout.world_size:
            os.environ.update(variables_of("torchrun", rank, layout.world_size))
            codes.append(main([folder, "--role", layout.role_of(rank)]))
            if codes[-1]:
                print(f"{folder}: exit code {codes[-1]}", file=sys.stderr)
                break
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(max(codes, default=0))

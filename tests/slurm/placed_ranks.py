"""Ranks that only say who they are: python placed_ranks.py -m kd_launch.runtime RUN_DIR --role ROLE.

With MEET=1 in the environment they meet as well, as the runtime does, and say at which port.
"""

import os
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path

from kd_launch.plan import Role, read_run_plan
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runtime.environment import read_environment
from kd_launch.runtime.lineage import launcher_above
from kd_launch.runtime.place import take_place


def main(run_dir: RunDir, role: Role) -> None:
    run = read_run_plan(run_dir.plan)
    place = take_place(read_environment(os.environ), run.layout, role)
    said = {**asdict(place), "role": role, "hostname": socket.gethostname()}
    said["launcher"] = Path(f"/proc/{launcher_above()}/comm").read_text().strip()
    if os.environ.get("MEET"):
        from kd_launch.runtime.meeting import meet

        store, address = meet(place, run_dir, run.cluster)
        said["port"] = address.port
        store.set(str(place.rank), "met")
        store.wait([str(rank) for rank in range(place.world_size)])
    write_json(run_dir.path / f"place-{place.rank}.json", said)
    files = [run_dir.path / f"place-{rank}.json" for rank in range(place.world_size)]
    deadline = time.monotonic() + 60
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.1)
    if place.rank == place.world_size - 1 and all(file.exists() for file in files):
        write_json(run_dir.done_record(place.attempt), {"time": time.time(), "step": run.spec.training.steps})


if __name__ == "__main__":
    _, _, _, folder, _, name = sys.argv
    main(RunDir(Path(folder)), Role(name))

"""Run folders as submit and the ranks leave them, made by hand."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from render_cases import CPU, layout_of, role, spec_of

from kd_launch.cluster import Cluster
from kd_launch.local.processes import ProcessIdentity, identify
from kd_launch.plan import Layout, RunPlan
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runs.state import RunState, write_state

HOST = socket.gethostname()
GONE = ProcessIdentity(pid=1, start_time=-1, host=HOST, boot_id="another boot")
ELSEWHERE = ProcessIdentity(pid=1, start_time=1, host="elsewhere", boot_id="b")


def alive() -> ProcessIdentity:
    """A controller that lives: this process."""
    identity = identify(os.getpid())
    assert identity is not None
    return identity


def local_layout(*, colocated: bool = False) -> Layout:
    placement = "colocated" if colocated else "disjoint"
    return layout_of(None, role("here", 1, 1), role("here", 1, 1), placement=placement)


def make_run(
    folder: Path,
    controller: ProcessIdentity | None = GONE,
    *,
    created: float = 0.0,
    colocated: bool = False,
    started: bool = True,
    made: float | None = None,
    **records: Any,
) -> RunDir:
    """A run of one attempt, here on this machine; `records` are end, done, failure, metrics and heartbeats."""
    run = RunDir(folder)
    for path in (run.attempt(1), run.failure(1).parent, run.heartbeats, run.role_log(1, "any").parent):
        path.mkdir(parents=True)
    cluster = Cluster.model_validate(CPU, strict=False)
    layout = local_layout(colocated=colocated)
    plan = RunPlan(version="0", spec=spec_of(), cluster=cluster, layout=layout, tokens=None)
    run.plan.write_text(plan.model_dump_json())
    if made is not None:
        os.utime(run.plan, (made, made))
    if started:
        write_state(run, state_of(run, controller, created or time.time()))
    for name, value in records.items():
        write_record(run, name, value)
    return run


def state_of(run: RunDir, controller: ProcessIdentity | None, created: float) -> RunState:
    return RunState(
        run=run.name, run_dir=str(run.path), scheduler="local", job_id=str(controller.pid) if controller else None,
        attempts=1, controller=controller, created=created, command=["kd-launch"], folder="/", git=None, versions={},
    )  # fmt: skip


def write_record(run: RunDir, name: str, value: Any, attempt: int = 1) -> None:
    if name == "metrics":
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in value))
    elif name == "heartbeats":
        for beat in value:
            write_json(run.heartbeat(beat["rank"]), beat)
    else:
        paths = {
            "end": run.end_record(attempt), "done": run.done_record(attempt), "failure": run.failure(attempt),
            "leave": run.leave_record(attempt), "job": run.job_record(attempt),
        }  # fmt: skip
        write_json(paths[name], value)


def end(**changes: Any) -> dict[str, Any]:
    return {"exit_codes": [0, 0], "cancelled": False, "timed_out": False, "time": 1.0, "first": None, **changes}


def failure(**changes: Any) -> dict[str, Any]:
    record = {"attempt": 1, "role": "student", "rank": 1, "host": "h", "error": "ValueError: no", "time": 1.0}
    return {**record, "traceback": "Traceback...", **changes}


def step(number: int, **changes: Any) -> dict[str, Any]:
    return {"step": number, "loss": 2.5, "tokens_per_second": 1000.0, "step_seconds": 0.5, "grad_norm": 1.0, **changes}


def beat(rank: int, role_name: str, **changes: Any) -> dict[str, Any]:
    record = {"rank": rank, "role": role_name, "host": HOST, "pid": 1, "time": time.time(), "done": 4, "total": 10}
    return {**record, "unit": "steps", "waiting_for": None, "since": 0.0, **changes}

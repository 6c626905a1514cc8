"""Run folders of Slurm runs as submit, the batch script and the ranks leave them, and Slurm's answers about them."""

import os
from pathlib import Path
from typing import Any

from render_cases import cluster_of, layout_of, pool, role, spec_of
from run_folders import write_record

from kd_launch.plan import Layout, RunPlan
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runs.slurm_status import Asked
from kd_launch.runs.state import JobToken, RunState, write_state
from kd_launch.slurm.job_text import read_sacct, read_squeue

NOW = 1_800_000_000.0
NAME = "chat-1"
# Four teachers on big1 and big2, two students on small1; where one pool holds both, on big1 to big3.
HET = layout_of("hetjob", role("big", 2, 2), role("small", 1, 2))
JOINT = layout_of("hetstep", role("big", 2, 2), role("big", 1, 2))
CLUSTER = cluster_of(pool("big", gpus_per_node=4), pool("small", gpus_per_node=2), heartbeat_timeout_s=60)


def make_slurm_run(
    folder: Path, *, layout: Layout = HET, job_id: str | None = "30", sent: float = 1000.0, sent_at_all: bool = True,
    attempts: int = 1, cancelled: dict[str, Any] | None = None, **records: Any,
) -> RunDir:  # fmt: skip
    """A run that was sent so many seconds before NOW; `records` are those of its latest attempt.

    They are end, done, failure, leave, job, metrics and heartbeats.
    """
    run = RunDir(folder)
    for path in (run.attempts, run.failure(1).parent, run.heartbeats, run.logs):
        path.mkdir(parents=True)
    plan = RunPlan(version="0", spec=spec_of(), cluster=CLUSTER, layout=layout, tokens=None)
    run.plan.write_text(plan.model_dump_json())
    os.utime(run.plan, (NOW - sent, NOW - sent))
    if sent_at_all:
        write_state(run, _state(run, job_id, NOW - sent))
    for attempt in range(1, attempts + 1):
        run.attempt(attempt).mkdir()
        run.role_log(attempt, "any").parent.mkdir()
    if attempts and "job" not in records:
        records["job"] = {"job_id": job_id or "30", "components": {}, "restarts": 0, "host": "big1", "time": NOW - 900}
    for name, value in records.items():
        write_record(run, name, value, attempts)
    if cancelled is not None:
        write_json(run.cancel_record, cancelled)
    for attempt in range(1, attempts + 1):
        os.utime(run.attempt(attempt), (NOW - 900, NOW - 900))
    return run


def _state(run: RunDir, job_id: str | None, since: float) -> RunState:
    return RunState(
        run=run.name, run_dir=str(run.path), scheduler="slurm", job_id=job_id, attempts=0, controller=None,
        token=JobToken(job_name=NAME, script=str(run.script), since=since), created=since, command=["kd-launch"],
        folder="/", git=None, versions={},
    )  # fmt: skip


def queued(*rows: str) -> Asked:
    """squeue's answer about job 30; a row is id|state|reason, and may go on with |nodes|start|restarts."""
    lines = []
    for row in rows:
        number, state, reason, nodes, start, restarts = [*row.split("|"), "", "N/A", "0"][:6]
        lines.append(f"{number}|{state}|{restarts}|{start}|{nodes}|{NAME}|{reason}\n")
    return Asked("30", read_squeue("".join(lines))["30"])


def accounted(*rows: str) -> Asked:
    """sacct's answer; a row is id|state, and may go on with |nodes."""
    lines = [f"{number}|{state}|{''.join(nodes)}|{NAME}\n" for number, state, *nodes in (r.split("|") for r in rows)]
    return Asked("30", read_sacct("".join(lines))["30"])


UNKNOWN_JOB = Asked("30")
SILENT = Asked("30", silent="squeue gave no answer within 30 s")


def end(next_: str, outcome: str, why: str = "for a reason") -> dict[str, Any]:
    return {"srun_status": 1, "next": next_, "outcome": outcome, "why": why, "time": NOW - 100}


def failed(kind: str, rank: int = 2, host: str = "big2", error: str = "no sign of life for 60 s") -> dict[str, Any]:
    role_name = "teacher" if rank < 4 else "student"
    record = {"attempt": 1, "kind": kind, "role": role_name, "rank": rank, "host": host, "error": error}
    return {**record, "time": NOW - 150, "traceback": None}


def beats(age: float, *, attempt: int = 1, ended: str | None = None) -> list[dict[str, Any]]:
    """One of each rank, so old."""
    hosts = ("big1", "big1", "big2", "big2", "small1", "small1")
    return [
        {
            "rank": rank, "role": "teacher" if rank < 4 else "student", "host": hosts[rank], "pid": 1,
            "time": NOW - age, "done": 4, "total": 10, "unit": "steps", "waiting_for": None, "since": 0.0,
            "attempt": attempt, "ended": ended, "where": [],
        }
        for rank in range(6)
    ]  # fmt: skip

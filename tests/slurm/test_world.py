"""Who each rank is under every launch, and where all of them meet."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.box import Box
from tests.slurm.projects import POOLS, Project, cpu_pool, write_project

WIDE = (cpu_pool("cpu", 4, 4),)
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m kd_launch.runtime" ] && exec {python} {ranks} "$@"
exec {python} "$@"
"""
TWO_STEPS = {"hetjob_steps": False}
# Launch, pools, each role's pool and ranks, other settings -> ranks on each node, node after node.
CASES: dict[str, tuple[str, Any, tuple[str, int], tuple[str, int], dict[str, Any], list[tuple[str, int]]]] = {
    "two components": ("hetjob", POOLS, ("teach", 4), ("train", 2), {}, [("t", 2), ("t", 2), ("s", 2)]),
    # Here the step's list of tasks per node is in another order than the nodes' numbers.
    "a smaller student": ("hetjob", POOLS, ("teach", 4), ("train", 1), {}, [("t", 2), ("t", 2), ("s", 1)]),
    "two parts": ("hetstep", POOLS, ("cpu", 4), ("cpu", 2), {}, [("c", 2), ("c", 2), ("c", 2)]),
    "two sruns": ("two_steps", POOLS, ("teach", 4), ("train", 2), TWO_STEPS, [("t", 2), ("t", 2), ("s", 2)]),
    "3 and 1 of a node": ("ranks", WIDE, ("cpu", 3), ("cpu", 1), {}, [("c", 4)]),
    "3 and 2 of two nodes": ("ranks", WIDE, ("cpu", 3), ("cpu", 2), {}, [("c", 3), ("c", 2)]),
}  # fmt: skip


def write(
    box: Box, models: Path, name: str, pools: Any, teacher: tuple[str, int], student: tuple[str, int], cluster: Any
) -> Project:
    roles = {
        role: {"pool": pool, "gpus": ranks} for role, (pool, ranks) in {"teacher": teacher, "student": student}.items()
    }
    training = {"training": {"global_batch_size": 4 * student[1]}}
    project = write_project(
        box, f"placed {name}", models, pools=pools, cluster={"python": "./python", **cluster}, **roles, **training
    )
    python, ranks = (shlex.quote(str(path)) for path in (sys.executable, Path(__file__).with_name("placed_ranks.py")))
    project.write("python", PYTHON.format(python=python, ranks=ranks)).chmod(0o755)
    return project


def places(project: Project, run: Path) -> list[dict[str, Any]]:
    status = project.wait(run)
    logs = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(run.rglob("*.log")))
    assert status["state"] == "COMPLETED", f"{status}\n{logs}"
    files = sorted(run.glob("place-*.json"), key=lambda path: int(path.stem.removeprefix("place-")))
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def runs(box: Box, models: Path) -> dict[str, tuple[Project, Path]]:
    """All cases, submitted before the first is waited for."""
    projects = {
        name: write(box, models, name, pools, teacher, student, cluster)
        for name, (_, pools, teacher, student, cluster, _) in CASES.items()
    }
    return {name: (project, project.submit(f"--set=launch={CASES[name][0]}")) for name, project in projects.items()}


@pytest.mark.parametrize("name", CASES)
def test_each_rank_knows_its_place(name: str, runs: dict[str, tuple[Project, Path]]) -> None:
    launch, _, (_, teachers), (_, students), _, nodes = CASES[name]
    project, run = runs[name]
    assert json.loads((run / "plan.json").read_text())["layout"]["launch"] == launch
    found = places(project, run)
    assert [place["rank"] for place in found] == list(range(teachers + students))
    assert {place["world_size"] for place in found} == {teachers + students}
    assert [place["role"] for place in found] == ["teacher"] * teachers + ["student"] * students
    expected = [(kind, local, ranks) for kind, ranks in nodes for local in range(ranks)]
    assert [(place["host"][0], place["local_rank"], place["local_world_size"]) for place in found] == expected
    assert len({place["host"] for place in found}) == len(nodes)
    assert all(place["host"] == place["hostname"] for place in found)
    assert {(place["attempt"], place["launcher"]) for place in found} == {(1, "slurmstepd")}


def test_all_meet_on_rank_0s_host_also_where_the_students_node_sorts_first(box: Box, models: Path) -> None:
    settings = {"environment": {"MEET": "1", "OMP_NUM_THREADS": "1"}}
    pools = (cpu_pool("teach", 1, 1), cpu_pool("train", 1, 1))
    project = write(box, models, "meeting", pools, ("teach", 1), ("train", 1), settings)
    submitted = [project.submit() for _ in range(2)]
    found = [places(project, run) for run in submitted]
    for run, (teacher, student) in zip(submitted, found, strict=True):
        assert student["host"] < teacher["host"]
        address = json.loads((run / "attempts/attempt-1/store.json").read_text())
        assert address["host"] == teacher["hostname"]
        assert teacher["port"] == student["port"] == address["port"]

"""Every launch gives one world, in which the ranks learn what those of one machine do."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kd_launch.run_dir import RunDir
from tests.slurm.box import Box
from tests.slurm.checkpointed import undisturbed
from tests.slurm.pretended import write_pretended
from tests.slurm.projects import POOLS, STEPS, Project, cpu_pool, logs_of, write_project

ONE_NODE = (cpu_pool("cpu", 4, 4),)


@dataclass(frozen=True)
class Case:
    """A way to run the same training."""

    launch: str
    teachers: int
    students: int
    hosts: list[int]
    """Ranks on each host, in the order of the ranks."""
    pool: str | None = None
    """Of both roles; None: teach and train."""
    pools: tuple[dict[str, Any], ...] = POOLS
    cluster: Mapping[str, Any] = field(default_factory=dict)
    asked: bool = True
    """Whether the spec names the launch; else it follows from the rest."""

    def project(self, box: Box, models: Path, name: str) -> Project:
        roles = {"teacher": ("teach", self.teachers), "student": ("train", self.students)}
        spec = {role: {"pool": self.pool or pool, "gpus": gpus} for role, (pool, gpus) in roles.items()}
        return write_project(box, f'it\'s {name} "place"', models, pools=self.pools, cluster=self.cluster, **spec)

    @property
    def arguments(self) -> list[str]:
        return [f"--set=launch={self.launch}"] if self.asked else []


CASES = {
    "two components": Case("hetjob", 4, 2, [2, 2, 2], asked=False),
    "two parts": Case("hetstep", 2, 1, [2, 1], pool="cpu"),
    "one part": Case("ranks", 2, 1, [2, 1], pool="cpu"),
    "two sruns": Case("two_steps", 2, 1, [2, 1], cluster={"hetjob_steps": False}, asked=False),
    "1 and 1 of a node": Case("ranks", 1, 1, [2], pool="cpu", pools=ONE_NODE, asked=False),
}


@pytest.fixture(scope="module")
def runs(box: Box, models: Path) -> dict[str, tuple[Project, Path]]:
    """All of them, submitted at once."""
    projects = {name: case.project(box, models, name) for name, case in CASES.items()}
    return {name: (project, project.submit(*CASES[name].arguments)) for name, project in projects.items()}


@pytest.fixture(scope="module")
def local_losses(runs: dict[str, tuple[Project, Path]], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of four teachers and two students as processes of one machine."""
    _, run = runs["two components"]
    calm = undisturbed(RunDir(run), tmp_path_factory.mktemp("on one machine"))
    losses = [loss for loss, _ in calm.losses().values()]
    assert len(losses) == STEPS
    return losses


def heartbeats(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "heartbeats").glob("rank-*.json"))]


@pytest.mark.parametrize("name", CASES)
def test_a_launch_is_one_world_with_the_local_runs_losses(
    name: str, runs: dict[str, tuple[Project, Path]], local_losses: list[float]
) -> None:
    case, (project, run) = CASES[name], runs[name]
    status = project.wait(run, timeout=400)
    assert (status["state"], status["ended"], status["attempt"]) == ("COMPLETED", True, 1), logs_of(run)
    assert json.loads((run / "plan.json").read_text())["layout"]["launch"] == case.launch
    beats = heartbeats(run)
    assert [beat["rank"] for beat in beats] == list(range(case.teachers + case.students))
    assert [beat["role"] for beat in beats] == ["teacher"] * case.teachers + ["student"] * case.students
    hosts = [(host, len(list(ranks))) for host, ranks in itertools.groupby(beat["host"] for beat in beats)]
    assert [ranks for _, ranks in hosts] == case.hosts
    assert len(dict(hosts)) == len(hosts), "a host has its ranks one after the other"
    assert {node for part in status["components"] for node in part["nodes"]} == set(dict(hosts))
    assert project.losses(run) == pytest.approx(local_losses, rel=1e-5)


def test_a_site_without_exported_environment_gives_its_ranks_theirs(box: Box, models: Path) -> None:
    pools = [{**pool, "sbatch": ["--export=NONE"]} for pool in POOLS]
    pools[1]["environment"] = {"OF_THE_POOL": "it's here"}
    site = {"environment": {"OF_THE_SITE": "1"}, "setup": "export OF_THE_SETUP=2"}
    place = write_pretended(box, 'export "none"', models, pools=pools, cluster=site)
    run = place.submit("--wait", every=["describe", ["beat", 10], "done"], env={"MINE": "1"})
    for rank in range(6):
        environ = json.loads((run.path / f"rank-{rank}.json").read_text())["environ"]
        assert environ["HOME"] == str(box.home)
        assert (environ["OF_THE_SITE"], environ["OF_THE_SETUP"]) == ("1", "2")
        assert environ.get("OF_THE_POOL") == ("it's here" if rank >= 4 else None)
        assert "MINE" not in environ

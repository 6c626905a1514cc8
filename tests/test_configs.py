"""Every shipped configuration loads, plans and renders, and the list of them is whole."""

from pathlib import Path

import pytest

from kd_launch.plan import Layout
from kd_launch.preparation import Source, load_and_plan
from kd_launch.reading.spec_file import load_cluster
from kd_launch.scripts.render import render

CONFIGS = Path(__file__).parent.parent / "configs"
SPECS = sorted(path.name for path in CONFIGS.glob("*.yaml"))
CLUSTERS = sorted(path.name for path in (CONFIGS / "clusters").glob("*.yaml"))


def plan_and_render(name: str, home: Path) -> tuple[Layout, str]:
    """The chosen layout of a shipped spec and its script; nothing of this machine's caches is seen."""
    environ = {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    inputs, plan = load_and_plan(Source(CONFIGS / name, (), None, environ, home))
    run_dir = Path(inputs.cluster.run_root, "a-run")
    return plan.chosen, render(inputs.spec, inputs.cluster, plan.chosen, run_dir, "a-run", "python3")


def test_there_are_configs() -> None:
    assert {"qwen3-14b-to-1.7b.yaml", "llama-3.1-70b-to-8b.yaml", "llama-3.1-8b-to-3.2-1b.yaml"} <= set(SPECS)
    assert {"this-machine.yaml", "h100.yaml", "a100.yaml", "mixed.yaml"} <= set(CLUSTERS)


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_loads(name: str) -> None:
    path = CONFIGS / "clusters" / name
    cluster = load_cluster(path, environ={}, cwd=Path("/"))
    assert cluster.name in (path.stem, f"example-{path.stem}")
    assert all(pool.cpus_per_node and pool.memory_gib for pool in cluster.pools)


@pytest.mark.parametrize("name", SPECS)
def test_spec_plans_and_renders(name: str, tmp_path: Path) -> None:
    layout, script = plan_and_render(name, tmp_path)
    assert script.startswith("#!/bin/bash\n")
    assert ("#SBATCH --partition=" in script) == (layout.launch is not None)


def test_the_mixed_cluster_makes_a_heterogeneous_job(tmp_path: Path) -> None:
    layout, script = plan_and_render("llama-3.1-70b-to-8b.yaml", tmp_path)
    assert (layout.teacher.pool, layout.student.pool, layout.launch) == ("a100", "h100", "hetjob")
    assert "\n#SBATCH hetjob\n" in script


def test_the_front_page_spec_is_five_lines() -> None:
    lines = (CONFIGS / "qwen3-14b-to-1.7b.yaml").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["teacher", "student", "data", "training", "cluster"]


def test_the_list_of_configurations_is_whole() -> None:
    text = (CONFIGS / "README.md").read_text()
    assert [name for name in SPECS if f"`{name}`" not in text] == []
    assert [name for name in CLUSTERS if f"`clusters/{name}`" not in text] == []

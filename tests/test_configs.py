"""Every shipped configuration loads, plans and renders, and the list of them is whole."""

import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from render_cases import cluster_of, pool

from kd_launch.cluster import Cluster
from kd_launch.plan import Layout
from kd_launch.preparation import Source, load_and_plan
from kd_launch.reading.spec_file import load_cluster
from kd_launch.scripts.render import render
from kd_launch.submission import cluster_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
SPECS = sorted(path.name for path in CONFIGS.glob("*.yaml"))
CLUSTERS = sorted(path.name for path in (CONFIGS / "clusters").glob("*.yaml"))
MADE_UP = {"this-machine.yaml", "h100.yaml", "a100.yaml", "mixed.yaml"}
SHELLCHECK = Path(sysconfig.get_path("scripts"), "shellcheck")

# Of each real machine: directives that every component carries, and what every part of the srun line holds.
SITES = {
    "clariden": (
        "--partition=normal --account=g123 --exclusive --mem=450G --ntasks-per-node=4 --cpus-per-task=72",
        "--environment=/users/you/kd-launch.toml",
    ),
    "delta": ("--account=account_name --exclusive --mem=0 --constraint=scratch", "apptainer exec --nv"),
    "frontier": (
        "--partition=extended --account=ABC123 --gpus-per-node=8 --cpus-per-task=7 --network=disable_rdzv_get",
        "--cpus-per-task=7",
    ),
    "isambard-ai": ("--partition=workq --gpus-per-node=4 --time=1-00:00:00", "--cpus-per-task=72"),
    "juwels-booster": ("--partition=booster --account=your-budget --gres=gpu:4", "--cpus-per-task=24"),
    "leonardo": ("--partition=boost_usr_prod --account=project_id --gres=gpu:4 --mem=494000", "--cpus-per-task=8"),
    "lumi": (
        "--partition=standard-g --account=project_ID --gpus-per-node=8 --cpus-per-task=7 --mem=480G",
        "singularity exec --rocm /appl/local/laifs/containers/lumi-multitorch-latest.sif /scratch/project_ID/venv/bin/",
    ),
    "pegasus": (
        "--gpus-per-node=8 --mem-per-gpu=224G",
        "--container-image=/enroot/nvcr.io_nvidia_pytorch_23.12-py3.sqsh "
        "--container-mounts=/netscratch:/netscratch,/ds:/ds:ro",
    ),
    "perlmutter": ('--account=m0000_g --qos=regular --constraint="gpu&hbm80g" --gpus-per-node=4', "--cpus-per-task=32"),
    "roihu": ("--partition=gpularge --account=project_ID --gres=gpu:gh200:4 --cpus-per-task=72", "--cpus-per-task=72"),
}


def plan_and_render(name: str, home: Path, *settings: str, cluster: Path | None = None) -> tuple[Layout, str]:
    """The chosen layout of a shipped spec and its script; nothing of this machine's caches is seen."""
    environ = {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    inputs, plan = load_and_plan(Source(CONFIGS / name, settings, cluster, environ, home))
    run_dir = Path(inputs.cluster.run_root, "a-run")
    return plan.chosen, render(inputs.spec, inputs.cluster, plan.chosen, run_dir, "a-run", "python3")


def at_site(site: str, home: Path, *settings: str) -> tuple[Layout, str]:
    """Qwen3-14B teaches Qwen3-1.7B on at most four nodes of a real machine."""
    cluster = CONFIGS / "clusters" / f"{site}.yaml"
    return plan_and_render("qwen3-14b-to-1.7b.yaml", home, "max_nodes=4", *settings, cluster=cluster)


def components(script: str) -> list[list[str]]:
    """The directives of each component."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    borders = [i for i, line in enumerate(lines) if line == "hetjob"]
    starts, ends = [0, *(border + 1 for border in borders)], [*borders, len(lines)]
    return [lines[start:end] for start, end in zip(starts, ends, strict=True)]


def test_there_are_configs() -> None:
    assert {"qwen3-14b-to-1.7b.yaml", "llama-3.1-70b-to-8b.yaml", "llama-3.1-8b-to-3.2-1b.yaml"} <= set(SPECS)
    assert {*MADE_UP, *(f"{site}.yaml" for site in SITES)} == set(CLUSTERS)


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


# Real machines


@pytest.mark.parametrize("site", SITES)
def test_a_real_machine_gets_a_script_in_its_own_words(site: str, tmp_path: Path) -> None:
    layout, script = at_site(site, tmp_path, "placement=disjoint")
    directives, words = SITES[site]
    assert [set(directives.split()) - set(component) for component in components(script)] == (
        [set(), set()] if layout.launch == "hetjob" else [set()]
    )
    assert script[script.index("\nsrun ") :].count(words) == 2


@pytest.mark.parametrize("site", SITES)
def test_bash_and_shellcheck_accept_a_real_machines_scripts(site: str, tmp_path: Path) -> None:
    files = [tmp_path / "disjoint", tmp_path / "colocated"]
    for file in files:
        file.write_text(at_site(site, tmp_path, f"placement={file.name}")[1])
        subprocess.run(["bash", "-n", file], check=True)
    command = [SHELLCHECK, "--shell=bash", "--severity=style", *files]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("site", SITES)
def test_a_real_machines_file_says_where_it_is_from_and_what_nobody_verified(site: str) -> None:
    comments = [line for line in (CONFIGS / "clusters" / f"{site}.yaml").read_text().splitlines() if line[:1] == "#"]
    assert [line for line in comments if line.startswith("# Sources: ")]
    assert [line for line in comments if line.startswith("# Not verified: ")]


def test_delta_puts_the_roles_on_partitions_of_their_own(tmp_path: Path) -> None:
    layout, script = at_site("delta", tmp_path, "placement=disjoint")
    assert (layout.launch, layout.teacher.pool, layout.student.pool) == ("hetjob", "a100", "h200")
    assert [component[1] for component in components(script)] == ["--partition=gpuA100x4", "--partition=gpuH200x8"]


def test_a_site_that_counts_components_as_jobs_gets_one_allocation(tmp_path: Path) -> None:
    layout, script = at_site("frontier", tmp_path, "placement=disjoint")
    assert layout.launch == "hetstep"
    assert "hetjob" not in script


def test_lumis_ranks_sit_beside_their_gpus(tmp_path: Path) -> None:
    _, script = at_site("lumi", tmp_path, "placement=disjoint")
    masks = "7e000000000000,7e00000000000000,7e0000,7e000000,7e,7e00,7e00000000,7e0000000000"
    assert script.count(f" --cpu-bind=mask_cpu:{masks} ") == 2


def test_juelichs_hosts_and_interfaces(tmp_path: Path) -> None:
    cluster = load_cluster(CONFIGS / "clusters/juwels-booster.yaml", environ={}, cwd=Path("/"))
    assert cluster.host_suffix == "i"
    _, script = at_site("juwels-booster", tmp_path)
    assert "\nexport NCCL_SOCKET_IFNAME=ib0\nexport GLOO_SOCKET_IFNAME=ib0\n" in script
    assert "\nexport CUDA_VISIBLE_DEVICES=0,1,2,3\n" in script


def test_a_partition_is_left_out_only_where_the_file_says_so(tmp_path: Path) -> None:
    _, script = at_site("perlmutter", tmp_path, "placement=disjoint")
    assert "--partition" not in script
    cluster = cluster_of(pool("a", partition=None))
    assert Cluster.model_validate(yaml.safe_load(cluster_yaml(cluster)), strict=False) == cluster
    forgotten = {name: value for name, value in pool("a").items() if name != "partition"}
    with pytest.raises(ValidationError, match=r"pool a needs a partition, .* null where the site chooses it"):
        cluster_of(forgotten)


@pytest.mark.parametrize("option", ["--cpu-bind none", "-c8", ":", "--", "touch canary"])
def test_sruns_options_are_single_words(option: str) -> None:
    with pytest.raises(ValidationError, match=f"pool a: srun holds '{option}' but each must be one word"):
        cluster_of(pool("a", srun=(option,)))


def test_a_container_engine_has_no_mounts_of_ours() -> None:
    container = {"runtime": "container_engine", "image": "/users/you/kd.toml", "mounts": ("/scratch",)}
    with pytest.raises(ValidationError, match="container_engine reads its mounts from the definition file"):
        cluster_of(pool("a", container=container))

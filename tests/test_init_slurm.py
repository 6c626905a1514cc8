"""The cluster file as Slurm describes sites that no test cluster is like; tests/slurm/test_init.py asks a real one."""

from pathlib import Path

import pytest
from recorded_site import RecordedSlurm, recorded, replaced

from kd_launch.catalog import find_gpu
from kd_launch.cluster import Cluster
from kd_launch.errors import SlurmRefusedError, SlurmSilentError
from kd_launch.init.files import write_first_files
from kd_launch.init.pools import catalog_gpu
from kd_launch.init.slurm_site import Described, describe_slurm
from kd_launch.reading.spec_file import load_cluster


def node(name: str, gres: str, partition: str, **more: str) -> str:
    fields = {
        "CPUEfctv": "96", "CPUTot": "96", "AvailableFeatures": "(null)", "Gres": gres, "RealMemory": "1945600",
        "State": "IDLE", **more, "Partitions": partition,
    }  # fmt: skip
    return f"NodeName={name} " + " ".join(f"{key}={value}" for key, value in fields.items()) + "\n"


def partition(name: str, **more: str) -> str:
    fields = {
        "AllowGroups": "ALL", "AllowAccounts": "ALL", "AllowQos": "ALL", "Hidden": "NO", "MaxNodes": "UNLIMITED",
        "MaxTime": "2-00:00:00", "RootOnly": "NO", "OverSubscribe": "NO", "State": "UP", **more,
    }  # fmt: skip
    return f"PartitionName={name} " + " ".join(f"{key}={value}" for key, value in fields.items()) + "\n"


def slurm(nodes: str, partitions: str, **changes: str) -> RecordedSlurm:
    """A site of these; with the recorded one's accounting. `changes` of its configuration."""

    def configure(text: str) -> str:
        for key, value in changes.items():
            line = next(line for line in text.splitlines() if line.startswith(f"{key} "))
            text = text.replace(line, f"{key} = {value}")
        return text

    return RecordedSlurm(nodes=lambda _: nodes, partitions=lambda _: partitions, config=configure)


def read(described: Described, folder: Path) -> Cluster:
    cluster, _ = write_first_files(folder, described.text, {})
    return load_cluster(cluster, environ={}, cwd=folder)


def test_kinds_of_nodes_in_one_partition(tmp_path: Path) -> None:
    nodes = (
        node("a1", "gpu:a100_80gb:8(S:0-1)", "gpu")
        + node("a2", "gpu:a100_80gb:8(S:0-1)", "gpu", RealMemory="972800", State="DOWN*")
        + node("a3", "gpu:a100_80gb:8(S:0-1),nvme:1", "gpu", RealMemory="972800")
        + node("h1", "gpu:nvidia_h100_80gb_hbm3:4(S:0-1)", "gpu", CPUEfctv="64")
        + node("c1", "(null)", "gpu,cpu")
    )
    described = describe_slurm(slurm(nodes, partition("gpu") + partition("cpu")))
    cluster = read(described, tmp_path)
    assert described.notes == ()
    a100, h100 = cluster.pools
    assert (a100.name, a100.partition, a100.nodes, a100.gpus_per_node) == ("gpu", "gpu", 2, 8)
    assert (a100.gpu, h100.gpu) == ("A100-SXM-80", "H100-SXM-80")
    # Equal but for their memory: the least of it. Types are named, since the partition has two.
    assert (a100.memory_gib, a100.cpus_per_node, h100.cpus_per_node) == (950, 96, 64)
    assert a100.gpu_directive == "--gpus-per-node=a100_80gb:{n}"
    assert (h100.name, h100.gpu_directive) == ("gpu-2", "--gpus-per-node=nvidia_h100_80gb_hbm3:{n}")
    assert "  # left out, for they are out of order: a2" in described.text
    assert "# Left out: partition cpu, which has no GPUs." in described.text
    assert (cluster.account, cluster.time_limit, cluster.hetjobs) == ("team", "2-00:00:00", "auto")


def test_one_type_of_gpu_needs_no_name(tmp_path: Path) -> None:
    site = slurm(node("h1", "gpu:h100:8", "gpu"), partition("gpu"))
    assert read(describe_slurm(site), tmp_path / "new").pools[0].gpu_directive == "--gpus-per-node={n}"
    older = slurm(node("h1", "gpu:h100:8", "gpu"), partition("gpu"), SelectType="select/linear")
    assert read(describe_slurm(older), tmp_path / "old").pools[0].gpu_directive == "--gres=gpu:{n}"


@pytest.mark.parametrize(
    ("name", "gpu", "is_guess"),
    [
        ("h100", "H100-SXM-80", False),
        ("nvidia_a100_80gb_pcie", "A100-PCIE-80", False),
        ("a100.80", "A100-SXM-80", False),
        ("a100_40g", "A100-SXM-40", False),
        ("a100", "A100-SXM-40", True),
        ("nvidia_a100", "A100-SXM-40", True),
        ("v100", "V100-SXM-16", True),
        ("mi250", "MI250X-GCD", True),
    ],
)
def test_names_that_sites_give_to_gpus(name: str, gpu: str, is_guess: bool) -> None:
    found = catalog_gpu(name)
    assert (found.id, found.is_known, found.is_guess) == (gpu, True, is_guess)
    assert find_gpu(found.id)


@pytest.mark.parametrize("name", ["", "a10", "1g.5gb", "quadro_p1000", "a"])
def test_gpus_that_the_catalog_does_not_know(name: str) -> None:
    assert not catalog_gpu(name).is_known


def test_a_type_that_leaves_the_memory_open_is_guessed_low(tmp_path: Path) -> None:
    described = describe_slurm(slurm(node("a1", "gpu:a100:4", "gpu"), partition("gpu")))
    assert read(described, tmp_path).pools[0].gpu == "A100-SXM-40"
    (note,) = described.notes
    assert note.startswith("pool gpu: gpu is A100-SXM-40, a guess: found as a100, or A100-PCIE-40")
    assert "# gpu is one of: V100-SXM-16" in described.text


def test_a_feature_says_which_gpu_it_is(tmp_path: Path) -> None:
    features = {"AvailableFeatures": "ib,a100_80gb"}
    typed = describe_slurm(slurm(node("a1", "gpu:a100:4", "gpu", **features), partition("gpu")))
    untyped = describe_slurm(slurm(node("a1", "gpu:4", "gpu", **features), partition("gpu")))
    other = describe_slurm(slurm(node("a1", "gpu:v100:4", "gpu", **features), partition("gpu")))
    assert read(typed, tmp_path / "typed").pools[0].gpu == "A100-SXM-80"
    assert read(untyped, tmp_path / "untyped").pools[0].gpu == "A100-SXM-80"
    assert read(other, tmp_path / "other").pools[0].gpu == "V100-SXM-16"
    assert "  # features, for constraint: ib, a100_80gb" in typed.text


def test_an_unknown_gpu_beside_a_known_one_is_a_comment(tmp_path: Path) -> None:
    nodes = node("h1", "gpu:h100:8", "gpu") + node("q1", "gpu:quantum:2", "odd")
    described = describe_slurm(slurm(nodes, partition("odd") + partition("gpu")))
    assert [pool.name for pool in read(described, tmp_path).pools] == ["gpu"]
    assert "  #   gpu: quantum  # Slurm calls it quantum; write one of those above" in described.text
    assert described.notes == ()


def test_gpus_that_are_all_unknown_are_assumed(tmp_path: Path) -> None:
    described = describe_slurm(slurm(node("q1", "gpu:quantum:2", "odd"), partition("odd")))
    assert read(described, tmp_path).pools[0].gpu == "A100-SXM-40"
    assert described.notes == (
        "pool odd: gpu is A100-SXM-40, assumed: Slurm calls it quantum; correct it before you trust a plan",
    )


def test_of_partitions_with_the_same_nodes_one_is_written(tmp_path: Path) -> None:
    nodes = "".join(node(f"h{i}", "gpu:h100:8", "debug,gpu,long" if i < 3 else "gpu") for i in range(1, 5))
    partitions = partition("debug", MaxTime="00:30:00") + partition("gpu") + partition("long", MaxTime="7-00:00:00")
    described = describe_slurm(slurm(nodes, partitions))
    cluster = read(described, tmp_path)
    # Where jobs may run longest.
    assert [(pool.name, pool.nodes) for pool in cluster.pools] == [("long", 2)]
    assert cluster.time_limit == "7-00:00:00"
    assert described.text.count("since it has nodes of pool long, and a job gets each once: choose one of them") == 2


def test_the_time_limit_is_one_that_every_pool_allows(tmp_path: Path) -> None:
    nodes = node("a1", "gpu:h100:8", "one") + node("b1", "gpu:h100:8", "two") + node("c1", "gpu:h100:8", "three")
    partitions = partition("one") + partition("two", MaxTime="08:00:00") + partition("three", MaxTime="UNLIMITED")
    described = describe_slurm(slurm(nodes, partitions))
    assert read(described, tmp_path / "a").time_limit == "08:00:00"
    assert "of pool two; others allow more" in described.text
    endless = describe_slurm(
        slurm(nodes, partitions.replace("2-00:00:00", "UNLIMITED").replace("08:00:00", "UNLIMITED"))
    )
    assert read(endless, tmp_path / "b").time_limit is None
    qos = slurm(nodes, partitions)
    qos.changes["qos"] = replaced("normal||", "normal||01:00:00")
    assert read(describe_slurm(qos), tmp_path / "c").time_limit == "01:00:00"


def test_with_which_account_and_qos_a_user_gets_in(tmp_path: Path) -> None:
    nodes = node("a1", "gpu:h100:8", "own") + node("b1", "gpu:h100:8", "poors") + node("c1", "gpu:h100:8", "long")
    partitions = (
        partition("own", MaxNodes="1")
        + partition("poors", AllowAccounts="poor,other")
        + partition("long", AllowQos="long")
    )
    described = describe_slurm(slurm(nodes, partitions + partition("shut", AllowAccounts="other")))
    pools = {pool.name: (pool.account, pool.qos) for pool in read(described, tmp_path).pools}
    assert pools == {"own": (None, None), "poors": ("poor", None), "long": (None, "long")}


def test_nodes_that_one_job_may_have(tmp_path: Path) -> None:
    nodes = "".join(node(f"h{i}", "gpu:h100:8", "gpu") for i in range(9))
    site = slurm(nodes, partition("gpu", MaxNodes="4"))
    assert read(describe_slurm(site), tmp_path / "a").pools[0].nodes == 4
    site.changes["associations"] = lambda _: "team|kdbox|||normal|normal||node=3|||||\n"
    assert read(describe_slurm(site), tmp_path / "b").pools[0].nodes == 3


def test_memory_and_whole_nodes(tmp_path: Path) -> None:
    node_ = node("h1", "gpu:h100:8", "gpu")
    shared = read(describe_slurm(slurm(node_, partition("gpu", OverSubscribe="EXCLUSIVE"))), tmp_path / "a").pools[0]
    # 500 MiB of each CPU are the default: less than the node has.
    assert (shared.mem, shared.sbatch) == ("0", ("--exclusive",))
    all_of_it = partition("gpu", DefMemPerNode="1945600")
    assert read(describe_slurm(slurm(node_, all_of_it)), tmp_path / "b").pools[0].mem is None
    uncounted = slurm(node_, partition("gpu"), SelectTypeParameters="CR_CORE")
    assert read(describe_slurm(uncounted), tmp_path / "c").pools[0].mem is None


def test_a_site_without_gpus(tmp_path: Path) -> None:
    described = describe_slurm(
        slurm(node("c1", "(null)", "null") + node("c2", "(null)", "12"), partition("null") + partition("12"))
    )
    pools = read(described, tmp_path).pools
    assert [(pool.partition, pool.gpu, pool.gpus_per_node) for pool in pools] == [("null", "CPU", 8), ("12", "CPU", 8)]


def test_a_site_without_accounting(tmp_path: Path) -> None:
    site = slurm(node("h1", "gpu:h100:8", "gpu"), partition("gpu"))
    site.silent["sacctmgr"] = "sacctmgr: You are not running a supported accounting_storage plugin\n"
    described = describe_slurm(site)
    assert read(described, tmp_path).account is None
    assert "# account: your-account       # not known: sacctmgr: You are not running" in described.text


def test_what_the_configuration_rules_out(tmp_path: Path) -> None:
    changes = {"SchedulerType": "sched/builtin", "SchedulerParameters": "a,disable_hetjob_steps", "JobRequeue": "0"}
    described = describe_slurm(slurm(node("h1", "gpu:h100:8", "gpu"), partition("gpu"), **changes))
    cluster = read(described, tmp_path)
    assert (cluster.hetjobs, cluster.hetjob_steps) == (False, False)
    assert "# JobRequeue is 0" in described.text


def test_the_words_of_others_stay_comments(tmp_path: Path) -> None:
    odd = partition("gpu") + partition("x y", AllowGroups="a b")
    described = describe_slurm(slurm(node("h1", "gpu:h100:8", "gpu,x y"), odd, ClusterName="My Cluster: 1"))
    assert read(described, tmp_path).name == "My-Cluster-1"
    assert "# Left out: partition x y, which takes jobs of group a b only." in described.text


def test_a_cluster_of_25_11(tmp_path: Path) -> None:
    site = RecordedSlurm(
        partitions=lambda _: recorded("25.11-partitions"),
        config=lambda _: recorded("25.11-config"),
        nodes=lambda _: recorded("24.11-nodes").replace("main,background", "cpu"),
    )
    described = describe_slurm(site)
    assert read(described, tmp_path).pools[0].gpu == "H100-SXM-80"
    assert "# Left out: partition gpu, which has no nodes." in described.text


def test_slurm_that_is_silent_or_has_nothing() -> None:
    silent = RecordedSlurm()
    silent.silent["scontrol"] = "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n"
    with pytest.raises(SlurmSilentError, match="Unable to contact"):
        describe_slurm(silent)
    with pytest.raises(SlurmRefusedError, match=r"no partition with nodes for you \(it names none"):
        describe_slurm(slurm("", ""))
    with pytest.raises(SlurmRefusedError, match="gpu: has no nodes"):
        describe_slurm(slurm("", partition("gpu")))

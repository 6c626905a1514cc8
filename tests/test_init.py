"""The first two files."""

import errno
import socket
import stat
from pathlib import Path

import pytest

from kd_launch.catalog import find_gpu
from kd_launch.cluster import Cluster
from kd_launch.errors import SpecError
from kd_launch.init.files import write_first_files
from kd_launch.init.this_machine import local_cluster
from kd_launch.local.machine import Machine, read_machine
from kd_launch.reading.spec_file import load, load_cluster

LAPTOP = Machine(cores=2, memory_gib=7.6, gpus=())


def read(text: str, folder: Path) -> Cluster:
    cluster, _ = write_first_files(folder, text, {})
    return load_cluster(cluster, environ={}, cwd=folder)


def test_this_machine_without_gpus(tmp_path: Path) -> None:
    cluster = read(local_cluster(LAPTOP, "my host.local"), tmp_path)
    assert (cluster.name, cluster.scheduler) == ("my-host.local", "local")
    pool = cluster.pools[0]
    assert (pool.gpu, pool.nodes, pool.gpus_per_node, pool.cpus_per_node, pool.memory_gib) == ("CPU", 1, 2, 2, 7)


@pytest.mark.parametrize(("cores", "processes"), [(1, 2), (2, 2), (8, 4), (64, 8)])
def test_processes_on_cores(tmp_path: Path, cores: int, processes: int) -> None:
    cluster = read(local_cluster(Machine(cores, 16.0, ()), "h"), tmp_path)
    assert cluster.pools[0].gpus_per_node == processes


def test_this_machine_with_gpus(tmp_path: Path) -> None:
    model = "NVIDIA H100 80GB HBM3"
    pool = read(local_cluster(Machine(96, 1900.0, (model,) * 4), "node1"), tmp_path).pools[0]
    assert (pool.gpus_per_node, pool.gpu) == (4, find_gpu(model).id)


def test_a_gpu_that_the_catalog_does_not_know(tmp_path: Path) -> None:
    text = local_cluster(Machine(8, 64.0, ("NVIDIA Imaginary 9",)), "h")
    assert 'gpu: "NVIDIA Imaginary 9"  # write one of: ' in text
    assert read(text, tmp_path).pools[0].gpu == "NVIDIA Imaginary 9"


def test_the_spec_is_the_least_that_a_user_writes(tmp_path: Path) -> None:
    _, spec = write_first_files(tmp_path / "new" / "folder", local_cluster(LAPTOP, "h"), {})
    lines = [line for line in spec.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 5
    loaded = load(spec, environ={}, cwd=tmp_path)
    assert loaded.spec.training.steps == 1000
    assert loaded.cluster.scheduler == "local"
    assert stat.S_IMODE(spec.stat().st_mode) & 0o444


@pytest.mark.parametrize("name", ["cluster.yaml", "distill.yaml"])
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_never_overwrites(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(SpecError, match=f"{name}: exists, and init never overwrites"):
        write_first_files(tmp_path, local_cluster(LAPTOP, "h"), {})
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_both_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(path: Path, data: bytes) -> None:
        if path.name == "distill.yaml":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(data)

    monkeypatch.setattr("kd_launch.init.files.write_whole", fill_up)
    with pytest.raises(OSError, match="No space left"):
        write_first_files(tmp_path, local_cluster(LAPTOP, "h"), {})
    assert list(tmp_path.iterdir()) == []


def test_this_very_machine() -> None:
    machine = read_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0.1
    assert "scheduler: local" in local_cluster(machine, socket.gethostname())


def test_reads_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       8388608 kB\nMemFree: 1 kB\n")
    for number in range(2):
        folder = tmp_path / "driver" / "nvidia" / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ: 1\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert read_machine(tmp_path, tmp_path).memory_gib == 8
    assert read_machine(tmp_path, tmp_path).gpus == ("NVIDIA A100-SXM4-80GB",) * 2
    (tmp_path / "memory.max").write_text(f"{2 << 30}\n")
    assert read_machine(tmp_path, tmp_path).memory_gib == 2

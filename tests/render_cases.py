"""The scripts of the golden files, by name; run as a program, it writes them all into a folder."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_launch.cluster import Cluster
from kd_launch.plan import Interval, Layout, RoleLayout
from kd_launch.scripts.render import render
from kd_launch.spec import Spec

GOLDEN = Path(__file__).parent / "golden"
RUN_DIR = Path("/shared/runs/chat-20260131-235959")
PYTHON = "/shared/venv/bin/python"


def pool(name: str, **changes: Any) -> dict[str, Any]:
    """A pool of 8-GPU nodes."""
    default = {
        "name": name,
        "partition": name,
        "nodes": 16,
        "gpus_per_node": 8,
        "gpu": "H100-SXM-80",
        "cpus_per_node": 96,
    }
    return default | changes


def cluster_of(*pools: dict[str, Any], **changes: Any) -> Cluster:
    """A Slurm cluster with these pools."""
    return Cluster.model_validate({"scheduler": "slurm", "pools": pools, **changes}, strict=False)


def role(pool_name: str, nodes: int, gpus_per_node: int, gpus: int | None = None, **changes: Any) -> RoleLayout:
    """One role's layout; its predictions are made up, for no script shows them."""
    count = nodes * gpus_per_node if gpus is None else gpus
    values = {"replicas": count, "fsdp": 1, "micro_batch_size": 1, "memory_gib": 1.0, "memory_limit_gib": 2.0}
    return RoleLayout(
        pool=pool_name, partition=pool_name, nodes=nodes, gpus_per_node=gpus_per_node, gpus=count, **values | changes
    )


def layout_of(launch: str | None, teacher: RoleLayout, student: RoleLayout, **changes: Any) -> Layout:
    """Both roles, disjoint on nodes of their own unless `changes` says otherwise."""
    second = Interval(p10=1, p50=1, p90=1)
    values: dict[str, Any] = {
        "placement": "disjoint",
        "shares_nodes": False,
        "payload": "hidden_states",
        "payload_bytes_per_token": 1.0,
        "prefetch": 2,
        "nodes": teacher.nodes + student.nodes,
        "gpus": teacher.gpus + student.gpus,
        "global_batch_size": 8,
        "grad_accumulation_steps": 1,
        "step_seconds": second,
        "samples_per_second": 1.0,
        "tokens_per_second": 1.0,
        "gpu_hours": 1.0,
        "gpus_idle": 0,
        "teacher_seconds": 1.0,
        "student_seconds": 1.0,
        "transport_seconds": 1.0,
        "limited_by": "student",
    }
    return Layout(launch=launch, teacher=teacher, student=student, **values | changes)


def spec_of(**slurm: Any) -> Spec:
    """A spec with these sbatch options; a script shows nothing else of it."""
    return Spec.model_validate(
        {
            "name": "chat",
            "teacher": {"model": "Qwen/Qwen3-14B"},
            "student": {"model": "Qwen/Qwen3-1.7B"},
            "data": {"train": "/shared/data/*.jsonl", "format": "chat"},
            "training": {"steps": 1000},
            "slurm": slurm,
            "cluster": "cluster.yaml",
        }
    )


@dataclass(frozen=True)
class Case:
    """What `render` gets."""

    cluster: Cluster
    layout: Layout
    spec: Spec = field(default_factory=spec_of)
    run_dir: Path = RUN_DIR
    run_name: str = RUN_DIR.name
    python: str = PYTHON

    def text(self) -> str:
        return render(self.spec, self.cluster, self.layout, self.run_dir, self.run_name, self.python)


MIXED = (pool("a100", gpu="A100-SXM-80", cpus_per_node=64), pool("h100", gpu="H100-SXM-80"))
H100 = cluster_of(pool("h100"))
CPU = {
    "scheduler": "local",
    "pools": [{"name": "here", "nodes": 1, "gpus_per_node": 3, "gpu": "CPU", "cpus_per_node": 8}],
}


def hetjob() -> Case:
    teacher_pool, student_pool = MIXED
    cluster = cluster_of(
        teacher_pool | {"sbatch": ("--exclusive",), "gpu_directive": "--gres=gpu:a100:{n}", "mem": "0", "qos": "long"},
        student_pool | {"constraint": "ib&nvlink", "account": "team-h", "mem": "900G"},
        time_limit="08:00:00",
        account="team",
        environment={"NCCL_SOCKET_IFNAME": "ib0", "HF_HOME": "/shared/hugging face"},
        setup="module load cuda\nmodule load nccl\n",
    )
    spec = spec_of(reservation="maintenance", dependency="afterok:123", mail_user="a@b.org", comment="Ann's 1st try")
    return Case(cluster, layout_of("hetjob", role("a100", 2, 8), role("h100", 1, 4)), spec)


def hetjob_pool_setup() -> Case:
    teacher_pool, student_pool = MIXED
    cluster = cluster_of(
        teacher_pool | {"setup": "module load cuda/11.8\n", "environment": {"NCCL_SOCKET_IFNAME": "ib0"}},
        student_pool | {"python": "/h100/venv/bin/python", "environment": {"NCCL_SOCKET_IFNAME": "it's ib1"}},
        environment={"NCCL_DEBUG": "WARN", "HF_HUB_OFFLINE": "0"},
        setup="module load cuda/12.6",
    )
    return Case(cluster, layout_of("hetjob", role("a100", 1, 8), role("h100", 2, 8)))


def hetjob_pyxis() -> Case:
    container = {"runtime": "pyxis", "image": "/shared/kd launch.sqsh", "mounts": ("/shared", "/scratch:/tmp")}
    cluster = cluster_of(*MIXED, container=container)
    return Case(cluster, layout_of("hetjob", role("a100", 1, 8), role("h100", 1, 8)))


def two_steps() -> Case:
    return Case(cluster_of(*MIXED), layout_of("two_steps", role("a100", 2, 8), role("h100", 1, 4)))


def hetstep_apptainer() -> Case:
    container = {"runtime": "apptainer", "image": "/shared/kd.sif", "mounts": ("/shared",)}
    cluster = cluster_of(pool("h100", container=container), signal_before_end_s=0)
    return Case(cluster, layout_of("hetstep", role("h100", 2, 8), role("h100", 1, 4)))


def local_colocated() -> Case:
    layout = layout_of(None, role("here", 1, 2), role("here", 1, 2), placement="colocated", nodes=1, gpus=2)
    return Case(Cluster.model_validate(CPU, strict=False), layout)


def local() -> Case:
    layout = layout_of(None, role("here", 1, 2), role("here", 1, 1), shares_nodes=True, nodes=1)
    return Case(Cluster.model_validate(CPU, strict=False), layout)


def shared(teacher: RoleLayout, student: RoleLayout, nodes: int, cluster: Cluster = H100) -> Case:
    return Case(cluster, layout_of("ranks", teacher, student, shares_nodes=True, nodes=nodes))


CASES: dict[str, Case] = {
    "hetjob": hetjob(),
    "hetjob-pool-setup": hetjob_pool_setup(),
    "hetjob-pyxis": hetjob_pyxis(),
    "hetstep": Case(H100, layout_of("hetstep", role("h100", 3, 8), role("h100", 1, 8))),
    "hetstep-apptainer": hetstep_apptainer(),
    "two_steps": two_steps(),
    "ranks-2-2": shared(role("small", 1, 2), role("small", 1, 2), 1, cluster_of(pool("small", gpus_per_node=4))),
    "ranks-5-3": shared(role("h100", 1, 5), role("h100", 1, 3), 1),
    "ranks-middle-node-shared": shared(role("h100", 2, 8, gpus=12), role("h100", 2, 8, gpus=12), 3),
    "ranks-last-node-smaller": Case(H100, layout_of("ranks", role("h100", 1, 8), role("h100", 1, 4))),
    "colocated": Case(
        H100,
        layout_of("ranks", role("h100", 2, 8), role("h100", 2, 8), placement="colocated", nodes=2, gpus=16),
    ),
    "local": local(),
    "local-colocated": local_colocated(),
}


def golden_path(name: str) -> Path:
    """Where a case's text is kept."""
    suffix = ".sh" if name.startswith("local") else ".sbatch"
    return GOLDEN / f"{name}{suffix}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, case in CASES.items():
        (folder / golden_path(name).name).write_text(case.text())

"""Models, clusters and specs that the planner's tests share."""

from typing import Any

from kd_launch.architecture import Architecture, from_config
from kd_launch.catalog import find_engine, find_gpu, model_config
from kd_launch.cluster import Cluster
from kd_launch.cost.constants import load_constants
from kd_launch.cost.setting import Setting, Site, site_of
from kd_launch.plan import Plan
from kd_launch.planner.search import make_plan
from kd_launch.spec import Spec


def model(hub_id: str) -> Architecture:
    """A well-known model of the catalog."""
    config = model_config(hub_id)
    assert config is not None
    return from_config(config, hub_id)


def tiny(**changes: Any) -> Architecture:
    """A byte-level model of about 2M parameters."""
    config = {
        "model_type": "llama",
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 512,
        "vocab_size": 258,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    }
    return from_config(config | changes, "tiny")


LLAMA_70B = model("meta-llama/Llama-3.1-70B")
LLAMA_8B = model("meta-llama/Llama-3.1-8B")
QWEN_14B = model("Qwen/Qwen3-14B")
QWEN_1_7B = model("Qwen/Qwen3-1.7B")
TINY_TEACHER = tiny()
TINY_STUDENT = tiny(
    hidden_size=96, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, intermediate_size=256
)


def pool(name: str = "h100", nodes: int = 2, **changes: Any) -> dict[str, Any]:
    """A pool of nodes with 8 H100 each on a 400 GB/s network."""
    default = {
        "name": name,
        "partition": name,
        "nodes": nodes,
        "gpus_per_node": 8,
        "gpu": "H100-SXM-80",
        "inter_node_gb_per_s": 400.0,
    }
    return default | changes


def slurm(*pools: dict[str, Any], **changes: Any) -> Cluster:
    """A Slurm cluster, resolved."""
    values = {"scheduler": "slurm", "hetjobs": True, "hetjob_steps": True, "pools": pools}
    return Cluster.model_validate(values | changes, strict=False)


def local(processes: int = 2, **changes: Any) -> Cluster:
    """This machine: CPU processes with a core each."""
    here = {"name": "here", "nodes": 1, "gpus_per_node": processes, "gpu": "CPU", "cpus_per_node": processes}
    values = {
        "scheduler": "local",
        "hetjobs": True,
        "hetjob_steps": True,
        "pools": [{**here, "memory_gib": 24.0} | changes],
    }
    return Cluster.model_validate(values, strict=False)


def spec_of(batch: int = 256, length: int = 4096, **sections: Any) -> Spec:
    """A spec; sections such as teacher={"gpus": 4} add to it."""
    values: dict[str, Any] = {
        "name": "case",
        "teacher": {"model": "teacher"},
        "student": {"model": "student"},
        "data": {"train": "data", "sequence_length": length},
        "training": {"steps": 1000, "global_batch_size": batch},
        "cluster": "cluster.yaml",
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return Spec.model_validate(values, strict=False)


def plan_qwen(cluster: Cluster, batch: int = 256, top: int = 20, **sections: Any) -> Plan:
    """Qwen3-14B into 1.7B, without a clock."""
    return make_plan(spec_of(batch, **sections), cluster, QWEN_14B, QWEN_1_7B, top=top, clock=lambda: 0.0)


def plan_llama(cluster: Cluster, batch: int = 256, **sections: Any) -> Plan:
    """Llama-3.1-70B into 8B, without a clock."""
    return make_plan(spec_of(batch, **sections), cluster, LLAMA_70B, LLAMA_8B, clock=lambda: 0.0)


def plan_tiny(cluster: Cluster, batch: int = 16, length: int = 128, **sections: Any) -> Plan:
    """The tiny models in float32, without a clock."""
    sections = {
        **sections,
        "teacher": {"dtype": "float32", **sections.get("teacher", {})},
        "student": {"dtype": "float32", **sections.get("student", {})},
    }
    return make_plan(spec_of(batch, length, **sections), cluster, TINY_TEACHER, TINY_STUDENT, clock=lambda: 0.0)


def setting_of(teacher: Architecture, student: Architecture, length: int = 4096, **changes: Any) -> Setting:
    """Two models in bfloat16 on our engine."""
    values = {
        "teacher": teacher,
        "student": student,
        "sequence_length": length,
        "teacher_dtype": "bfloat16",
        "student_dtype": "bfloat16",
        "top_k": 64,
        "compiled": False,
        "engine": find_engine("kd-launch"),
        "constants": load_constants(),
    }
    return Setting(**values | changes)


def site(**changes: Any) -> Site:
    """One pool as the cost model sees it, in bfloat16."""
    described = slurm(pool(**changes)).pools[0]
    return site_of(described, find_gpu(described.gpu), "bfloat16", "bfloat16", load_constants())

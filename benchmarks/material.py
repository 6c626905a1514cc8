"""What benchmarks compute on: models with random weights, random tokens, and the spec that runs them here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, SEQUENCE, BATCH = 49_152, 128, 4
# Llama's form, embeddings tied. 60M and 20M parameters, most of them in the layers of one and the head of the other.
TEACHER = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 11, "num_attention_heads": 8}
STUDENT = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 9, "num_attention_heads": 4}


@dataclass(frozen=True)
class Material:
    """Folders and files that all sides of a benchmark share."""

    folder: Path
    teacher: Path
    student: Path
    tokens: Path
    steps: int
    sequence: int = SEQUENCE
    batch: int = BATCH


def make_material(
    folder: Path, *, steps: int, vocabulary: int = VOCABULARY, sequence: int = SEQUENCE, batch: int = BATCH,
    teacher: dict[str, int] = TEACHER, student: dict[str, int] = STUDENT,
) -> Material:  # fmt: skip
    """Writes both models and as many tokens as `steps` steps need, the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Material(folder, folder / "teacher", folder / "student", folder / "tokens.npy", steps, sequence, batch)
    for seed, (target, shape) in enumerate([(made.teacher, teacher), (made.student, student)]):
        make_model(target, seed, {**shape, "vocab_size": vocabulary, "max_position_embeddings": sequence})
    ids = np.random.default_rng(0).integers(3, vocabulary, (steps * batch, sequence), dtype=np.int32)
    np.save(made.tokens, ids)
    return made


def make_model(folder: Path, seed: int, shape: dict[str, Any]) -> None:
    """A Llama whose logits are spread enough to be learnt from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(**{"tie_word_embeddings": True, "initializer_range": 0.05, **shape})
    LlamaForCausalLM(config).save_pretrained(folder)


def write_spec(material: Material, *, processes: int, cores: int, **changes: Any) -> Path:
    """A spec for this machine, with `processes` processes on `cores` cores; changes are top-level keys."""
    training = {
        "steps": material.steps, "global_batch_size": material.batch, "learning_rate": 1e-4, "warmup_steps": 0,
        "schedule": "constant", "max_grad_norm": 1.0, **changes.pop("training", {}),
    }  # fmt: skip
    pool = {"name": "here", "nodes": 1, "gpus_per_node": processes, "gpu": "CPU", "cpus_per_node": cores,
            "memory_gib": 16}  # fmt: skip
    spec = {
        "teacher": {"model": str(material.teacher), "dtype": "float32", **changes.pop("teacher", {})},
        "student": {"model": str(material.student), "dtype": "float32", **changes.pop("student", {})},
        "data": {"train": str(material.tokens), "format": "tokens", "sequence_length": material.sequence,
                 "shuffle": False},
        "training": training,
        "cluster": {"scheduler": "local", "run_root": str(material.folder / "runs"), "pools": [pool]},
        **changes,
    }  # fmt: skip
    path = material.folder / f"spec-{processes}.yaml"
    path.write_text(json.dumps(spec, indent=1))
    return path

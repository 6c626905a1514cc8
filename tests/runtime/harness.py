"""Tiny models, hand-made stores and run folders, and ranks started as a launcher would start them."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kd_launch import __version__
from kd_launch.plan import Interval, Layout, RoleLayout, RunPlan, TokenStores
from kd_launch.reading.spec_file import load
from kd_launch.run_dir import RunDir
from kd_launch.tokens import StoreHeader
from tests.runtime.forked import AT_IMPORT, ForkedRank, fork_rank

VOCABULARY, SEQUENCE = 97, 24


def make_model(
    folder: Path, *, seed: int, kind: str = "llama", vocabulary: int = VOCABULARY, file_size: str = "1GB", **shape: Any
) -> Path:  # fmt: skip
    """A model folder with random weights; its logits are spread enough to teach something. Weights that take more than
    `file_size` lie in several files."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    defaults = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**defaults, **shape}))
    model.save_pretrained(folder, max_shard_size=file_size)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """A tokenizer of single characters, enough for models that never see text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 2]
    vocabulary = {"<end>": 0, "<pad>": 1} | {symbol: i + 2 for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def make_store(folder: Path, sequences: int, *, seed: int = 0, empty_rows: tuple[int, ...] = ()) -> Path:
    """A store of random packed documents with loss on some turns only; `empty_rows` have no loss token at all."""
    random = np.random.default_rng(seed)
    ids = random.integers(2, VOCABULARY, (sequences, SEQUENCE), dtype=np.int32)
    positions = np.zeros_like(ids)
    loss = np.zeros(ids.shape, dtype=np.bool_)
    for row in range(sequences):
        cut = int(random.integers(4, SEQUENCE - 4))
        positions[row] = np.concatenate([np.arange(cut), np.arange(SEQUENCE - cut)])
        if row not in empty_rows:
            loss[row] = random.random(SEQUENCE) < random.uniform(0.1, 0.9)
            loss[row, 2] = True
        loss[row, [cut - 1, SEQUENCE - 1]] = False
    folder.mkdir(parents=True)
    arrays = {"ids": ids, "positions": positions, "loss": loss, "loss_tokens": loss.sum(1, dtype=np.int32)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    header = StoreHeader(
        key="made-by-hand", kind="chat", sequences=sequences, sequence_length=SEQUENCE, tokens=ids.size,
        loss_tokens=int(loss.sum()), documents=2 * sequences, truncated=0, dropped=0, vocabulary=VOCABULARY,
        bytes={f"{name}.npy": (folder / f"{name}.npy").stat().st_size for name in arrays}, version=__version__,
    )  # fmt: skip
    (folder / "store.json").write_text(header.model_dump_json())
    return folder


def make_layout(
    *, teachers: int, replicas: int, fsdp: int = 1, colocated: bool = False, micro_batch: int, accumulation: int,
    payload: str = "hidden_states", prefetch: int = 2, reshard: bool = False, recompute: str = "none",
    split: dict[str, int] | None = None, head_shards: int = 1,
) -> Layout:  # fmt: skip
    """A layout on the local pool; its predictions are nothing. `split`: the teacher's fsdp, tp and pp."""
    degrees = {"fsdp": 1, "tp": 1, "pp": 1, **(split or {})}
    gpus = replicas * fsdp
    common = {
        "pool": "here", "partition": None, "nodes": 1, "micro_batch_size": micro_batch, "memory_gib": 0.0,
        "memory_limit_gib": 1.0,
    }  # fmt: skip
    teacher = RoleLayout(
        **common, gpus_per_node=teachers, gpus=teachers, replicas=teachers // math.prod(degrees.values()), **degrees
    )
    student = RoleLayout(
        **common, gpus_per_node=gpus, gpus=gpus, replicas=replicas, fsdp=fsdp, reshard_after_forward=reshard,
        activation_recompute=recompute, head_shards=head_shards,
    )  # fmt: skip
    return Layout(
        placement="colocated" if colocated else "disjoint", launch=None, shares_nodes=True, teacher=teacher,
        student=student, payload=payload, payload_bytes_per_token=0, prefetch=prefetch, nodes=1,
        gpus=gpus if colocated else gpus + teachers, global_batch_size=gpus * micro_batch * accumulation,
        grad_accumulation_steps=accumulation, step_seconds=Interval(p10=0, p50=0, p90=0), samples_per_second=0,
        tokens_per_second=0, gpu_hours=0, gpus_idle=0, teacher_seconds=0, student_seconds=0, transport_seconds=0,
        limited_by="student",
    )  # fmt: skip


def make_run(
    folder: Path, layout: Layout, teacher: Path, student: Path, tokens: TokenStores, **overrides: Any
) -> RunDir:
    """A run folder as `submit` leaves it. Overrides are dotted spec keys with "__" for ".": training__steps=20."""
    folder.mkdir(parents=True)
    spec = {
        "teacher": {"model": str(teacher), "dtype": "float32"},
        "student": {"model": str(student), "dtype": "float32"},
        "data": {"train": str(folder), "format": "chat", "sequence_length": SEQUENCE, "shuffle": False},
        "training": {"steps": 20, "global_batch_size": layout.global_batch_size, "learning_rate": 1e-3,
                     "warmup_steps": 0, "max_grad_norm": 0.1},
        "cluster": {"scheduler": "local", "run_root": str(folder.parent), "pools": [
            {"name": "here", "nodes": 1, "gpus_per_node": 8, "gpu": "CPU", "cpus_per_node": 2, "memory_gib": 8}]},
    }  # fmt: skip
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec))
    settings = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in overrides.items()]
    loaded = load(path, settings, environ={}, cwd=folder)
    plan = RunPlan(version=__version__, spec=loaded.spec, cluster=loaded.cluster, layout=layout, tokens=tokens)
    run_dir = RunDir(folder)
    run_dir.plan.write_text(plan.model_dump_json())
    run_dir.attempt(1).mkdir(parents=True)
    return run_dir


@dataclass
class Ranks:
    """The processes of one attempt of a run."""

    run_dir: RunDir
    processes: list[subprocess.Popen[str] | ForkedRank] = field(default_factory=list)
    attempt: int = 1

    def wait(self, timeout: float = 400) -> list[int]:
        """Exit codes; kills what is left after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def send(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def output(self, rank: int) -> str:
        return output_file(self.run_dir, rank, self.attempt).read_text()

    def outputs(self) -> str:
        return "\n".join(f"--- rank {rank}\n{self.output(rank)}" for rank in range(len(self.processes)))

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run_dir.metrics.read_text().splitlines()]

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.metrics() if "loss" in line]

    def losses(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm by step; the last line of a step counts."""
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in self.steps()}

    def has_done(self, step: int) -> bool:
        with suppress(OSError, ValueError):
            return max(self.losses(), default=0) >= step
        return False


MODULE = ("-m", "kd_launch.runtime")


def variables_of(launcher: str, rank: int, world: int, attempt: int = 1) -> dict[str, str]:
    """What torchrun, or srun on one node, sets for a rank, and the script."""
    here = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    if launcher == "slurm":
        here = {"SLURM_PROCID": rank, "SLURM_NTASKS": world, "SLURM_LOCALID": rank, "SLURM_STEP_TASKS_PER_NODE": world}
    return {name: str(value) for name, value in here.items()} | {"KD_LAUNCH_ATTEMPT": str(attempt)}


def start_rank(
    run_dir: RunDir, layout: Layout, rank: int, program: tuple[str, ...] = MODULE, launcher: str = "torchrun",
    under: tuple[str, ...] = (),
) -> "subprocess.Popen[str]":  # fmt: skip
    """Starts one rank as a launcher would. `program` replaces the module by a test's own; `under` starts it in turn."""
    command = [*under, sys.executable, *program, *_arguments(run_dir, layout, rank)]
    with output_file(run_dir, rank).open("w") as output:
        environment = _variables(launcher, rank, layout)
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)


def start_ranks(
    run_dir: RunDir, layout: Layout, program: tuple[str, ...] = MODULE, launcher: str | None = None, attempt: int = 1
) -> Ranks:
    """Starts every rank: as new processes of a launcher, or else forked from a process with torch in it."""
    run_dir.attempt(attempt).mkdir(parents=True, exist_ok=True)

    def start(rank: int) -> "subprocess.Popen[str] | ForkedRank":
        if launcher is not None:
            return start_rank(run_dir, layout, rank, program, launcher)
        variables = _variables("slurm", rank, layout, attempt)
        return fork_rank(program, _arguments(run_dir, layout, rank), variables, output_file(run_dir, rank, attempt))

    return Ranks(run_dir, [start(rank) for rank in range(layout.world_size)], attempt)


def output_file(run_dir: RunDir, rank: int, attempt: int = 1) -> Path:
    return run_dir.path / f"attempt-{attempt}-rank-{rank}.txt"


def _arguments(run_dir: RunDir, layout: Layout, rank: int) -> list[str]:
    return [str(run_dir.path), "--role", layout.role_of(rank)]


def _variables(launcher: str, rank: int, layout: Layout, attempt: int = 1) -> dict[str, str]:
    return os.environ | variables_of(launcher, rank, layout.world_size, attempt) | AT_IMPORT


def run_to_end(
    run_dir: RunDir, layout: Layout, program: tuple[str, ...] = MODULE, attempt: int = 1, timeout: float = 400
) -> Ranks:
    """Starts every rank, waits, and expects success."""
    ranks = start_ranks(run_dir, layout, program, attempt=attempt)
    codes = ranks.wait(timeout)
    assert not any(codes), f"exit codes {codes}\n{ranks.outputs()}"
    return ranks

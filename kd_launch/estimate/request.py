"""Request: one model, its GPUs, its layout and its batch, as `estimate` is asked; wrong combinations are refused."""

from dataclasses import dataclass
from typing import Literal

from kd_launch.architecture import Architecture
from kd_launch.catalog import Gpu
from kd_launch.cost.compute import Attention
from kd_launch.cost.trained import Recompute
from kd_launch.errors import SpecError

Precision = Literal["bf16", "fp16", "fp32", "fp8"]
Stage = Literal[0, 1, 2, 3]
Loss = Literal["auto", "plain", "fused"]
Trainer = Literal["auto", "torch-fsdp", "megatron"]
DTYPES: dict[Precision, Literal["bfloat16", "float16", "float32", "float8"]] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp8": "float8",
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is estimated. Of no figure does it matter where the question comes from."""

    model: Architecture
    gpu: Gpu
    gpus: int
    gpus_per_node: int = 8
    tp: int = 1
    pp: int = 1
    cp: int = 1
    """Ranks that divide the tokens of a sequence (context parallelism)."""
    ep: int = 1
    """Ranks that divide the experts of a layer (expert parallelism)."""
    zero: Stage = 3
    sequence_length: int = 4096
    global_batch_size: int | None = None
    """Sequences; None: one micro-batch per data-parallel rank."""
    micro_batch_size: int | None = None
    """Sequences; None: the largest that fits."""
    recompute: Recompute = "none"
    dtype: Precision = "bf16"
    attention: Attention = "flash"
    compile: bool = False
    engine: Trainer = "auto"
    """Who trains; auto: by the ZeRO stage, sharded gradients and weights are FSDP's, less is Megatron's."""
    loss: Loss = "auto"
    """plain: float32 copies of all logits; fused: of none; auto: plain, in pieces where only they fit."""
    interleave: int = 1
    """Pieces of the model on each pipeline stage."""
    inter_node_gb_per_s: float | None = None
    """Per node and direction; None: as such nodes are usually built."""

    @property
    def data_parallel(self) -> int:
        return self.gpus // (self.tp * self.pp * self.cp)

    @property
    def engine_name(self) -> str:
        """Of the catalog."""
        if self.engine == "torch-fsdp" or (self.engine == "auto" and self.zero >= 2):
            return "torch-fsdp"
        return "megatron-fp8" if self.dtype == "fp8" else "megatron"

    def context_for_batch(self) -> int:
        """Ranks that must share a sequence where the batch has fewer sequences than there are data-parallel ranks."""
        data, batch = self.gpus // max(1, self.tp * self.pp), self.global_batch_size
        return data // batch if batch and 0 < batch < data and data % batch == 0 else 1

    def check(self) -> None:
        """Raises SpecError with one line for each value that cannot be."""
        problems = [*self._counts(), *(self._layout() if not list(self._counts()) else ())]
        if problems:
            raise SpecError("\n".join(problems))

    def _counts(self) -> list[str]:
        least = {
            "--gpus": self.gpus,
            "--gpus-per-node": self.gpus_per_node,
            "--tp": self.tp,
            "--pp": self.pp,
            "--cp": self.cp,
            "--ep": self.ep,
            "--interleave": self.interleave,
            "--sequence-length": self.sequence_length,
            "--global-batch-size": self.global_batch_size,
            "--micro-batch-size": self.micro_batch_size,
        }
        found = [
            f"{flag} must be at least 1, is {value}" for flag, value in least.items() if value is not None and value < 1
        ]
        speed = self.inter_node_gb_per_s
        if speed is not None and not 0 < speed < float("inf"):
            found.append(f"--inter-node-gb-per-s must be above 0, is {speed:g}")
        return found

    def _layout(self) -> list[str]:
        model, split = self.model, self.tp * self.pp * self.cp
        found = []
        if self.gpus % split:
            found.append(f"--gpus must be a multiple of tp x pp x cp = {split}, is {self.gpus}")
        if model.heads % self.tp:
            found.append(f"--tp must divide the model's {model.heads} attention heads, is {self.tp}")
        stage = self.gpus // self.pp
        if self.ep > 1 and not model.sparse_layers:
            found.append(f"--ep must be 1 for a model without experts, is {self.ep}")
        elif self.ep > 1 and (model.experts % self.ep or stage % self.ep):
            found.append(
                f"--ep must divide the model's {model.experts} experts and a stage's {stage} ranks, is {self.ep}"
            )
        if self.pp > model.layers:
            found.append(f"--pp must be at most the model's {model.layers} layers, is {self.pp}")
        if not self.gpu.supports(DTYPES[self.dtype]) or self.gpu.peak_flops_per_s(DTYPES[self.dtype]) is None:
            legal = [name for name, dtype in DTYPES.items() if self.gpu.peak_flops_per_s(dtype) is not None]
            found.append(f"--dtype {self.dtype}: {self.gpu.id} has {', '.join(legal)}")
        return found or self._batch()

    def _batch(self) -> list[str]:
        data, batch, micro = self.data_parallel, self.global_batch_size, self.micro_batch_size
        if batch is None:
            return []
        if batch % data:
            return [
                f"--global-batch-size must be a multiple of the {data} data-parallel ranks, is {batch}; "
                "--cp lets ranks share a sequence"
            ]
        if micro is not None and batch // data % micro:
            return [f"--micro-batch-size must divide the {batch // data} sequences of a data-parallel rank, is {micro}"]
        return []

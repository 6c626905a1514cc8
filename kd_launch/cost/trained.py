"""Training as the formulas see it: a model on equal devices (Trained), and how it lies on them (Split)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from kd_launch.architecture import Architecture
from kd_launch.catalog import Engine
from kd_launch.cost.collectives import Fabric
from kd_launch.cost.compute import Attention, Device
from kd_launch.cost.sizes import Sizes

Recompute = Literal["none", "selective", "full"]


class Split(NamedTuple):
    """How training lies on ranks: neighbours are tp ranks, then context, then shards, replicas, pipeline stages."""

    replicas: int = 1
    """Groups of `shards` ranks, each with sequences of its own and a whole training state."""
    shards: int = 1
    """Ranks that divide one training state, as far as `stage` says."""
    stage: int = 0
    """ZeRO: 1 divides the optimizer's state, 2 the gradients too, 3 the weights too."""
    tp: int = 1
    pp: int = 1
    context: int = 1
    """Ranks that divide the tokens of a sequence."""
    experts: int = 1
    """Data and tensor parallel ranks that divide the experts of a layer (expert parallelism): whole ones each."""
    interleave: int = 1
    """Pieces of the model on each pipeline stage."""
    recompute: Recompute = "none"
    block: int = 8
    """Every run of so many ranks lies inside one node."""

    @property
    def data(self) -> int:
        """Ranks that divide the sequences of a batch."""
        return self.replicas * self.shards // self.context

    @property
    def ranks(self) -> int:
        return self.replicas * self.shards * self.tp * self.pp

    @property
    def reduces_each_time(self) -> bool:
        """Gradients are reduced in every micro-batch, since whole ones are not kept; a pipeline keeps them."""
        return self.stage >= 2 and self.pp == 1 and self.shards > 1


@dataclass(frozen=True, eq=False)
class Trained:
    """A model in training on equal devices. Compared by identity, which makes it a cheap cache key."""

    model: Architecture
    sizes: Sizes
    device: Device
    fabric: Fabric
    engine: Engine
    sequence_length: int
    attention: Attention
    compiled: bool
    hiding: float
    """Share of compute behind which communication can hide."""
    fused_loss: bool = False
    """The logits pass through memory as few times as can be, and no float32 copy of them is kept."""
    copies: float = 0.0
    """Times that weights and gradients pass through memory on their way to and from the collective's buffers, those of
    one shard too."""

    @property
    def drops_out(self) -> bool:
        """Hidden states, as models of before flash attention did."""
        return self.attention == "eager"

    @property
    def keeps_narrow(self) -> bool:
        """Inputs of products are kept in 8 bits."""
        return self.device.converts and self.engine.kept_input_bytes == 1


def keeps_operators(split: Split) -> bool:
    """Selective recomputation by operator, as FSDP engines do; Megatron's recomputes the core of attention."""
    return split.stage >= 2


def updated_parameters(sizes: Sizes, split: Split) -> float:
    """That a rank updates. Expert parallel ranks have fewer experts, and share each with fewer ranks."""
    return sizes.stage(split.pp) / split.tp / split.shards if split.stage else local_parameters(sizes, split)


def local_parameters(sizes: Sizes, split: Split) -> float:
    """Of a rank of the largest stage, before data parallel ranks divide them."""
    if split.experts == 1:
        return sizes.stage(split.pp) / split.tp
    experts = sizes.stage_experts(split.pp)
    return (sizes.stage(split.pp) - experts) / split.tp + experts / split.experts

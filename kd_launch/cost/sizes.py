"""Parameters of a model by place: in the layers, and outside them."""

from typing import NamedTuple

from kd_launch.architecture import Architecture


class Sizes(NamedTuple):
    """Parameters of a model by place."""

    all: int
    layers: int
    layer: int
    """Of the largest layer."""
    root: int
    """Outside the layers: the embedding, a head of its own, the last norm."""
    head: int
    """Of the output head's matrix, a tied one too."""
    depth: int
    """Number of layers."""
    experts: int = 0
    """Of all routed experts, all layers; layers without any count as a part of one with."""

    def stage(self, pp: int) -> float:
        """Of the largest pipeline stage: its layers, and at one end the embedding, at the other the head."""
        if pp == 1:
            return self.all
        return self.layers * -(-self.depth // pp) / self.depth + self.head

    def stage_experts(self, pp: int) -> float:
        """Of them the routed experts."""
        return self.experts * -(-self.depth // pp) / self.depth


def sizes_of(model: Architecture) -> Sizes:
    root = model.embedding_parameters + model.head_parameters + model.extra
    everything = model.parameters
    matrices = 3 if model.gated_mlp else 2
    experts = model.sparse_layers * model.experts * matrices * model.hidden * model.expert_intermediate
    return Sizes(
        all=everything,
        layers=everything - root,
        layer=model.layer_parameters,
        root=root,
        head=model.head_parameters_or_tied,
        depth=model.layers,
        experts=experts,
    )

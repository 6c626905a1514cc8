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

    def stage(self, pp: int) -> float:
        """Of the largest pipeline stage: its layers, and at one end the embedding, at the other the head."""
        if pp == 1:
            return self.all
        return self.layers * -(-self.depth // pp) / self.depth + self.head


def sizes_of(model: Architecture) -> Sizes:
    root = model.embedding_parameters + model.head_parameters + model.extra
    everything = model.parameters
    return Sizes(
        everything, everything - root, model.layer_parameters, root, model.head_parameters_or_tied, model.layers
    )

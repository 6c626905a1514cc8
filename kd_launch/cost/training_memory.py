"""Bytes of a rank in training, by part, under data, sharded, tensor and pipeline parallelism."""

from kd_launch.cost.activations import activation_factor, kept_of, saved_of
from kd_launch.cost.constants import GIB, MemoryConstants
from kd_launch.cost.training import Split, Trained, keeps_operators

Parts = dict[str, float]


def training_memory(
    trained: Trained, split: Split, tokens: float, accumulation: int, constants: MemoryConstants
) -> Parts:
    """Of the fullest rank, `tokens` of one micro-batch: on a pipeline's first stage or on its last."""
    tokens = tokens / split.context
    ends = [True, False] if split.pp > 1 else [True]
    stages = [_stage(trained, split, tokens, accumulation, constants, first=first) for first in ends]
    return max(stages, key=lambda parts: sum(parts.values()))


def _stage(
    trained: Trained, split: Split, tokens: float, accumulation: int, constants: MemoryConstants, *, first: bool
) -> Parts:
    has_head = split.pp == 1 or not first
    parts = _states(trained, split, constants)
    parts["activations"] = _activations(trained, split, tokens, accumulation, constants, first=first)
    logits = constants.cross_entropy_bytes * tokens * trained.model.vocabulary / split.tp
    parts["logits"] = logits if has_head else 0.0
    parts["context"] = constants.context_gib * GIB
    return parts


def _states(trained: Trained, split: Split, constants: MemoryConstants) -> Parts:
    """Adam in float32 with a float32 copy of narrower weights; divided as the ZeRO stage says.

    A pipeline keeps weights and gradients whole from its first micro-batch to its last, whatever the stage.
    """
    width, sizes = trained.device.width, trained.sizes
    local = sizes.stage(split.pp) / split.tp
    gradient = trained.engine.gradient_bytes
    optimizer = constants.optimizer_bytes - (4 if width == 4 else 0)
    shards = split.shards if split.stage else 1
    whole = split.pp > 1 or split.shards == 1
    parts = {
        "weights": width * local,
        "gradients": gradient * local / (1 if whole or split.stage < 2 else shards),
        "optimizer": optimizer * local / shards,
    }
    if split.stage == 3 and not whole:
        gathered = width * (sizes.root + 2 * sizes.layer) + gradient * sizes.layer
        parts["weights"] = 4 * local / shards if width == 4 else 0.0
        parts["gathered weights"] = gathered / split.tp
    return parts


def _activations(
    trained: Trained, split: Split, tokens: float, accumulation: int, constants: MemoryConstants, *, first: bool
) -> float:
    model, width = trained.model, trained.device.width
    factor = activation_factor(trained.engine, model, compiled=trained.compiled)
    kept = kept_of(
        model,
        width,
        split.recompute,
        trained.attention,
        trained.sequence_length,
        by_operator=keeps_operators(split),
    ).per_rank(split.tp)
    layers = -(-model.layers // split.pp)
    together = in_flight(split, accumulation) if first else 1.0
    stored = tokens * layers * kept * together
    if split.recompute == "full":  # the layer at work
        whole = saved_of(model, width, trained.attention, trained.sequence_length).per_rank(split.tp)
        stored += factor * tokens * whole
    else:
        stored *= factor
    outputs = 2.0 * width * tokens * model.hidden / split.tp
    gathered = constants.tensor_parallel_buffers * width * tokens * model.hidden if split.tp > 1 else 0.0
    return stored + outputs + gathered


def in_flight(split: Split, accumulation: int) -> float:
    """Micro-batches whose activations the first stage holds at once (1F1B); interleaving holds some more."""
    if split.pp == 1:
        return 1.0
    more = 1 + (split.pp - 1) / (split.pp * split.interleave) if split.interleave > 1 else 1.0
    return min(accumulation, split.pp) * more

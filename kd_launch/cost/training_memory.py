"""Bytes of a rank in training, by part, under data, sharded, tensor and pipeline parallelism."""

from kd_launch.cost.activations import activation_factor, kept_of, saved_of
from kd_launch.cost.constants import GIB, MemoryConstants
from kd_launch.cost.trained import Split, Trained, keeps_operators, local_parameters, updated_parameters

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
    # the backward of the logits is over when the last layer is computed again: the larger of the two counts
    work, logits = _layer_at_work(trained, split, tokens), _logits(trained, split, tokens, constants)
    parts["layer at work"] = 0.0 if has_head and logits > work else work
    parts["logits"] = logits if has_head and logits > work else 0.0
    parts["context"] = constants.context_gib * GIB
    return parts


def _logits(trained: Trained, split: Split, tokens: float, constants: MemoryConstants) -> float:
    each = constants.fused_cross_entropy_bytes if trained.fused_loss else constants.cross_entropy_bytes
    return each * tokens * trained.model.vocabulary / split.tp


def _states(trained: Trained, split: Split, constants: MemoryConstants) -> Parts:
    """Adam in float32 with a float32 copy of narrower weights; divided as the ZeRO stage says.

    A pipeline keeps weights and gradients whole from its first micro-batch to its last, whatever the stage.
    """
    width, sizes = trained.device.width, trained.sizes
    local = local_parameters(sizes, split)
    gradient = trained.engine.gradient_bytes
    optimizer = constants.optimizer_bytes - (4 if width == 4 else 0)
    whole = split.pp > 1 or split.shards == 1
    parts = {
        "weights": width * local,
        "gradients": gradient * local / (1 if whole or split.stage < 2 else split.shards),
        "optimizer": optimizer * updated_parameters(sizes, split),
    }
    if split.stage == 3 and not whole:
        gathered = width * (sizes.root + 2 * sizes.layer) + gradient * sizes.layer
        parts["weights"] = 4 * local / split.shards if width == 4 else 0.0
        parts["gathered weights"] = gathered / split.tp
    return parts


def _activations(
    trained: Trained, split: Split, tokens: float, accumulation: int, constants: MemoryConstants, *, first: bool
) -> float:
    """What is kept from the forward to the backward, and the buffers on the way."""
    model, width = trained.model, trained.device.width
    kept = kept_of(
        model,
        width,
        split.recompute,
        trained.attention,
        trained.sequence_length,
        by_operator=keeps_operators(split),
        dropout=trained.drops_out,
        narrow=trained.keeps_narrow,
    ).per_rank(split.tp)
    layers = -(-model.layers // split.pp)
    together = in_flight(split, accumulation) if first else 1.0
    stored = tokens * layers * kept * together
    if split.recompute != "full":
        stored *= activation_factor(trained.engine, model, compiled=trained.compiled)
    outputs = 2.0 * width * tokens * model.hidden / split.tp
    gathered = constants.tensor_parallel_buffers * width * tokens * model.hidden if split.tp > 1 else 0.0
    return stored + outputs + gathered


def _layer_at_work(trained: Trained, split: Split, tokens: float) -> float:
    """With full recomputation one layer at a time has all that it would have kept."""
    if split.recompute != "full":
        return 0.0
    whole = saved_of(
        trained.model,
        trained.device.width,
        trained.attention,
        trained.sequence_length,
        dropout=trained.drops_out,
        narrow=trained.keeps_narrow,
    )
    factor = activation_factor(trained.engine, trained.model, compiled=trained.compiled)
    return factor * tokens * whole.per_rank(split.tp)


def in_flight(split: Split, accumulation: int) -> float:
    """Micro-batches whose activations the first stage holds at once (1F1B); interleaving holds some more."""
    if split.pp == 1:
        return 1.0
    more = 1 + (split.pp - 1) / (split.pp * split.interleave) if split.interleave > 1 else 1.0
    return min(accumulation, split.pp) * more

"""Bytes that the forward of a layer leaves for its backward, per token (arXiv 2205.05198), and what recompute saves."""

from typing import NamedTuple

from kd_launch.architecture import Architecture
from kd_launch.catalog import Engine
from kd_launch.cost.compute import Attention, mlp_width
from kd_launch.cost.trained import Recompute


class Saved(NamedTuple):
    """Of one layer and one token. With sequence parallelism all of it is divided by the tensor parallel ranks."""

    hidden_wide: float
    """Inputs of norms and products, and dropout masks: whole on every rank without sequence parallelism."""
    split: float
    """Queries, keys, values, and the MLP's inner tensors."""
    scores: float
    """Softmax and dropout of eager attention."""

    def per_rank(self, tp: int, *, sequence_parallel: bool = True) -> float:
        return self.hidden_wide / (tp if sequence_parallel else 1) + (self.split + self.scores) / tp


def activation_factor(engine: Engine, model: Architecture, *, compiled: bool) -> float:
    """What an engine keeps, against the tensors that are counted here.

    More only in Llama's kind of layer: norms in float32, rotated copies of queries and keys. GPT-2's has none of those.
    """
    if not model.gated_mlp:
        return 1.0
    return engine.compiled_activations if compiled else engine.activations


def saved_of(
    model: Architecture,
    width: int,
    attention: Attention = "flash",
    sequence_length: int = 0,
    *,
    dropout: bool = True,
    narrow: bool = False,
) -> Saved:
    """Without recomputation. A model without gated MLP is GPT-2's kind: 32 bytes per hidden unit, and two of masks.

    dropout: it drops some of its hidden states out, as GPT-2 did; engines with flash attention drop nothing.
    narrow: what a product reads is kept in 8 bits, beside what attention and the MLP's activation read in 16.
    """
    queries, keys, mlp = model.heads * model.head_dim, model.kv_heads * model.head_dim, mlp_width(model)
    inner = width * (2 * queries + 2 * keys + (3 if model.gated_mlp else 2) * mlp)
    inner += queries - (width - 1) * mlp if narrow else 0
    scores = (2 * width + 1) * model.heads * sequence_length if attention == "eager" else 0
    if model.gated_mlp:
        return Saved(width * 3 * model.hidden, inner, scores)
    masks = 2 if dropout else 0
    return Saved((width * 4 + masks) * model.hidden, inner, scores)


def kept_by_modules(model: Architecture, width: int, sequence_length: int) -> float:
    """Bytes per token that a layer of transformers' modules, as they stand, leaves for its backward.

    A norm keeps its input in float32, that divided by its length, and its result; attention keeps queries, its result
    twice, and keys and values as often as queries use them; the MLP both sides of its product, the product, and what
    the activation function was given; experts what goes into them and what they are weighed by. Held against torch's
    memory tracker in tests/runtime/test_big_worlds.py.
    """
    if not model.gated_mlp:
        return saved_of(model, width).per_rank(1)
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    norms = model.norms * (4 + 2 * width) * model.hidden
    head_norms = (4 + width) * (queries + keys) if model.head_norms else 0
    scores = 0 if model.fused_attention else (4 + 2 * width) * model.heads * sequence_length
    routed = 2 * width * model.sparse_layers / model.layers * model.experts_per_token * model.hidden
    return norms + head_norms + scores + routed + width * (5 * queries + 4 * mlp_width(model))


def kept_of(
    model: Architecture,
    width: int,
    recompute: Recompute,
    attention: Attention,
    sequence_length: int,
    *,
    by_operator: bool,
    dropout: bool = True,
    narrow: bool = False,
) -> Saved:
    """What stays until the backward. by_operator: selective keeps every second product and the attention's output."""
    saved = saved_of(model, width, attention, sequence_length, dropout=dropout, narrow=narrow)
    if recompute == "none":
        return saved
    if recompute == "full":
        return Saved(width * model.hidden, 0.0, 0.0)
    if not by_operator:
        return saved._replace(scores=0.0)
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # the layer's input and the last product; of q, k, v, o, gate, up, down: q, v, gate, down; attention's output
    return Saved(2.0 * width * model.hidden, width * (2 * queries + keys + mlp_width(model)), 0.0)

"""The parts of a Llama-like layer, read from a config.json: attention, MLP, experts, windows, and their parameters."""

from dataclasses import dataclass

from kd_launch.architecture.config_json import ConfigJson
from kd_launch.architecture.families import UNKNOWN, Family

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERT_WIDTH = ("moe_intermediate_size", "intermediate_size")


@dataclass(frozen=True)
class Attention:
    """Heads and the parameters of the four projections with their biases and norms."""

    heads: int
    kv_heads: int
    head_dim: int
    parameters: int


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of a model; all zero where it has none. Parameters are of one layer's."""

    layers: int = 0
    count: int = 0
    chosen: int = 0
    width: int = 0
    shared_width: int = 0
    parameters_each: int = 0
    parameters_besides: int = 0

    @property
    def parameters(self) -> int:
        return self.parameters_besides + self.count * self.parameters_each

    @property
    def active_parameters(self) -> int:
        return self.parameters_besides + self.chosen * self.parameters_each


@dataclass(frozen=True)
class Windows:
    """How many layers see the last `size` tokens only."""

    size: int | None = None
    layers: int = 0


def _says(config: ConfigJson, key_or_fact: str | bool) -> bool:
    return key_or_fact if isinstance(key_or_fact, bool) else config.flag(key_or_fact, False)


def head_dim_of(config: ConfigJson, hidden: int, heads: int) -> int:
    """The key head_dim, else the hidden size split evenly."""
    if config.get("head_dim") is None and hidden % heads:
        raise config.error("head_dim", f"is missing, and {heads} heads do not divide a hidden size of {hidden}")
    return config.count("head_dim", otherwise=hidden // heads)


def read_attention(config: ConfigJson, family: Family, hidden: int) -> Attention:
    """Grouped-query attention: cost of q, k, v, o, of their biases, and of the norms of queries and keys."""
    heads = config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", otherwise=heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"must divide the {heads} attention heads, is {kv_heads}")
    head_dim = head_dim_of(config, hidden, heads)
    queries, keys = heads * head_dim, kv_heads * head_dim
    parameters = 2 * hidden * queries + 2 * hidden * keys
    parameters += (queries + 2 * keys) * _says(config, family.qkv_bias) + hidden * _says(config, family.output_bias)
    parameters += 2 * head_dim * family.head_norm + (queries + keys) * _says(config, family.wide_norm)
    return Attention(heads, kv_heads, head_dim, parameters + heads * family.expert_bias)  # GPT-OSS: a sink per head


def mlp_parameters(config: ConfigJson, family: Family, hidden: int, width: int) -> int:
    """A gated MLP: three matrices, and biases where the key mlp_bias exists and says so."""
    biased = family.mlp_bias and config.flag("mlp_bias", False)
    return 3 * hidden * width + (2 * width + hidden) * biased


def read_experts(config: ConfigJson, family: Family, hidden: int, layers: int) -> Experts:
    """Routed experts, the shared one, and the layers that have them; Experts() for a dense model."""
    if not family.has_experts or (family is UNKNOWN and config.get(*_EXPERTS) is None):
        return Experts()
    count = config.count(*_EXPERTS, minimum=0)
    chosen, width = config.count("num_experts_per_tok"), config.count(*_EXPERT_WIDTH)
    if count == 0:
        return Experts()
    if chosen > count:
        raise config.error("num_experts_per_tok", f"must be at most the {count} experts, is {chosen}")
    shared = config.count("shared_expert_intermediate_size", otherwise=0, minimum=0)
    gate = hidden if shared else 0  # Qwen's shared expert is weighted by a gate, others' are simply added
    shared = shared or width * config.count("n_shared_experts", otherwise=0, minimum=0)
    return Experts(
        layers=_sparse_layers(config, layers),
        count=count,
        chosen=chosen,
        width=width,
        shared_width=shared,
        parameters_each=3 * hidden * width + (2 * width + hidden) * family.expert_bias,
        parameters_besides=hidden * count + count * family.expert_bias + 3 * hidden * shared + gate,
    )


def _sparse_layers(config: ConfigJson, layers: int) -> int:
    """Every decoder_sparse_step-th layer has experts, but the first first_k_dense_replace and mlp_only_layers."""
    step = config.count("decoder_sparse_step", otherwise=1)
    first = min(config.count("first_k_dense_replace", otherwise=0, minimum=0), layers)
    dense = {i for i in config.items("mlp_only_layers") if isinstance(i, int) and first <= i < layers}
    return layers // step - first // step - sum((i + 1) % step == 0 for i in dense)


def read_windows(config: ConfigJson, family: Family, layers: int) -> Windows:
    """The sliding windows: from layer_types where they are listed, else by the model type's rule."""
    size = config.count("sliding_window", otherwise=0, minimum=0)  # transformers writes 0 for "none", too
    optional = family.window_is_optional
    if size == 0 or (optional and not config.flag("use_sliding_window", False)):
        return Windows()
    types = config.items("layer_types")
    if types:
        return Windows(size, types[:layers].count("sliding_attention"))
    if family.full_attention_every is None:
        return Windows()
    if optional:
        return Windows(size, max(0, layers - config.count("max_window_layers", minimum=0)))
    period = config.count("sliding_window_pattern", otherwise=family.full_attention_every, minimum=0)
    return Windows(size, layers - layers // period if period else layers)

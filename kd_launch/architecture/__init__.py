"""Architecture: a model's shapes, exact parameters, FLOPs and KV bytes, from the keys of its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kd_launch.architecture.config_json import ConfigJson
from kd_launch.architecture.families import (
    ATTENTION_LAYERS,
    FAMILIES,
    FOREIGN_KEYS,
    TEXT_MODELS,
    UNKNOWN,
    Family,
    text_model_type,
)
from kd_launch.architecture.layers import head_dim_of, mlp_parameters, read_attention, read_experts, read_windows
from kd_launch.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A causal language model without its weights. Of a model with other towers (vision) it is the text part.

    Parameters are counts of numbers; a FLOP is one multiply or one add. "Active" is what one token passes through: all
    of a dense layer, the chosen experts of a sparse one.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the MLP of a layer without experts."""
    vocabulary: int
    tied: bool
    """The output head is the embedding matrix."""
    max_positions: int | None
    """Longest sequence that the model was made for; None: not stated."""
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_expert_intermediate: int = 0
    sparse_layers: int = 0
    """Layers with experts; 0 in a dense model."""
    gated_mlp: bool = True
    """The MLP has three matrices (SwiGLU, GeGLU) instead of two."""
    norms: int = 2
    """Of vectors [hidden] in a layer."""
    head_norms: bool = False
    """Queries and keys are normalised head by head."""
    fused_attention: bool = True
    """transformers need not keep the scores of every token for every other."""
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    """logits = softcap * tanh(scale * (hidden @ head.T) / softcap); without softcap scale * (hidden @ head.T)."""
    sliding_window: int | None = None
    sliding_layers: int = 0
    """Layers that see the last `sliding_window` tokens only."""
    layer_parameters: int
    """Of a full layer: one with all its experts where there are any, else a dense one."""
    active_layer_parameters: int
    dense_layer_parameters: int
    """Of a layer without experts; a sparse model may have some (layers - sparse_layers)."""
    extra: int
    """Parameters outside layers, embedding and head: the last norm, GPT-2's positions."""
    supports_tp: bool
    """transformers has a tensor-parallel plan for this model type."""
    head_is_known: bool
    """The formula under logit_scale is the model's; else only the model itself turns hidden states into logits."""

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def head_parameters(self) -> int:
        """Of an output head of its own; 0 when tied."""
        return 0 if self.tied else self.head_parameters_or_tied

    @property
    def parameters(self) -> int:
        return self._all_layers(self.layer_parameters) + self._outside_layers

    @property
    def active_parameters(self) -> int:
        return self._all_layers(self.active_layer_parameters) + self._outside_layers

    @property
    def head_parameters_or_tied(self) -> int:
        """Of the head's matrix [vocabulary, hidden], whether or not the embedding shares it."""
        return self.vocabulary * self.hidden

    @property
    def _outside_layers(self) -> int:
        return self.embedding_parameters + self.head_parameters + self.extra

    def _all_layers(self, sparse_layer: int) -> int:
        return self.sparse_layers * sparse_layer + (self.layers - self.sparse_layers) * self.dense_layer_parameters

    def head_flops_per_token(self) -> float:
        """FLOPs of the output head for one token, forward."""
        return 2.0 * self.head_parameters_or_tied

    def attention_flops_per_token(self, sequence_length: int, *, causal: bool = True) -> float:
        """FLOPs of scores and their product with the values, one token of a sequence, forward, all layers.

        causal: the kernel skips what the mask hides (flash), windows too; else it computes the whole square.
        """
        width = 4.0 * self.heads * self.head_dim
        whole = sequence_length / 2 if causal else float(sequence_length)
        window = self.sliding_window
        if not causal or window is None or window >= sequence_length:
            return width * self.layers * whole
        seen = window - window * window / (2 * sequence_length)  # mean over the sequence: the window fills up first
        return width * (self.sliding_layers * seen + (self.layers - self.sliding_layers) * whole)

    def forward_flops_per_token(self, sequence_length: int, *, causal: bool = True, with_head: bool = True) -> float:
        """FLOPs of one token's forward pass: 2 per active parameter of the layers, attention, and the head."""
        layers = 2.0 * self._all_layers(self.active_layer_parameters)
        head = self.head_flops_per_token() if with_head else 0.0
        return layers + head + self.attention_flops_per_token(sequence_length, causal=causal)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of one token's keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value

    def with_layers(self, layers: int) -> "Architecture":
        """Its first layers; of a kind of layer that some of its layers are, the same share."""
        sparse, sliding = (round(kind * layers / self.layers) for kind in (self.sparse_layers, self.sliding_layers))
        return replace(self, layers=layers, sparse_layers=sparse, sliding_layers=sliding)

    @property
    def can_be_split(self) -> bool:
        """Whether the runtime knows the model's parts well enough to give them to several ranks."""
        return self.head_is_known

    def legal_tp(self, tp: int) -> bool:
        """Whether the layers can be split over `tp` ranks: every rank needs whole KV heads and equal MLP slices."""
        if tp == 1:
            return True
        widths = [self.kv_heads, self.intermediate, *([self.expert_intermediate] if self.sparse_layers else [])]
        return self.supports_tp and tp > 1 and all(width % tp == 0 for width in widths)


def from_config(config: Mapping[str, object], where: str) -> Architecture:
    """The architecture that a config.json describes; `where` names its place in errors.

    Raises SpecError for a missing key, a wrong type or value, or a model that is no causal language model like these.
    """
    text, model_type = _text_part(config, where)
    family = FAMILIES.get(model_type, UNKNOWN)
    keys = ConfigJson(text, where, family.defaults)
    if family is UNKNOWN:
        _refuse_foreign(keys, model_type)
    return _gpt2(keys) if model_type == "gpt2" else _llama_like(keys, model_type, family)


def _text_part(config: Mapping[str, object], where: str) -> tuple[Mapping[str, object], str]:
    """The keys of the language model, unwrapped from `text_config`, and its model type."""
    model_type = config.get("model_type", "gpt2" if "n_embd" in config else "")
    text = config.get("text_config")
    if isinstance(text, Mapping):
        tied = config.get("tie_word_embeddings")  # the outer key decides, as in transformers
        text = text if tied is None else {**text, "tie_word_embeddings": tied}
        model_type = text.get("model_type", model_type)
    if not isinstance(model_type, str):
        raise SpecError(f"{where}: model_type: must be a name such as 'llama', is {model_type!r}")
    return (text if isinstance(text, Mapping) else config), text_model_type(model_type)


def _refuse_foreign(config: ConfigJson, model_type: str) -> None:
    """An unknown model type is read as Llama's; what is plainly something else must not be."""
    known = ", ".join(FAMILIES)
    foreign = [key for key in FOREIGN_KEYS if config.get(key) is not None]
    foreign += [str(kind) for kind in config.items("layer_types") if kind not in ATTENTION_LAYERS]
    if foreign:
        raise config.error("model_type", f"{model_type!r} has layers that are not known ({foreign[0]}); known: {known}")
    classes = [str(name) for name in config.items("architectures")]
    if config.flag("is_encoder_decoder", False) or (classes and not any(c.endswith(TEXT_MODELS) for c in classes)):
        raise config.error("model_type", f"{model_type!r} is not a causal language model; known: {known}")
    if config.get("hidden_size") is None:
        raise config.error("hidden_size", f"is missing, and model_type {model_type!r} is not known; known: {known}")


def _gpt2(config: ConfigJson) -> Architecture:
    """GPT-2: two-matrix MLP, biases everywhere, learned positions. Its keys may have Llama's names too."""
    hidden = config.count("n_embd", "hidden_size")
    heads = config.count("n_head", "num_attention_heads")
    inner = config.count("n_inner", otherwise=4 * hidden)
    positions = config.count("n_positions", "max_position_embeddings", otherwise=1024)
    layer = 4 * (hidden * hidden + hidden) + (2 * hidden * inner + inner + hidden) + 4 * hidden
    return Architecture(
        model_type="gpt2",
        layers=config.count("n_layer", "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim_of(config, hidden, heads),
        intermediate=inner,
        vocabulary=config.count("vocab_size"),
        tied=config.flag("tie_word_embeddings", FAMILIES["gpt2"].tied),
        max_positions=positions,
        gated_mlp=False,
        layer_parameters=layer,
        active_layer_parameters=layer,
        dense_layer_parameters=layer,
        extra=positions * hidden + 2 * hidden,
        supports_tp=FAMILIES["gpt2"].supports_tp,
        head_is_known=FAMILIES["gpt2"].head_is_known,
    )


def _llama_like(config: ConfigJson, model_type: str, family: Family) -> Architecture:
    hidden, layers = config.count("hidden_size"), config.count("num_hidden_layers")
    attention = read_attention(config, family, hidden)
    experts = read_experts(config, family, hidden, layers)
    windows = read_windows(config, family, layers)
    intermediate = config.count("intermediate_size", otherwise=experts.width or None)
    outside_mlp = attention.parameters + family.norms * hidden
    dense = outside_mlp + mlp_parameters(config, family, hidden, intermediate)
    return Architecture(
        model_type=model_type,
        layers=layers,
        hidden=hidden,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        intermediate=intermediate,
        vocabulary=config.count("vocab_size"),
        tied=config.flag("tie_word_embeddings", family.tied),
        max_positions=config.optional_count("max_position_embeddings"),
        experts=experts.count,
        experts_per_token=experts.chosen,
        expert_intermediate=experts.width,
        shared_expert_intermediate=experts.shared_width,
        sparse_layers=experts.layers,
        norms=family.norms,
        head_norms=family.head_norm,
        fused_attention=family.fused_attention,
        logit_softcap=config.optional_number("final_logit_softcapping") if family.softcaps else None,
        logit_scale=(config.optional_number("logit_scale") if family.scales else None) or 1.0,
        sliding_window=windows.size,
        sliding_layers=windows.layers,
        layer_parameters=outside_mlp + experts.parameters if experts.layers else dense,
        active_layer_parameters=outside_mlp + experts.active_parameters if experts.layers else dense,
        dense_layer_parameters=dense,
        extra=hidden,
        supports_tp=family.supports_tp,
        head_is_known=family.head_is_known,
    )

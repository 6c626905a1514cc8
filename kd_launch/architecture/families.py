"""Family: what a model type fixes beyond the keys of its config.json. A table, each row tested against transformers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_BIAS = "attention_bias"  # the key of most configs: biases on queries, keys, values and output


@dataclass(frozen=True)
class Family:
    """One model type of transformers. Source: its modeling_<type>.py and configuration_<type>.py, version 5.23."""

    norms: int = 2
    """Weight vectors [hidden] of norms in a layer."""
    tied: bool = False
    """Where tie_word_embeddings is absent."""
    qkv_bias: str | bool = _BIAS
    """Bias on queries, keys and values: always, never, or as this key says."""
    output_bias: str | bool = _BIAS
    mlp_bias: bool = False
    """The key mlp_bias exists."""
    head_norm: bool = False
    """One norm of queries and one of keys, as wide as a head."""
    wide_norm: str | bool = False
    """The same as wide as all heads, as this key says."""
    has_experts: bool = False
    expert_bias: bool = False
    """Biases in router and experts, and one attention sink per head."""
    full_attention_every: int | None = None
    """Every n-th layer sees everything, the others a window; 0: all see a window; None: no layer does."""
    window_is_optional: bool = False
    """Windows count only with use_sliding_window, and only from layer max_window_layers on."""
    softcaps: bool = False
    """final_logit_softcapping bounds the logits."""
    scales: bool = False
    """logit_scale multiplies the logits."""
    fused_attention: bool = True
    """Computed by torch's scaled_dot_product_attention."""
    supports_tp: bool = True
    head_is_known: bool = True
    defaults: Mapping[str, object] = field(default_factory=dict)
    """What transformers takes for keys that published config.json files leave out."""


_QWEN2: dict[str, object] = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA3: dict[str, object] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_GEMMA2: dict[str, object] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
}

FAMILIES: Mapping[str, Family] = {
    "cohere": Family(norms=1, tied=True, scales=True, wide_norm="use_qk_norm", defaults={"logit_scale": 0.0625}),
    "cohere2": Family(
        norms=1,
        tied=True,
        scales=True,
        full_attention_every=4,
        defaults={"logit_scale": 0.0625, "sliding_window": 4096},
    ),
    "gemma": Family(tied=True, defaults={"num_key_value_heads": 16, "head_dim": 256}),
    "gemma2": Family(
        norms=4, tied=True, softcaps=True, full_attention_every=2, fused_attention=False, defaults=_GEMMA2
    ),
    "gemma3_text": Family(norms=4, tied=True, softcaps=True, head_norm=True, full_attention_every=6, defaults=_GEMMA3),
    "gpt2": Family(tied=True, supports_tp=False),
    "gpt_oss": Family(
        has_experts=True,
        expert_bias=True,
        full_attention_every=2,
        fused_attention=False,
        supports_tp=False,
        defaults={"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "attention_bias": True},
    ),
    "llama": Family(mlp_bias=True),
    "mistral": Family(
        qkv_bias=False,
        output_bias=False,
        full_attention_every=0,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "mixtral": Family(
        qkv_bias=False,
        output_bias=False,
        has_experts=True,
        full_attention_every=0,
        defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "phi3": Family(qkv_bias=False, output_bias=False, full_attention_every=0),
    "qwen2": Family(qkv_bias=True, output_bias=False, full_attention_every=0, window_is_optional=True, defaults=_QWEN2),
    "qwen2_moe": Family(
        qkv_bias="qkv_bias",
        output_bias=False,
        has_experts=True,
        defaults={"num_key_value_heads": 16, "qkv_bias": True, "shared_expert_intermediate_size": 5632},
    ),
    "qwen3": Family(
        head_norm=True, full_attention_every=0, window_is_optional=True, defaults={**_QWEN2, "head_dim": 128}
    ),
    "qwen3_moe": Family(head_norm=True, has_experts=True, defaults={"num_key_value_heads": 4}),
    "smollm3": Family(mlp_bias=True, tied=True, defaults={"num_key_value_heads": 4}),
}

UNKNOWN = Family(mlp_bias=True, has_experts=True, supports_tp=False, head_is_known=False)
"""A model type of no row: read as Llama's, with experts where it has their keys."""

FOREIGN_KEYS = ("kv_lora_rank", "linear_num_value_heads", "mamba_d_state", "ssm_cfg", "ssm_state_size", "state_size")
"""Keys of layers that are not Llama's: latent attention, linear attention, state-space models."""

ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers (config.json's `layer_types`) with the parameters of a Llama layer."""

TEXT_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the classes of models with a causal language model's head end (config.json's `architectures`)."""


def text_model_type(model_type: str) -> str:
    """The model type of the text part: of Gemma 3's image models, their text config may leave it out."""
    return "gemma3_text" if model_type == "gemma3" else model_type

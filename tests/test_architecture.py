"""Shapes and counts against transformers' own modules on the meta device, formulas against their closed forms."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from kd_launch import catalog
from kd_launch.architecture import Architecture, from_config
from kd_launch.architecture.families import FAMILIES
from kd_launch.errors import SpecError

Config = dict[str, Any]


def architecture_of(hub_id: str) -> Architecture:
    config = catalog.model_config(hub_id)
    assert config is not None
    return from_config(config, hub_id)


def transformers_config(config: Mapping[str, object]) -> Any:
    keys = dict(config)
    return CONFIG_MAPPING[keys.pop("model_type")](**keys)


def transformers_model(config: Mapping[str, object]) -> torch.nn.Module:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(config))
    assert isinstance(model, torch.nn.Module)
    return model


def unique_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Total and active as published with the models: cost-model tables and model cards.
TOTALS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-2-9b": 9_241_705_984,
    "openai-community/gpt2": 124_439_808,
}


@pytest.mark.parametrize(("hub_id", "parameters"), TOTALS.items())
def test_dense_totals_are_exact(hub_id: str, parameters: int) -> None:
    architecture = architecture_of(hub_id)
    assert architecture.parameters == architecture.active_parameters == parameters


@pytest.mark.parametrize(
    ("hub_id", "total", "active"),
    [("Qwen/Qwen3-30B-A3B", 30.532e9, 3.353e9), ("mistralai/Mixtral-8x7B-v0.1", 46.703e9, 12.88e9)],
)
def test_mixtures_activate_the_chosen_experts_only(hub_id: str, total: float, active: float) -> None:
    architecture = architecture_of(hub_id)
    assert architecture.parameters == pytest.approx(total, rel=5e-5)
    assert architecture.active_parameters == pytest.approx(active, rel=5e-4)


def test_a_tied_head_counts_once_but_costs_like_any() -> None:
    tied, own = architecture_of("Qwen/Qwen3-1.7B"), architecture_of("Qwen/Qwen3-8B")
    assert tied.head_parameters == 0
    assert tied.head_parameters_or_tied == tied.embedding_parameters == 151936 * 2048
    assert own.head_parameters == own.head_parameters_or_tied == 151936 * 4096
    assert tied.head_flops_per_token() == 2 * 151936 * 2048


def test_forward_flops_are_the_published_formula() -> None:
    llama = architecture_of("meta-llama/Llama-3.1-8B")
    layers, head, attention = 2 * 32 * llama.layer_parameters, 2 * 128256 * 4096, 32 * 4 * 8192 * 4096
    assert llama.forward_flops_per_token(8192, causal=False) == layers + head + attention
    assert llama.forward_flops_per_token(8192) == layers + head + attention / 2
    assert llama.forward_flops_per_token(8192, with_head=False) == layers + attention / 2


def test_llama_70b_flops_match_megatron_bridge() -> None:
    """449.5 GFLOP per trained token in its causal convention, 3 forwards; 481 without causality (sequences of 8192)."""
    llama = architecture_of("meta-llama/Llama-3.1-70B")
    assert 3 * llama.forward_flops_per_token(8192) == pytest.approx(449.5e9, rel=0.01)
    assert 3 * llama.forward_flops_per_token(8192, causal=False) == pytest.approx(481e9, rel=0.01)


def test_only_the_chosen_experts_are_multiplied() -> None:
    mixtral = architecture_of("mistralai/Mixtral-8x7B-v0.1")
    dense_part = mixtral.layer_parameters - 8 * 3 * 4096 * 14336
    assert mixtral.active_layer_parameters == dense_part + 2 * 3 * 4096 * 14336
    attention = mixtral.attention_flops_per_token(1)
    assert mixtral.forward_flops_per_token(1, with_head=False) == 2 * 32 * mixtral.active_layer_parameters + attention


@pytest.mark.parametrize(("hub_id", "kib"), [("meta-llama/Llama-3.1-8B", 128), ("meta-llama/Llama-3.1-70B", 320)])
def test_kv_bytes(hub_id: str, kib: int) -> None:
    assert architecture_of(hub_id).kv_bytes_per_token() == kib * 1024
    assert architecture_of(hub_id).kv_bytes_per_token(bytes_per_value=1) == kib * 512


def test_windows_bound_attention_by_counting_the_visible_pairs() -> None:
    config = {**small_llama(), "model_type": "gemma2", "num_hidden_layers": 3, "sliding_window": 5, "head_dim": 8}
    architecture = from_config(config, "test")
    assert (architecture.sliding_window, architecture.sliding_layers) == (5, 2)
    tokens = 4096
    full = sum(position for position in range(tokens)) / tokens
    windowed = sum(min(position, 5) for position in range(tokens)) / tokens
    expected = 4 * architecture.heads * architecture.head_dim * (full + 2 * windowed)
    assert architecture.attention_flops_per_token(tokens) == pytest.approx(expected, rel=1e-3)


def test_a_window_longer_than_the_sequence_changes_nothing() -> None:
    gemma = architecture_of("google/gemma-2-9b")
    without = dataclasses.replace(gemma, sliding_window=None, sliding_layers=0)
    assert gemma.attention_flops_per_token(4096) == without.attention_flops_per_token(4096)
    assert gemma.attention_flops_per_token(8192) < without.attention_flops_per_token(8192)
    assert gemma.attention_flops_per_token(8192, causal=False) == without.attention_flops_per_token(8192, causal=False)


@pytest.mark.parametrize(
    ("hub_id", "legal", "illegal"),
    [
        ("meta-llama/Llama-3.1-8B", [1, 2, 4, 8], [0, 3, 16]),
        ("Qwen/Qwen2.5-7B", [1, 2, 4], [8]),
        ("microsoft/phi-4", [1, 2, 5, 10], [4, 8]),
        ("Qwen/Qwen3-30B-A3B", [1, 2, 4], [8]),
        ("openai-community/gpt2", [1], [2, 4]),
    ],
)
def test_legal_tp(hub_id: str, legal: list[int], illegal: list[int]) -> None:
    architecture = architecture_of(hub_id)
    assert [tp for tp in legal + illegal if architecture.legal_tp(tp)] == legal


def test_supports_tp_is_whether_transformers_has_a_plan() -> None:
    for model_type, family in FAMILIES.items():
        assert family.supports_tp == bool(CONFIG_MAPPING[model_type].base_model_tp_plan), model_type


def test_logit_rules_are_read() -> None:
    gemma, cohere = architecture_of("google/gemma-2-2b"), from_config({**small_llama(), "model_type": "cohere"}, "test")
    assert (gemma.logit_softcap, gemma.logit_scale) == (30.0, 1.0)
    assert (cohere.logit_softcap, cohere.logit_scale) == (None, 0.0625)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_formula_of_the_head_gives_the_models_logits(model_type: str) -> None:
    """What head_is_known promises, on tiny models with weights; keys that a model type ignores change nothing."""
    config = {**tiny(model_type), "final_logit_softcapping": 0.1, "logit_scale": 0.3}
    architecture = from_config(config, model_type)
    assert architecture.head_is_known
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(transformers_config(config)).eval()
    ids = torch.randint(0, architecture.vocabulary, (1, 7))
    with torch.no_grad():
        hidden, expected = model.base_model(ids)[0], model(ids).logits
        logits = architecture.logit_scale * hidden @ model.get_output_embeddings().weight.T
    if architecture.logit_softcap is not None:
        logits = architecture.logit_softcap * torch.tanh(logits / architecture.logit_softcap)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)


def small_llama() -> Config:
    return {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }


def tiny(model_type: str) -> Config:
    if model_type == "gpt2":
        return {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = {**small_llama(), "model_type": model_type, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    experts = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4, "num_local_experts": 4}
    return {**config, **experts} if FAMILIES[model_type].has_experts else config


flags = st.booleans()


@st.composite
def llama_shapes(draw: st.DrawFn) -> Config:
    kv_heads, groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    return {
        "vocab_size": draw(st.integers(8, 200)),
        "hidden_size": kv_heads * groups * draw(st.sampled_from([4, 8, 12])),
        "intermediate_size": draw(st.integers(1, 90)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": kv_heads * groups,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": draw(flags),
    }


def _extra(model_type: str, draw: Callable[[Any], Any]) -> Config:
    """The keys that matter for this model type beside Llama's shapes; some left out, as published files do."""
    experts = draw(st.integers(1, 6))
    mixture = {
        "moe_intermediate_size": draw(st.integers(1, 40)),
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "decoder_sparse_step": draw(st.integers(1, 3)),
        "mlp_only_layers": draw(st.lists(st.integers(0, 5), max_size=2, unique=True)),
    }
    keys: dict[str, Config] = {
        "cohere": {"use_qk_norm": draw(flags), "attention_bias": draw(flags)},
        "cohere2": {"attention_bias": draw(flags)},
        "gemma": {"attention_bias": draw(flags)},
        "gemma2": {"attention_bias": draw(flags)},
        "gemma3_text": {"attention_bias": draw(flags)},
        "gpt_oss": {"num_local_experts": experts, "num_experts_per_tok": 1},
        "llama": {"attention_bias": draw(flags), "mlp_bias": draw(flags)},
        "mixtral": {"num_local_experts": experts, "num_experts_per_tok": 1},
        "qwen2_moe": {
            **mixture,
            "num_experts": experts,
            "shared_expert_intermediate_size": draw(st.integers(1, 60)),
            "qkv_bias": draw(flags),
        },
        "qwen3": {"attention_bias": draw(flags)},
        "qwen3_moe": {**mixture, "num_experts": experts, "attention_bias": draw(flags)},
        "smollm3": {"attention_bias": draw(flags), "mlp_bias": draw(flags)},
    }
    head_dim = {"head_dim": draw(st.sampled_from([4, 6, 16]))}
    own_head_dim = model_type not in {"cohere2", "phi3", "qwen2", "qwen2_moe"} and draw(flags)
    return {**keys.get(model_type, {}), **(head_dim if own_head_dim else {})}


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - {"gpt2"}))
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_parameters_equal_transformers_own(model_type: str, data: st.DataObject) -> None:
    config = {**data.draw(llama_shapes()), "model_type": model_type, **_extra(model_type, data.draw)}
    architecture = from_config(config, "test")
    assert architecture.parameters == unique_parameters(transformers_model(config))
    assert architecture.active_parameters <= architecture.parameters


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_gpt2_parameters_equal_transformers_own(data: st.DataObject) -> None:
    heads, layers = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    width = heads * data.draw(st.sampled_from([2, 8]))
    config = {
        "model_type": "gpt2",
        "vocab_size": data.draw(st.integers(8, 200)),
        **data.draw(
            st.sampled_from(
                [
                    {"n_embd": width, "n_layer": layers, "n_head": heads},
                    {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads},
                ]
            )
        ),
        "n_positions": data.draw(st.integers(1, 80)),
        "n_inner": data.draw(st.sampled_from([None, 5, 64])),
        "tie_word_embeddings": data.draw(flags),
    }
    model = transformers_model(config)
    assert from_config(config, "test").parameters == unique_parameters(model)


WINDOWED = sorted(name for name, family in FAMILIES.items() if family.full_attention_every is not None)


@pytest.mark.parametrize("window", [{}, {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}])
@pytest.mark.parametrize("model_type", WINDOWED)
def test_the_windows_are_transformers_own(model_type: str, window: Config) -> None:
    config = {**tiny(model_type), "num_hidden_layers": 7, **window}
    theirs, architecture = transformers_config(config), from_config(config, "test")
    types = getattr(theirs, "layer_types", None) or ["sliding_attention" if theirs.sliding_window else "full"] * 7
    assert architecture.sliding_layers == types.count("sliding_attention")
    assert architecture.sliding_window == (theirs.sliding_window if architecture.sliding_layers else None)


def test_listed_layer_types_decide_over_the_rule() -> None:
    config = {**tiny("gemma2"), "layer_types": ["full_attention", "full_attention"], "sliding_window": 5}
    assert from_config(config, "test").sliding_layers == 0


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_config_that_transformers_has_completed_says_the_same(model_type: str) -> None:
    config = tiny(model_type)
    completed = transformers_config(config).to_dict()
    assert from_config(completed, "test") == from_config(config, "test")


def test_gemma3s_nested_text_config_is_unwrapped_with_its_defaults() -> None:
    """google/gemma-3-4b-pt's own config.json leaves heads, head size, vocabulary and positions out."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    nested = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {**text, "model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
    }
    assert from_config(nested, "test") == architecture_of("google/gemma-3-4b-pt")
    untyped = {**nested, "text_config": text}
    assert from_config(untyped, "test") == architecture_of("google/gemma-3-4b-pt")
    assert not from_config({**nested, "tie_word_embeddings": False}, "test").tied


def test_absent_and_null_keys_mean_what_they_mean_to_transformers() -> None:
    config = {**small_llama(), "model_type": "mistral"}
    del config["num_key_value_heads"]
    with pytest.raises(SpecError, match="num_key_value_heads: must divide the 4 attention heads, is 8"):
        from_config(config, "test")
    assert from_config({**config, "num_key_value_heads": None}, "test").kv_heads == 4
    assert from_config({**config, "num_attention_heads": 8}, "test").kv_heads == 8


def test_an_unknown_model_type_is_read_as_llamas_and_said_to_be_unknown() -> None:
    config = {**small_llama(), "model_type": "brandnew", "architectures": ["BrandNewForCausalLM"]}
    architecture = from_config(config, "test")
    llama = from_config(small_llama(), "test")
    assert not architecture.head_is_known
    assert not architecture.supports_tp
    assert architecture.parameters == llama.parameters


@pytest.mark.parametrize(("model_type", "extra"), [("granite", {}), ("olmoe", {"num_experts": 4}), ("phimoe", {})])
def test_unknown_types_that_are_llama_like_come_close_to_transformers_own(model_type: str, extra: Config) -> None:
    config = {**small_llama(), "hidden_size": 256, "model_type": model_type, "num_experts_per_tok": 2, **extra}
    if model_type == "phimoe":
        config["num_local_experts"] = 4
    theirs = unique_parameters(transformers_model({**config, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}))
    assert from_config(config, "test").parameters == pytest.approx(theirs, rel=0.01)


def test_shared_experts_and_first_dense_layers_of_unknown_types() -> None:
    mixture = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 2}
    config = {**small_llama(), "model_type": "brandnew", "num_hidden_layers": 5, "first_k_dense_replace": 2, **mixture}
    architecture = from_config(config, "test")
    assert (architecture.sparse_layers, architecture.shared_expert_intermediate) == (3, 16)
    assert from_config({**config, "mlp_only_layers": [0, 4, 9]}, "test").sparse_layers == 2
    expert, router, mlp = 3 * 32 * 8, 32 * 4, 3 * 32 * 48
    assert architecture.layer_parameters - architecture.dense_layer_parameters == router + 6 * expert - mlp
    assert architecture.layer_parameters - architecture.active_layer_parameters == 2 * expert


def test_without_a_model_type_the_keys_decide() -> None:
    assert from_config({"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}, "test").model_type == "gpt2"
    llama = small_llama()
    del llama["model_type"]
    assert not from_config(llama, "test").head_is_known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "4096"}, "model/config.json: hidden_size: must be a whole number from 1 .* is '4096'"),
        ({"hidden_size": 4096.0}, "hidden_size: must be a whole number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: must be a whole number from 1 .* is -1"),
        ({"num_hidden_layers": True}, "num_hidden_layers: must be a whole number"),
        ({"vocab_size": 10**30}, "vocab_size: must be a whole number"),
        ({"vocab_size": None}, "vocab_size: is missing"),
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: must divide the 4 attention heads, is 3"),
        ({"num_attention_heads": 6}, "head_dim: is missing, and 6 heads do not divide a hidden size of 32"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: must be true or false, is 'yes'"),
        (
            {"model_type": "gemma2", "final_logit_softcapping": 0},
            "final_logit_softcapping: must be a number above 0, is 0",
        ),
        ({"layer_types": "full"}, "layer_types: must be a list, is 'full'"),
        ({"model_type": 7}, "model_type: must be a name such as 'llama', is 7"),
        (
            {"model_type": "deepseek_v3", "kv_lora_rank": 512},
            "layers that are not known .kv_lora_rank.; known: cohere,",
        ),
        ({"model_type": "lfm2", "layer_types": ["conv"]}, "layers that are not known .conv.; known: "),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "'bert' is not a causal language model"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is not a causal language model"),
        ({"model_type": "mamba", "hidden_size": None}, "hidden_size: is missing, and model_type 'mamba' is not known"),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3, "sliding_window": 3},
            "num_experts_per_tok: must be at most the 2 experts, is 3",
        ),
        ({"model_type": "qwen3_moe"}, "num_local_experts .or num_experts.: is missing|num_local_experts: is missing"),
    ],
)
def test_errors_name_place_key_and_value(change: Config, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        from_config({**small_llama(), "sliding_window": 4, **change}, "model/config.json")


@pytest.mark.parametrize(
    "key", sorted(set(small_llama()) - {"model_type", "num_key_value_heads", "max_position_embeddings"})
)
def test_every_key_that_decides_is_asked_for(key: str) -> None:
    config = small_llama()
    del config[key]
    with pytest.raises(SpecError, match=f"^here: {key}: is missing"):
        from_config(config, "here")

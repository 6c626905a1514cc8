"""Model folders without weights: byte-level tokenizers, chat templates of every kind, and a config.json."""

import json
from pathlib import Path
from typing import Any

# Loss spans marked by the template itself.
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The same text without marks.
PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Qwen 3's: an empty thought before the last answer, and only there.
REASONING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% if loop.last %}<think>\n{{ parts[0].split('<think>')[-1] if parts | length > 1 else '' }}"
    "\n</think>\n{% endif %}{{ parts[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Says first how many messages follow: what comes later changes what stands before.
NO_PREFIX = "({{ messages | length }}) " + PLAIN
# Llama 3.2's way of writing the date.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S') %}{% endif %}"
    "<|system|>{{ date_string }}<|end|>" + PLAIN
)
# Accepts only what begins with the user.
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + PLAIN

SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_tokenizer(
    *, chat_template: str | None = None, begin: bool = False, more: tuple[str, ...] = (), **changes: Any
) -> Any:
    """Every byte is a token, after the special ones. `begin` puts <|begin|> before each text.

    `more` adds tokens at the end; `merged` tokens are in the vocabulary, made by `merges`; `swap` exchanges two ids;
    `named` false: the tokenizer knows no end and no padding.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL, "<|begin|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, *changes.get("merged", ())])}
    if "swap" in changes:
        a, b = changes["swap"]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=changes.get("merges", [])))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", vocabulary["<|begin|>"])]
        )
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(list(more))
    names = {"eos_token": "<|end|>", "pad_token": "<|pad|>"} if changes.get("named", True) else {}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = chat_template
    return made


def model_folder(folder: Path, tokenizer: Any = None, *, vocabulary: int = 320, positions: int = 512) -> Path:
    """A folder with config.json and, unless it is None, a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": positions,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder

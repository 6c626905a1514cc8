"""Makes configs/quickstart/teacher: a byte-level Llama of 1.9M parameters, trained on the standard library's source.

    python configs/quickstart/train_teacher.py DATA [--minutes 45]

DATA is a folder that make_data.py wrote. One core needs about 45 minutes; the weights are kept in bfloat16 so that the
repository carries less than 4 MB. Prints the held-out cross-entropy in nats per byte as it goes.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SEQUENCE_LENGTH, BATCH, PEAK_LEARNING_RATE = 256, 16, 3e-3


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; id 0 ends a document, id 1 pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0, "<|pad|>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


def teacher_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=258, hidden_size=160, intermediate_size=432, num_hidden_layers=6, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip


def token_stream(folder: Path, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All documents of a folder, each closed by the end token, as one row of ids."""
    ids: list[int] = []
    for path in sorted(folder.glob("*.txt")):
        ids += [*tokenizer.encode(path.read_text(encoding="utf-8")), 0]
    return torch.from_numpy(np.array(ids, dtype=np.int64))


def batch_at(stream: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(len(stream) - SEQUENCE_LENGTH - 1, (BATCH,), generator=generator)
    return torch.stack([stream[start : start + SEQUENCE_LENGTH] for start in starts.tolist()])


@torch.no_grad()
def held_out_nats(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(7)
    losses = [model(batch, labels=batch).loss.item() for batch in (batch_at(stream, generator) for _ in range(8))]
    return sum(losses) / len(losses)


def learning_rate(fraction: float) -> float:
    """Warm-up over 2 % of the time, then a cosine down to nothing."""
    return PEAK_LEARNING_RATE * min(1.0, fraction / 0.02) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def train(model: LlamaForCausalLM, train_stream: torch.Tensor, eval_stream: torch.Tensor, minutes: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    start, step = time.monotonic(), 0
    while (fraction := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(fraction)
        batch = batch_at(train_stream, generator)
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 200 == 0:
            print(f"step {step}  {fraction:.0%}  held out {held_out_nats(model, eval_stream):.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=45)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = LlamaForCausalLM(teacher_config())
    train_stream, eval_stream = (token_stream(arguments.data / split, tokenizer) for split in ("train", "eval"))
    print(f"{model.num_parameters():,} parameters, {len(train_stream):,} bytes to train on", flush=True)
    train(model, train_stream, eval_stream, arguments.minutes)
    print(f"held out: {held_out_nats(model, eval_stream):.4f} nats per byte", flush=True)
    model.to(torch.bfloat16).save_pretrained(HERE / "teacher")
    tokenizer.save_pretrained(HERE / "teacher")


if __name__ == "__main__":
    main()

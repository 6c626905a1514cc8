"""TRL's GKDTrainer on rows of tokens as they are: the other side of the comparison, one rank of it.

    torchrun --nproc-per-node 2 -m benchmarks.trl_gkd TEACHER STUDENT TOKENS.npy OUTPUT.jsonl --batch 4

Off-policy (lmbda 0), temperature 1, no shuffling, fused AdamW, a constant learning rate, every token but a row's first
a target: what kd-launch does with the same tokens. Activations are kept, which is TRL's fastest way.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer


class StepClock(TrainerCallback):
    """Loss, gradient norm and the time of every step's end, in the form of kd-launch's metrics."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, _arguments: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs and state.is_world_process_zero:
            line = {"step": state.global_step, "loss": logs["loss"], "grad_norm": logs["grad_norm"]}
            with self.path.open("a") as file:
                file.write(json.dumps({**line, "time": time.time()}) + "\n")


def collate(rows: list[dict[str, list[Any]]]) -> dict[str, torch.Tensor]:
    ids, loss = (torch.tensor([row[name] for row in rows]) for name in ("input_ids", "loss"))
    # loss[t] says whether the prediction of the next token counts. The Trainer counts these labels for its mean.
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = torch.where(loss[:, :-1], ids[:, 1:], -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def make_trainer(
    teacher: Path, student: Path, tokens: Path, output: Path, *, batch: int, beta: float = 0.5,
    learning_rate: float = 1e-4, steps: int = -1, loss: Path | None = None,
) -> GKDTrainer:  # fmt: skip
    """A trainer whose step is `batch` sequences on this rank; of all tokens, or those whose prediction counts."""
    arguments = GKDConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch,
        max_steps=steps, num_train_epochs=1, learning_rate=learning_rate, lr_scheduler_type="constant", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused", bf16=False, activation_checkpointing=False,
        train_sampling_strategy="sequential", seed=0, lmbda=0.0, beta=beta, temperature=1.0, logging_steps=1,
        logging_first_step=True, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        dataloader_num_workers=0, dataloader_pin_memory=False, ddp_find_unused_parameters=False,
    )  # fmt: skip
    ids = np.load(tokens)
    counts = np.ones(ids.shape, dtype=bool) if loss is None else np.load(loss)
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "loss": counts.tolist()})
    nothing = Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>"))
    return GKDTrainer(
        model=AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32),
        args=arguments, data_collator=collate, train_dataset=rows,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=nothing, eos_token="<end>", pad_token="<end>"),
        callbacks=[StepClock(output)],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "student", "tokens", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--batch", type=int, required=True, help="sequences of a step, over all ranks")
    asked = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    make_trainer(asked.teacher, asked.student, asked.tokens, asked.output, batch=asked.batch // ranks).train()


if __name__ == "__main__":
    main()

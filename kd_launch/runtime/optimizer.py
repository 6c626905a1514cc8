"""AdamW on the student's shards, and the learning rate of a step."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kd_launch.spec import Training

MakeOptimizer = Callable[[nn.Module, Training], torch.optim.Optimizer]


def make_adamw(student: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Fused AdamW; weight decay on matrices only, not on norms and biases."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=training.adam_betas,
        eps=1e-8,
        fused=True,
    )


def learning_rate(step: int, training: Training) -> float:
    """The learning rate of a step, counted from 0: the schedules of `transformers.get_scheduler`, digit for digit."""
    warmup, total = training.warmup_steps, training.steps
    if step < warmup:
        return training.learning_rate * step / max(1, warmup)
    if training.schedule == "constant":
        return training.learning_rate
    left = max(0.0, (total - step) / max(1, total - warmup))
    if training.schedule == "linear":
        return training.learning_rate * left
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - left)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[Tensor], most: float | None) -> float:
    """The norm of all gradients together, over all shards; they are scaled down to `most` where they exceed it."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm)

"""One training step as plainly as it can be written: one process, whole logits in float64, autograd all the way."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


def document_mask(positions: Tensor) -> Tensor:
    """[b, 1, s, s] float mask, built from the definition: a token sees earlier tokens of its own document."""
    documents = torch.cumsum((positions == 0).int(), dim=1)
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    allowed = same & torch.ones(positions.shape[1], positions.shape[1], dtype=torch.bool).tril()
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min).unsqueeze(1)


def whole_logits(model: torch.nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
    """[b, s, V] of packed rows, upcast to float64."""
    output = model(input_ids=ids, position_ids=positions, attention_mask=document_mask(positions), use_cache=False)
    return output.logits.double()


def first_step(teacher: Path, student: Path, store: Path, rows: slice, beta: float) -> tuple[float, float]:
    """The loss and the norm of its gradient on some rows of a store."""
    arrays = [np.load(store / f"{name}.npy")[rows] for name in ("ids", "positions", "loss")]
    ids, positions, loss = (torch.from_numpy(array) for array in arrays)
    ids, positions = ids.long(), positions.long()
    with torch.no_grad():
        zt = whole_logits(AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32), ids, positions)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    zs = whole_logits(model, ids, positions)
    vocabulary = min(zs.shape[-1], zt.shape[-1])
    log_ps = torch.log_softmax(zs[..., :vocabulary], -1)[loss]
    log_pt = torch.log_softmax(zt[..., :vocabulary], -1)[loss]
    if beta == 0:
        value = (log_pt.exp() * (log_pt - log_ps)).sum(-1).mean()
    else:
        log_m = torch.logaddexp(log_pt + math.log(beta), log_ps + math.log1p(-beta))
        value = beta * (log_pt.exp() * (log_pt - log_m)).sum(-1).mean()
        value = value + (1 - beta) * (log_ps.exp() * (log_ps - log_m)).sum(-1).mean()
    value.backward()
    squares = sum(float(p.grad.double().pow(2).sum()) for p in model.parameters() if p.grad is not None)
    return value.item(), math.sqrt(squares)

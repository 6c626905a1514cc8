"""The distillation loss on any payload, chunk by chunk, with its analytic gradient: memory does not grow with tokens.

`divergence` says what the loss of a token is. That of a step is the sum over all loss tokens of the global batch,
divided by their number, so that it does not depend on how they are spread over ranks.

The products of a chunk want many rows, the elementwise part wants few, so that they stay in a CPU's caches: a chunk's
products are two buffers, compared block by block, and the gradient takes the student's place in them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from kd_launch.runtime.divergence import STATISTICS, Compare, Finish, Objective, Rule, compare, compare_buckets, wide

__all__ = ["STATISTICS", "ChunkedLoss", "Head", "LossInputs", "Objective"]  # what the rest of the runtime needs

# Float32 logits of one chunk of rows: two such buffers live at once. Many rows make the products fast.
CPU_CHUNK_BYTES = 32 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20
# And of one block of its rows: about six such buffers live at once, on a CPU in its caches.
CPU_BLOCK_BYTES = 1 * 2**20
GPU_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: softcap * tanh(scale * (h W^T + bias) / softcap)."""

    weight: Tensor
    """[V, h], in compute dtype."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    softcap: float | None = None

    @property
    def finish(self) -> Finish:
        return Finish(self.scale, self.softcap)

    def logits(self, hidden: Tensor, vocabulary: int) -> Tensor:
        """The first `vocabulary` logits of each row of `hidden` [n, h]: [n, vocabulary], at least float32."""
        return self.finish.logits(self.products(hidden, vocabulary))

    def finished(self, products: Tensor) -> Tensor:
        """Logits in the products' dtype, in their place: float32 ones of a chunk of rows live at a time."""
        if self.finish != Finish() and products.numel():
            for rows in chunks(len(products), products.shape[1], products.device):
                products[rows] = self.finish.logits(products[rows])
        return products

    def products(self, hidden: Tensor, vocabulary: int, out: Tensor | None = None) -> Tensor:
        """h W^T + bias in compute dtype: [n, vocabulary]."""
        weight = self.weight[:vocabulary].T
        if self.bias is None:
            return torch.mm(hidden, weight, out=out)
        return torch.addmm(self.bias[:vocabulary], hidden, weight, out=out)


class Buffer:
    """Memory for the products of one chunk after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensor: Tensor | None = None

    def rows(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """[rows, columns] that nobody needs any more."""
        held = self._tensor
        if held is None or len(held) < rows or held.shape[1] != columns or held.dtype != dtype:
            self._tensor = held = torch.empty(rows, columns, dtype=dtype, device=self._device)
        return held[:rows]


@dataclass(frozen=True)
class WholeLogits:
    """The teacher's logits of a chunk, before their finish."""

    products: Tensor
    """[n, V]."""
    finish: Finish

    def compare(self, student: Tensor, rows: slice, labels: Tensor, rule: Rule, function: Compare) -> Tensor:
        return function(student, self.products[rows], labels, rule)


@dataclass(frozen=True)
class Buckets:
    """The teacher's k most likely tokens of a chunk, and all others together."""

    ids: Tensor
    """[n, k]."""
    logprobs: Tensor
    """[n, k]."""
    missing: Tensor
    """[n]."""
    finish: Finish = field(default_factory=Finish)

    def compare(self, student: Tensor, rows: slice, labels: Tensor, rule: Rule, function: Compare) -> Tensor:  # noqa: ARG002
        return compare_buckets(student, self.ids[rows], self.logprobs[rows], self.missing[rows], labels, rule)


class TeacherSignal(Protocol):
    """What the loss needs of a payload."""

    vocabulary: int

    def cut(self, tokens: int, device: torch.device) -> list[slice]:
        """The rows of each chunk, in the order in which `chunk` is asked for them."""
        ...

    def chunk(self, rows: slice, buffer: Buffer) -> WholeLogits | Buckets:
        """What the teacher says of some rows; valid until the next call with the same buffer."""
        ...


@dataclass(frozen=True)
class LossInputs:
    """All of the loss that is not differentiated."""

    signal: TeacherSignal
    labels: Tensor
    """[n], the token that follows each loss token."""
    objective: Objective
    scale: float
    """Multiplies the sum over this rank's loss tokens: data-parallel size / loss tokens of the global batch."""
    student_head: Callable[[Tensor, Tensor | None], Head]
    """Weight and bias -> the student's head."""
    measure_cross_entropy: bool = False
    """Whether the statistics hold cross-entropies though the objective does not need them: for evaluation."""
    compare: Compare = compare
    """Or the same, compiled."""


class ChunkedLoss(torch.autograd.Function):
    """Hidden states and the head's weight in, the scaled loss out; never more than one chunk of logits at a time.

    The gradients are computed on the way forward, since a chunk's logits are at hand only there; the backward hands
    them on. The head's gradient is summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, inputs: LossInputs
    ) -> tuple[Tensor, Tensor]:
        """hidden [n, h], weight [V, h] -> loss [], sums over the tokens as in `STATISTICS`, float64."""
        work = _Work.start(hidden, weight, bias, inputs.signal.vocabulary, any(ctx.needs_input_grad))
        statistics = torch.zeros(len(STATISTICS), dtype=torch.float64, device=hidden.device)
        head = inputs.student_head(weight, bias)
        for rows in inputs.signal.cut(len(hidden), hidden.device):
            statistics += _one_chunk(hidden[rows], head, rows, inputs, work)
        ctx.dtype = weight.dtype
        ctx.save_for_backward(work.grad_hidden, work.grad_weight, work.grad_bias)
        ctx.mark_non_differentiable(statistics)
        loss = (statistics[0] * inputs.scale).to(wide(hidden.dtype))
        return loss, statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else _scaled(grad, grad_loss, ctx.dtype) for grad in ctx.saved_tensors)
        return (*grads, None)


def _scaled(grad: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * by in `dtype`; without a copy where that changes nothing (asking a GPU would stall it)."""
    if grad.dtype == dtype and by.device.type == "cpu" and by.item() == 1.0:
        return grad
    return torch.mul(grad, by, out=torch.empty_like(grad, dtype=dtype))


@dataclass
class _Work:
    """The gradients as they fill, and the buffers of a chunk."""

    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    student: Buffer
    teacher: Buffer

    @classmethod
    def start(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, vocabulary: int, wanted: bool
    ) -> "_Work":  # fmt: skip
        buffers = Buffer(hidden.device), Buffer(hidden.device)
        if not wanted:
            return cls(None, None, None, *buffers)
        kind = wide(weight.dtype)
        return cls(
            torch.empty_like(hidden),
            _place_for(weight, kind, len(hidden), vocabulary),
            None if bias is None else torch.zeros_like(bias, dtype=kind),
            *buffers,
        )


def _place_for(weight: Tensor, dtype: torch.dtype, tokens: int, vocabulary: int) -> Tensor:
    """For the head's gradient; zero where the first chunk writes nothing."""
    if not tokens or dtype != weight.dtype:
        return torch.zeros_like(weight, dtype=dtype)
    place = torch.empty_like(weight)
    place[vocabulary:].zero_()
    return place


def chunks(tokens: int, vocabulary: int, device: torch.device) -> list[slice]:
    """The rows of each chunk, about the same number, so that its float32 logits stay within the bytes of the device."""
    limit = CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES
    number = ceil(tokens / max(1, limit // (4 * vocabulary)))
    return _cut(tokens, ceil(tokens / max(1, number)))


def _blocks(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    limit = CPU_BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES
    return _cut(rows, max(1, limit // (4 * vocabulary)))


def _cut(rows: int, most: int) -> list[slice]:
    return [slice(start, min(start + most, rows)) for start in range(0, rows, max(1, most))]


def _one_chunk(hidden: Tensor, head: Head, rows: slice, inputs: LossInputs, work: _Work) -> Tensor:
    """The statistics of one chunk; fills its part of the gradients."""
    vocabulary, labels = inputs.signal.vocabulary, inputs.labels[rows]
    teacher = inputs.signal.chunk(rows, work.teacher)  # of no rows, too: other ranks may wait for this one's part
    if not len(hidden):
        return torch.zeros(len(STATISTICS), dtype=torch.float64, device=hidden.device)
    student = head.products(hidden, vocabulary, work.student.rows(len(hidden), vocabulary, hidden.dtype))
    want = work.grad_hidden is not None
    rule = Rule(inputs.objective, head.finish, teacher.finish, want, inputs.measure_cross_entropy)
    total = torch.zeros(len(STATISTICS), dtype=torch.float64, device=hidden.device)
    for block in _blocks(len(hidden), vocabulary, hidden.device):
        values = teacher.compare(student[block], block, labels[block], rule, inputs.compare)
        total += values.sum(-1, dtype=torch.float64)
    if want:
        _backward_chunk(student, hidden, head.weight, rows, inputs.scale, work)
    return total


def _backward_chunk(
    grad: Tensor, hidden: Tensor, weight: Tensor, rows: slice, scale: float, work: _Work
) -> None:  # fmt: skip
    """Adds one chunk's part of the gradients, times `scale`: g W, g^T h and the sum of g."""
    assert work.grad_hidden is not None
    assert work.grad_weight is not None
    vocabulary = grad.shape[1]
    if work.grad_bias is not None:
        work.grad_bias[:vocabulary].add_(grad.sum(0, dtype=work.grad_bias.dtype), alpha=scale)
    torch.mm(grad, weight[:vocabulary], out=work.grad_hidden[rows]).mul_(scale)
    if work.grad_weight.dtype == weight.dtype:
        # With beta 0 the first chunk's part takes the place of whatever the memory holds.
        work.grad_weight[:vocabulary].addmm_(grad.T, hidden, beta=min(1, rows.start), alpha=scale)
    else:
        work.grad_weight[:vocabulary].add_(grad.T @ hidden, alpha=scale)

"""The distillation loss on any payload, chunk by chunk, with its analytic gradient: memory does not grow with tokens.

With zs, zt the student's and the teacher's logits, T the temperature, ps = softmax(zs / T), pt = softmax(zt / T):

    beta = 0        KL(pt || ps), forward KL
    beta = 1        KL(ps || pt), reverse KL
    0 < beta < 1    beta KL(pt || m) + (1 - beta) KL(ps || m),  m = beta pt + (1 - beta) ps

as in TRL's GKD, without a T^2 factor. Like TRL's it jumps at the ends: as beta -> 0 the middle form goes to 0 like
beta KL(pt || ps), while beta = 0 is KL(pt || ps) itself. The loss of a token is
(1 - w) * divergence + w * cross-entropy, and that of a step is the sum over all loss tokens of the global batch
divided by their number, so that it does not depend on how they are spread over ranks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# The float32 logits of one chunk. About six buffers of that size live at once. On a CPU they should stay near the
# caches, on a GPU the products need rows.
CPU_CHUNK_BYTES = 8 * 2**20
GPU_CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Objective:
    """What is minimised; see the module."""

    beta: float
    temperature: float
    cross_entropy_weight: float


@dataclass(frozen=True)
class Head:
    """How hidden states become logits: softcap * tanh(scale * (h W^T + bias) / softcap)."""

    weight: Tensor
    """[V, h], in compute dtype."""
    bias: Tensor | None = None
    """[V]."""
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, vocabulary: int) -> Tensor:
        """The first `vocabulary` logits of each row of `hidden` [n, h]: [n, vocabulary], at least float32."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        raw = torch.nn.functional.linear(hidden, self.weight[:vocabulary], bias)
        logits = raw.to(_wide(raw.dtype))
        if self.scale != 1.0:
            logits = logits.mul_(self.scale) if logits is not raw else logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def backward_through(self, grad: Tensor, logits: Tensor) -> Tensor:
        """The gradient with respect to h W^T + bias, given that with respect to the logits; changes `grad`."""
        if self.softcap is not None:
            grad *= 1 - (logits / self.softcap) ** 2
        if self.scale != 1.0:
            grad *= self.scale
        return grad


class TeacherSignal(Protocol):
    """What the loss needs of a payload: the divergence of some rows, and the cross-entropy of the teacher itself."""

    vocabulary: int

    def divergence(
        self, student_logits: Tensor, rows: slice, objective: Objective, want_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Divergences [n] of rows, and their gradient [n, vocabulary] with respect to the student's logits."""
        ...

    def cross_entropy(self, rows: slice, labels: Tensor) -> Tensor | None:
        """The teacher's own cross-entropy of the labels [n], where the payload tells it."""
        ...


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def divergence(
    student_logits: Tensor, teacher_logits: Tensor, objective: Objective, want_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Divergence of each row and its gradient with respect to the student's logits.

    Args:
        student_logits: [n, V], float32 or float64.
        teacher_logits: [n, V], the same dtype; is overwritten.
        objective: beta and temperature.
        want_gradient: whether to compute the gradient.

    Returns:
        [n], and [n, V] or None.
    """
    beta, temperature = objective.beta, objective.temperature
    # Subtracting the row's maximum before dividing keeps tokens that matter exact, however large the logits are.
    log_ps = _log_softmax_over(student_logits.clone(), temperature)
    log_pt = _log_softmax_over(teacher_logits, temperature)
    ps, pt = log_ps.exp(), log_pt.exp()
    ratio = log_ps.sub_(log_pt)  # log(ps / pt); log_ps is not needed any more
    if beta == 0:
        values = -(pt * ratio).sum(-1)
        return values, ps.sub_(pt) if want_gradient else None
    if beta == 1:
        values = (ps * ratio).sum(-1)
        return values, ps.mul_(ratio.sub_(values.unsqueeze(-1))) if want_gradient else None
    log_m_pt, log_ps_m = _log_mixture(ratio, beta)
    forward = (pt.mul_(log_m_pt)).sum(-1)
    reverse = (ps * log_ps_m).sum(-1)
    values = (1 - beta) * reverse - beta * forward
    if not want_gradient:
        return values, None
    return values, ps.mul_(log_ps_m.sub_(reverse.unsqueeze(-1))).mul_(1 - beta)


def _log_mixture(ratio: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log(m / pt) and log(ps / m) from log(ps / pt), with m = beta pt + (1 - beta) ps; overwrites `ratio`.

    Without forming m, whose logarithm is -inf for logits 120 apart, and without taking one from the other, which would
    cancel there: with u the log of the mixture's two parts' ratio, both are soft-plus of u, up to its sign.
    """
    u = ratio.add_(math.log1p(-beta) - math.log(beta))
    bend = u.abs().neg_().exp_().log1p_()
    log_m_pt = u.clamp_min(0).add_(bend).add_(math.log(beta))
    log_ps_m = u.clamp_max_(0).sub_(bend).sub_(math.log1p(-beta))
    return log_m_pt, log_ps_m


def _log_softmax_over(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) of each row, in place."""
    logits.sub_(logits.amax(-1, keepdim=True))
    if temperature != 1.0:
        logits.div_(temperature)
    return logits.sub_(logits.exp().sum(-1, keepdim=True).log_())


def bucket_divergence(
    student_logits: Tensor, ids: Tensor, teacher_logprobs: Tensor, missing: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """The divergence where only the teacher's k most likely tokens are known: all others count as one bucket.

    Args:
        student_logits: [n, V].
        ids: [n, k].
        teacher_logprobs: [n, k], at the objective's temperature.
        missing: [n], the log of the probability of all other tokens together; -inf where there is none.
        objective: beta and temperature.

    Returns:
        [n], a lower bound of the true divergence, and its gradient [n, V] with respect to the student's logits.
    """
    log_ps = _log_softmax_over(student_logits.clone(), objective.temperature)
    kept = log_ps.gather(-1, ids)
    rest = log_ps.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    log_q = torch.cat([kept, rest], -1).clamp_min(torch.finfo(kept.dtype).min / 4)
    log_p = torch.cat([teacher_logprobs, missing.unsqueeze(-1)], -1).to(log_q.dtype)
    log_p = log_p.clamp_min(torch.finfo(kept.dtype).min / 4)
    values, slope = _bucket_terms(log_q, log_p, objective.beta)
    # With w = dL / dlog q of each bucket, dL / dz_v = p_v (w / q of v's bucket) - p_v sum(w).
    total = slope.sum(-1, keepdim=True)
    outside = (slope[:, -1:] * torch.exp(log_ps - log_q[:, -1:])).nan_to_num_(0.0, 0.0, 0.0)
    gradient = outside.scatter_(-1, ids, slope[:, :-1])
    return values, gradient.sub_(log_ps.exp_().mul_(total))


def _bucket_terms(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Divergence of each row of buckets and its derivative with respect to log q, the student's log probability."""
    q, p, ratio = log_q.exp(), log_p.exp(), log_q - log_p
    if beta == 0:
        return -(p * ratio).sum(-1), -p
    if beta == 1:
        return (q * ratio).sum(-1), q * (ratio + 1)
    log_m_p, log_q_m = _log_mixture(ratio, beta)
    values = (1 - beta) * (q * log_q_m).sum(-1) - beta * (p * log_m_p).sum(-1)
    return values, (1 - beta) * q * log_q_m


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


# Sums over this rank's loss tokens that the loss returns beside itself.
STATISTICS = ("objective", "student_cross_entropy", "teacher_cross_entropy")


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
        work = _Work.start(hidden, weight, bias, any(ctx.needs_input_grad))
        statistics = torch.zeros(len(STATISTICS), dtype=torch.float64, device=hidden.device)
        for rows in chunks(len(hidden), inputs.signal.vocabulary, hidden.device):
            statistics += _one_chunk(hidden[rows], weight, bias, rows, inputs, work)
        ctx.dtype = weight.dtype
        ctx.save_for_backward(work.grad_hidden, work.grad_weight, work.grad_bias)
        ctx.mark_non_differentiable(statistics)
        loss = (statistics[0] * inputs.scale).to(_wide(hidden.dtype))
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
    """The gradients as they fill."""

    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None

    @classmethod
    def start(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: bool) -> "_Work":
        if not wanted:
            return cls(None, None, None)
        wide = _wide(weight.dtype)
        return cls(
            torch.empty_like(hidden),
            torch.zeros_like(weight, dtype=wide),
            None if bias is None else torch.zeros_like(bias, dtype=wide),
        )


def chunks(tokens: int, vocabulary: int, device: torch.device) -> list[slice]:
    """The rows of each chunk, so that a chunk's float32 logits stay within the bytes of the device."""
    limit = CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES
    rows = max(1, limit // (4 * vocabulary))
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def _one_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: slice, inputs: LossInputs, work: _Work
) -> Tensor:
    """The statistics of one chunk; fills its part of the gradients."""
    objective, vocabulary = inputs.objective, inputs.signal.vocabulary
    weight_of_ce = objective.cross_entropy_weight
    head = inputs.student_head(weight, bias)
    labels = inputs.labels[rows]
    logits = head.logits(hidden, vocabulary)
    want = work.grad_hidden is not None
    total = logits.new_zeros(len(STATISTICS), dtype=torch.float64)
    grad: Tensor | None = None
    if weight_of_ce < 1 or not want:
        values, grad = inputs.signal.divergence(logits, rows, objective, want)
        total[0] += (1 - weight_of_ce) * values.sum(dtype=torch.float64)
        if grad is not None:
            grad.mul_((1 - weight_of_ce) / objective.temperature)
    if weight_of_ce > 0 or inputs.measure_cross_entropy:
        values, grad_ce = _cross_entropy(logits, labels, want and weight_of_ce > 0)
        total[0] += weight_of_ce * values.sum(dtype=torch.float64)
        total[1] += values.sum(dtype=torch.float64)
        if grad_ce is not None:
            grad = grad_ce.mul_(weight_of_ce) if grad is None else grad.add_(grad_ce, alpha=weight_of_ce)
    if inputs.measure_cross_entropy:
        teacher_values = inputs.signal.cross_entropy(rows, labels)
        total[2] += math.nan if teacher_values is None else teacher_values.sum(dtype=torch.float64)
    if want and grad is not None:
        _backward_chunk(head.backward_through(grad.mul_(inputs.scale), logits), hidden, weight, rows, work)
    return total


def _cross_entropy(logits: Tensor, labels: Tensor, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """-log softmax(logits)[label] of each row, [n], and its gradient [n, V]."""
    logprobs = _log_softmax_over(logits.clone(), 1.0)
    column = labels.unsqueeze(-1)
    values = -logprobs.gather(-1, column).squeeze(-1)
    if not want_gradient:
        return values, None
    gradient = logprobs.exp_()
    return values, gradient.scatter_add_(-1, column, torch.full_like(column, -1, dtype=gradient.dtype))


def _backward_chunk(grad_logits: Tensor, hidden: Tensor, weight: Tensor, rows: slice, work: _Work) -> None:
    """Adds one chunk's part of the gradients: g W, g^T h and the sum of g."""
    assert work.grad_hidden is not None
    assert work.grad_weight is not None
    vocabulary = grad_logits.shape[1]
    if work.grad_bias is not None:
        work.grad_bias[:vocabulary] += grad_logits.sum(0)
    narrow = grad_logits.to(weight.dtype)
    torch.mm(narrow, weight[:vocabulary], out=work.grad_hidden[rows])
    if work.grad_weight.dtype == weight.dtype:
        work.grad_weight[:vocabulary].addmm_(narrow.T, hidden)
    else:
        work.grad_weight[:vocabulary] += narrow.T @ hidden

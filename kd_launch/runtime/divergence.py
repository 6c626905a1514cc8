"""The elementwise part of the loss on some rows of logits: divergences, cross-entropies and the gradient.

With zs, zt the student's and the teacher's logits, T the temperature, ps = softmax(zs / T), pt = softmax(zt / T):

    beta = 0        KL(pt || ps), forward KL
    beta = 1        KL(ps || pt), reverse KL
    0 < beta < 1    beta KL(pt || m) + (1 - beta) KL(ps || m),  m = beta pt + (1 - beta) ps

as in TRL's GKD, without a T^2 factor. Like TRL's it jumps at the ends: as beta -> 0 the middle form goes to 0 like
beta KL(pt || ps), while beta = 0 is KL(pt || ps) itself. The loss of a token is
(1 - w) * divergence + w * cross-entropy.

`compare` is written to be fast both as it stands, on rows that fit a CPU's caches, and compiled into few kernels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """What is minimised; see the module."""

    beta: float
    temperature: float
    cross_entropy_weight: float


@dataclass(frozen=True)
class Finish:
    """What a head does to its products h W^T + bias: softcap * tanh(scale * x / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, raw: Tensor) -> Tensor:
        """At least float32; `raw` itself where there is nothing to do."""
        logits = raw.to(wide(raw.dtype))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def backward(self, grad: Tensor, logits: Tensor) -> Tensor:
        """The gradient with respect to the products, given that with respect to the logits; changes `grad`."""
        if self.softcap is not None:
            grad = grad.mul_(1 - (logits / self.softcap) ** 2)
        return grad if self.scale == 1.0 else grad.mul_(self.scale)


@dataclass(frozen=True)
class Rule:
    """All that `compare` is told beside the numbers: the same in every step, so that it is compiled once."""

    objective: Objective
    student: Finish
    teacher: Finish
    want_gradient: bool
    measure: bool
    """Whether the cross-entropies are wanted though the objective does not need them: for evaluation."""


# Of each row: what `compare` returns, in this order. The third is not a number where nobody measures it.
STATISTICS = ("objective", "student_cross_entropy", "teacher_cross_entropy")

Compare = Callable[[Tensor, Tensor, Tensor, Rule], Tensor]


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def compare(student: Tensor, teacher: Tensor, labels: Tensor, rule: Rule) -> Tensor:
    """The statistics of some rows, and the gradient in place of the student's products.

    Args:
        student: [n, V], its head's products in any dtype; with `rule.want_gradient` the gradient of the sum of the
            rows' objectives with respect to them is written over them.
        teacher: [n, V], its head's products in any dtype; not changed.
        labels: [n].
        rule: see there.

    Returns:
        [3, n], float32 or float64; as `STATISTICS`.
    """
    zs, zt = rule.student.logits(student), rule.teacher.logits(teacher)
    objective, w = rule.objective, rule.objective.cross_entropy_weight
    values = zs.new_zeros(len(STATISTICS), len(zs))
    grad: Tensor | None = None
    if w < 1 or not rule.want_gradient:
        found, grad = divergence(zs, zt.to(zs.dtype), objective, rule.want_gradient)
        values[0] = (1 - w) * found
        if grad is not None and (factor := (1 - w) / objective.temperature) != 1.0:
            grad.mul_(factor)
    if w > 0 or rule.measure:
        _add_cross_entropy(values, zs, labels, w)
        if rule.want_gradient and w > 0:
            grad = _cross_entropy_gradient(zs, labels, w, grad)
    if rule.measure:
        values[2] = cross_entropy(zt, labels)
    if grad is not None:
        student.copy_(rule.student.backward(grad, zs))
    return values


def divergence(zs: Tensor, zt: Tensor, objective: Objective, want_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Divergence of each row [n] and its gradient with respect to zs / T, [n, V].

    Args:
        zs, zt: [n, V], float32 or float64, the same dtype; not changed.
        objective: beta and temperature.
        want_gradient: whether to compute the gradient.
    """
    beta, temperature = objective.beta, objective.temperature
    ratio, ps, log_ps_most = _distribution(zs, temperature)
    below, pt, log_pt_most = _distribution(zt, temperature)
    ratio.sub_(below).add_(log_ps_most - log_pt_most)  # log(ps / pt)
    del below
    if beta == 0:
        return _dot(pt, ratio).neg_(), ps.sub_(pt) if want_gradient else None
    if beta == 1:
        values = _dot(ps, ratio)
        return values, ps.mul_(ratio.sub_(values.unsqueeze(-1))) if want_gradient else None
    log_m_pt, log_ps_m = _log_mixture(ratio, beta)
    forward, reverse = _dot(pt, log_m_pt), _dot(ps, log_ps_m)
    values = (1 - beta) * reverse - beta * forward
    if not want_gradient:
        return values, None
    return values, log_ps_m.sub_(reverse.unsqueeze(-1)).mul_(ps).mul_(1 - beta)


def _log_mixture(ratio: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log(m / pt) and log(ps / m) from log(ps / pt), with m = beta pt + (1 - beta) ps; overwrites `ratio`.

    Without forming m, whose logarithm is -inf for logits 120 apart, and without taking one from the other, which would
    cancel there: with u the log of the mixture's two parts' ratio, both are soft-plus of u, up to its sign.
    """
    if beta != 0.5:
        ratio.add_(math.log1p(-beta) - math.log(beta))
    # log(1 + x) is rounded where x is small, by less than the constant below is, in half the time of log1p.
    bend = ratio.abs().neg_().exp_().add_(1).log_()
    log_m_pt = ratio.clamp_min(0).add_(bend).add_(math.log(beta))
    log_ps_m = ratio.clamp_max_(0).sub_(bend).sub_(math.log1p(-beta))
    return log_m_pt, log_ps_m


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row."""
    product: Tensor = torch.linalg.vecdot(a, b)
    return product


def _distribution(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """log(p / p_most), p and log(p_most) of p = softmax(logits / temperature), of each row: [n, V], [n, V], [n, 1].

    Exponentials, which take most of the time, are taken once. Subtracting the maximum before dividing keeps tokens that
    matter exact, however large the logits are.
    """
    below = logits - logits.amax(-1, keepdim=True)
    if temperature != 1.0:
        below.div_(temperature)
    p = torch.softmax(below, -1)
    return below, p, p.amax(-1, keepdim=True).log_()


def _log_softmax_over(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) of each row, as a new tensor."""
    if temperature != 1.0:
        # Subtracting the row's maximum before dividing keeps tokens that matter exact, however large the logits are.
        logits = (logits - logits.amax(-1, keepdim=True)).div_(temperature)
    return torch.log_softmax(logits, -1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] of each row, [n]."""
    return -torch.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _add_cross_entropy(values: Tensor, zs: Tensor, labels: Tensor, weight: float) -> None:
    found = cross_entropy(zs, labels)
    values[0] += weight * found
    values[1] = found


def _cross_entropy_gradient(zs: Tensor, labels: Tensor, weight: float, onto: Tensor | None) -> Tensor:
    """weight * (softmax(zs) - onehot), added onto another gradient."""
    grad = torch.softmax(zs, -1).mul_(weight)
    column = labels.unsqueeze(-1)
    grad.scatter_add_(-1, column, torch.full_like(column, -weight, dtype=grad.dtype))
    return grad if onto is None else grad.add_(onto)


def compare_buckets(
    student: Tensor, ids: Tensor, logprobs: Tensor, missing: Tensor, labels: Tensor, rule: Rule
) -> Tensor:
    """`compare` where only the teacher's k most likely tokens are known; its own cross-entropy is not."""
    zs, w = rule.student.logits(student), rule.objective.cross_entropy_weight
    values = zs.new_zeros(len(STATISTICS), len(zs))
    grad: Tensor | None = None
    if w < 1 or not rule.want_gradient:  # training on the text alone gets no payload
        found, grad = bucket_divergence(zs, ids, logprobs, missing, rule.objective)
        values[0] = (1 - w) * found
        grad.mul_((1 - w) / rule.objective.temperature)
    if w > 0 or rule.measure:
        _add_cross_entropy(values, zs, labels, w)
        grad = _cross_entropy_gradient(zs, labels, w, grad)
    if rule.measure:
        values[2] = math.nan
    if rule.want_gradient and grad is not None:
        student.copy_(rule.student.backward(grad, zs))
    return values


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
        [n], a lower bound of the true divergence, and its gradient [n, V] with respect to the student's logits over
        the temperature.
    """
    log_ps = _log_softmax_over(student_logits, objective.temperature)
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

"""The chunked loss against plain float64 formulas, and its gradient against finite differences."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from kd_launch.runtime import divergence, losses
from kd_launch.runtime.compiling import Compiled
from kd_launch.runtime.divergence import Finish
from kd_launch.runtime.losses import ChunkedLoss, Head, LossInputs, Objective
from kd_launch.runtime.payload import HiddenStates, Kind, Logits, PayloadForm, TopKLogits, make_payload, open_payload

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
TEMPERATURES = (0.05, 0.7, 1.0, 4.0)


def reference(zs: Tensor, zt: Tensor, labels: Tensor, objective: Objective) -> Tensor:
    """The sum over rows, in float64 and with autograd, as the definitions say it."""
    zs, zt = zs.double(), zt.double()
    log_ps = torch.log_softmax(zs / objective.temperature, -1)
    log_pt = torch.log_softmax(zt / objective.temperature, -1)
    beta, w = objective.beta, objective.cross_entropy_weight
    if beta == 0:
        rows = (log_pt.exp() * (log_pt - log_ps)).sum(-1)
    elif beta == 1:
        rows = (log_ps.exp() * (log_ps - log_pt)).sum(-1)
    else:
        log_m = torch.logaddexp(log_pt + math.log(beta), log_ps + math.log(1 - beta))
        rows = beta * (log_pt.exp() * (log_pt - log_m)).sum(-1) + (1 - beta) * (log_ps.exp() * (log_ps - log_m)).sum(-1)
    cross_entropy = torch.nn.functional.cross_entropy(zs, labels, reduction="none")
    return ((1 - w) * rows + w * cross_entropy).sum()


def run_loss(hidden: Tensor, weight: Tensor, signal: object, labels: Tensor, objective: Objective, **head: object):
    inputs = LossInputs(signal, labels, objective, 0.5, lambda w, b: Head(w, b, **head))  # type: ignore[arg-type]
    return ChunkedLoss.apply(hidden, weight, None, inputs)


def make_case(tokens: int = 7, vocabulary: int = 11, width: int = 5, spread: float = 1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype) * spread
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype)
    teacher = torch.randn(tokens, vocabulary, generator=generator, dtype=dtype) * spread
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), teacher, labels


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of several blocks, the last ones shorter, even in a small case."""
    monkeypatch.setattr(losses, "CPU_CHUNK_BYTES", 4 * 11 * 4)
    monkeypatch.setattr(losses, "CPU_BLOCK_BYTES", 4 * 11 * 3)


@pytest.mark.parametrize(("beta", "temperature"), list(itertools.product(BETAS, TEMPERATURES)))
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spread", [1.0, 1e2, 1e4])
def test_value_and_gradient_equal_the_float64_reference(
    beta: float, temperature: float, w: float, spread: float
) -> None:
    objective = Objective(beta, temperature, w)
    logits, _, teacher, labels = make_case(spread=spread, width=11)
    # An identity head makes the student's logits exact, so that only the loss is judged.
    identity = torch.eye(11).requires_grad_()
    loss, statistics = run_loss(logits, identity, Logits(teacher, 11), labels, objective)
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    expected = reference(exact, teacher, labels, objective)
    (gradient,) = torch.autograd.grad(expected, exact)
    assert loss.item() == pytest.approx(0.5 * expected.item(), rel=2e-6, abs=2e-6)
    assert statistics[0].item() == pytest.approx(expected.item(), rel=2e-6, abs=2e-6)
    # Reverse KL's gradient is ps * (log ratio - its mean), whose rounding is that of the log ratios themselves.
    rounding = 2e-7 * (10 + expected.item()) / temperature
    torch.testing.assert_close(logits.grad.double(), 0.5 * gradient, rtol=2e-5, atol=rounding)


@pytest.mark.parametrize("beta", BETAS)
def test_logits_that_differ_by_a_constant_mean_no_loss(beta: float) -> None:
    logits, identity = torch.randn(4, 11), torch.eye(11)
    shifted = (logits.double() + 1e4).float()
    objective = Objective(beta, 1.0, 0.0)
    loss, _ = run_loss(shifted, identity, Logits(shifted - 1e4, 11), torch.zeros(4, dtype=torch.long), objective)
    assert loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("beta", "w"), list(itertools.product(BETAS, (0.0, 0.4))))
@pytest.mark.parametrize("head", [{}, {"scale": 0.25}, {"softcap": 2.0}, {"scale": 3.0, "softcap": 5.0}])
def test_gradcheck(beta: float, w: float, head: dict[str, float]) -> None:
    hidden, weight, teacher, labels = make_case(dtype=torch.float64)
    objective = Objective(beta, 1.3, w)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return run_loss(hidden, weight, Logits(teacher, 11), labels, objective, **head)[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_gradcheck_with_a_bias() -> None:
    hidden, weight, teacher, labels = make_case(dtype=torch.float64)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(Logits(teacher, 11), labels, Objective(0.5, 1.0, 0.2), 0.7, Head)
    assert torch.autograd.gradcheck(lambda *x: ChunkedLoss.apply(*x, inputs)[0], (hidden, weight, bias))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 4, 11])
def test_gradcheck_of_top_k(beta: float, k: int) -> None:
    hidden, weight, teacher, labels = make_case(dtype=torch.float64)
    form = PayloadForm("top_k", 5, 11, k, torch.float64, 1.3)
    ids, logprobs, missing = make_payload(form, teacher, None, teacher)
    signal = TopKLogits(ids, logprobs.double(), missing.double(), 11)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return run_loss(hidden, weight, signal, labels, Objective(beta, 1.3, 0.0))[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("beta", BETAS)
def test_top_k_of_everything_is_exact_and_of_less_a_lower_bound(beta: float) -> None:
    hidden, weight, teacher, labels = make_case(spread=3.0)
    objective = Objective(beta, 0.8, 0.0)
    exact = run_loss(hidden, weight, Logits(teacher, 11), labels, objective)[0].item()
    found = []
    for k in (2, 5, 11):
        form = PayloadForm("top_k", 5, 11, k, torch.float32, 0.8)
        signal = open_payload(form, make_payload(form, teacher, None, teacher), None)
        found.append(run_loss(hidden, weight, signal, labels, objective)[0].item())
    assert found[2] == pytest.approx(exact, rel=1e-5, abs=1e-6)
    assert found[0] <= found[1] + 1e-6 <= exact + 2e-6
    assert found[0] < exact


def test_hidden_states_with_the_teachers_head_equal_its_logits() -> None:
    hidden, weight, _, labels = make_case()
    teacher_hidden, teacher_head = torch.randn(7, 3), Head(torch.randn(13, 3), torch.randn(13), 0.5, 4.0)
    objective = Objective(0.5, 1.0, 0.1)
    by_hidden = run_loss(hidden, weight, HiddenStates(teacher_hidden, teacher_head, 11), labels, objective)[0]
    logits = teacher_head.logits(teacher_hidden, 13)[:, :11]
    by_logits = run_loss(hidden, weight, Logits(logits, 11), labels, objective)[0]
    assert by_hidden.item() == pytest.approx(by_logits.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["logits", "top_k"])
def test_a_teacher_finishes_its_logits_chunk_by_chunk(kind: Kind) -> None:
    head, hidden = Head(torch.randn(13, 3), torch.randn(13), 0.5, 4.0), torch.randn(7, 3)
    form = PayloadForm(kind, 3, 11, 4, torch.float32, 1.3)
    found, expected = (make_payload(form, hidden, head, whole) for whole in (None, head.logits(hidden, 13)))
    assert len(form.chunks(hidden)) == 2
    for part, known in zip(found, expected, strict=True):
        torch.testing.assert_close(part, known)


def test_padded_vocabularies_use_the_common_part_only() -> None:
    hidden, weight, teacher, labels = make_case(vocabulary=11)
    padded = torch.cat([weight.detach(), torch.full((5, 5), 9.0)]).requires_grad_()
    objective = Objective(0.5, 1.0, 0.2)
    expected, _ = run_loss(hidden, weight, Logits(teacher, 11), labels, objective)
    found, _ = run_loss(hidden, padded, Logits(teacher, 11), labels, objective)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    assert padded.grad[11:].abs().max() == 0
    assert padded.grad[:11].abs().min() > 0


def test_no_loss_token_means_zero_loss_and_zero_gradients() -> None:
    _, weight, teacher, labels = make_case()
    hidden = torch.empty(0, 5, requires_grad=True)
    loss, statistics = run_loss(hidden, weight, Logits(teacher[:0], 11), labels[:0], Objective(0.5, 1.0, 0.5))
    loss.backward()
    assert loss.item() == 0
    assert statistics.tolist() == [0, 0, 0]
    assert weight.grad.abs().max() == 0
    assert hidden.grad.shape == (0, 5)


def test_evaluation_measures_both_cross_entropies() -> None:
    hidden, weight, teacher, labels = make_case()
    inputs = LossInputs(Logits(teacher, 11), labels, Objective(0.0, 2.0, 0.0), 0.0, Head, measure_cross_entropy=True)
    with torch.no_grad():
        _, statistics = ChunkedLoss.apply(hidden, weight, None, inputs)
    student = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    expected = torch.nn.functional.cross_entropy(teacher, labels, reduction="sum")
    assert statistics[1].item() == pytest.approx(student.item(), rel=1e-5)
    assert statistics[2].item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_a_compiler_the_loss_goes_on_eagerly_and_says_so_once() -> None:
    def no_compiler(*_: object) -> Tensor:
        raise RuntimeError("no C++ compiler\nand a long story")

    said: list[str] = []
    compare = Compiled(no_compiler, said.append)
    hidden, weight, teacher, labels = make_case()
    expected, _ = run_loss(hidden, weight, Logits(teacher, 11), labels, Objective(0.5, 1.0, 0.0))
    inputs = LossInputs(Logits(teacher, 11), labels, Objective(0.5, 1.0, 0.0), 0.5, Head, compare=compare)
    found = [ChunkedLoss.apply(hidden, weight, None, inputs)[0].item() for _ in range(2)]
    assert found == [expected.item()] * 2
    assert said == ["the loss is not compiled, which costs time only: RuntimeError: no C++ compiler"]


def test_an_error_after_the_compiler_worked_is_no_reason_to_go_on() -> None:
    hidden, weight, teacher, labels = make_case()
    answers = [divergence.compare, None]

    def worked_once(*arguments: Tensor) -> Tensor:
        function = answers.pop(0)
        if function is None:
            raise RuntimeError("out of memory")
        return function(*arguments)

    inputs = LossInputs(Logits(teacher, 11), labels, Objective(0.5, 1.0, 0.0), 0.5, Head,
                        compare=Compiled(worked_once, pytest.fail))  # fmt: skip
    with pytest.raises(RuntimeError, match="out of memory"):
        ChunkedLoss.apply(hidden, weight, None, inputs)


def test_compiled_and_eager_rows_are_equal() -> None:
    """Captured and made free of in-place operations, as for every backend; the form that does the most."""
    rule = divergence.Rule(Objective(0.3, 0.7, 0.2), Finish(1.5), Finish(softcap=4.0), True, True)
    compiled = Compiled(torch.compile(divergence.compare, dynamic=True, backend="aot_eager"), pytest.fail)
    for rows in (5, 3):
        generator = torch.Generator().manual_seed(rows)
        student, teacher = torch.randn(2, rows, 67, generator=generator).unbind()
        labels = torch.randint(67, (rows,), generator=generator)
        copy = student.clone()
        found, expected = compiled(student, teacher, labels, rule), divergence.compare(copy, teacher, labels, rule)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(student, copy)


@pytest.mark.parametrize("kind", ["hidden_states", "logits", "top_k"])
def test_the_text_alone_needs_no_payload(kind: str) -> None:
    hidden, weight, _, labels = make_case()
    form = PayloadForm(kind, 3, 11, 4, torch.float32, 1.0)  # type: ignore[arg-type]
    signal = open_payload(form, form.empty(torch.device("cpu")), Head(torch.randn(13, 3)))
    loss, _ = run_loss(hidden, weight, signal, labels, Objective(0.5, 1.0, 1.0))
    loss.backward()
    expected = torch.nn.functional.cross_entropy(hidden.detach() @ weight.detach().T, labels, reduction="sum")
    assert loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    assert weight.grad.abs().max() > 0

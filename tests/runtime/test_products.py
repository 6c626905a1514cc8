"""Products given to oneDNN are torch's, in every shape, stride and form that ranks ask for; and only where they pay."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_launch.runtime import products
from kd_launch.runtime.products import is_slow_for_mkl, multiply, use_onednn

INTEL, AMD = "GenuineIntel", "AuthenticAMD"
# Rows, inner and columns: blocks of columns, of rows, of neither; with and without a last one that is smaller.
SHAPES = [(171, 64, 5000), (5000, 64, 171), (3, 7000, 300), (256, 128, 256), (129, 4099, 33), (1, 2048, 1024)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that oneDNN multiplies while it does so."""
    seen: list[tuple[int, ...]] = []

    def counted(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append((*left.shape, right.shape[1]))
        return multiply(left, right, bias)

    monkeypatch.setattr(products, "multiply", counted)
    library = use_onednn()
    yield seen
    library._destroy()
    torch.ones(256, 256) @ torch.ones(256, 256)
    assert (256, 256, 256) not in seen[-1:], "torch's own products are back"


def close(found: Tensor, exact: Tensor) -> bool:
    """Of products of numbers around 1: float32's rounding of sums as long as they are here."""
    return found.dtype == torch.float32 and bool(torch.allclose(found.double(), exact, rtol=1e-4, atol=2e-3))


def matrices(rows: int, inner: int, columns: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)


def laid_out(matrix: Tensor, how: str) -> Tensor:
    """The same numbers with other strides."""
    rows, columns = matrix.shape
    if how == "transposed":
        return matrix.T.contiguous().T
    if how == "part of wider rows":
        place = torch.full((rows, columns + 5), torch.nan)
        place[:, 2:-3] = matrix
        return place[:, 2:-3]
    if how == "transposed part":
        return laid_out(matrix.T, "part of wider rows").T
    if how == "every other":
        place = torch.full((rows, 2 * columns), torch.nan)
        place[:, ::2] = matrix
        return place[:, ::2]
    return matrix


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("how", ["dense", "transposed", "part of wider rows", "transposed part", "every other"])
def test_every_form_of_a_product_is_torchs(shape: tuple[int, int, int], how: str, calls: list[tuple[int, ...]]) -> None:
    rows, _, columns = shape
    left, right = matrices(*shape)
    exact, bias = left.double() @ right.double(), torch.linspace(-1, 1, columns)
    left, right = laid_out(left, how), laid_out(right, how)
    assert close(left @ right, exact)
    assert close(torch.addmm(bias, left, right), exact + bias)
    place = torch.full((rows, columns), torch.nan)
    assert torch.mm(left, right, out=place) is place
    assert close(place, exact)
    assert close(torch.addmm(bias, left, right, out=place), exact + bias)
    place.fill_(torch.nan)
    assert close(place.addmm_(left, right, beta=0, alpha=0.5), 0.5 * exact), "what the place held counts for nothing"
    place.fill_(1.0)
    assert place.addmm_(left, right) is place
    assert close(place, exact + 1)
    assert close(place.fill_(1.0).addmm_(left, right, beta=3, alpha=-2), 3 - 2 * exact)
    wide = torch.zeros(rows, columns + 3)
    torch.mm(left, right, out=wide[:, 1:-2])
    assert close(wide[:, 1:-2].contiguous(), exact)
    assert not wide[:, 0].any()
    assert not wide[:, -2:].any()
    assert len(calls) >= 8


def test_linear_layers_and_their_gradients(calls: list[tuple[int, ...]]) -> None:
    for bias in (True, False):
        layer = torch.nn.Linear(128, 192, bias=bias)
        inputs = torch.randn(4, 32, 128, requires_grad=True)
        given = torch.randn(4, 32, 192)
        before = len(calls)
        layer(inputs).backward(given)
        assert sorted(calls[before:]) == [(128, 128, 192), (128, 192, 128), (192, 128, 128)]
        exact = layer.double()(inputs.double())
        assert close(layer.float()(inputs).flatten(0, 1), exact.flatten(0, 1))
        assert inputs.grad is not None
        assert layer.weight.grad is not None
        flat = given.double().flatten(0, 1)
        assert close(inputs.grad.flatten(0, 1), flat @ layer.weight.double())
        assert close(layer.weight.grad, flat.T @ inputs.double().flatten(0, 1))


def test_other_products_stay_torchs(calls: list[tuple[int, ...]]) -> None:
    left, right = matrices(128, 128, 128)
    small = torch.randn(8, 8)
    for dtype in (torch.float64, torch.bfloat16, torch.complex64):
        assert (left.to(dtype) @ right.to(dtype)).dtype == dtype
    assert torch.equal(small @ torch.eye(8), small)
    assert torch.allclose(torch.addmm(left, left, right), left + left @ right, atol=1e-3), "no bias of columns"
    calls.clear()
    assert torch.addmm(torch.ones(128), left, right, beta=2).shape == (128, 128)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        left @ torch.randn(127, 128)
    with pytest.raises(RuntimeError, match="expected m1 and m2 to have the same dtype"):
        left @ right.double()
    assert torch.mm(left, right, out=torch.empty(0)).shape == (128, 128), "torch resizes what has no numbers yet"
    assert torch.empty(0, 128).mm(right).shape == (0, 128)
    assert not calls


def test_a_repeated_product_has_every_bit_of_the_first(calls: list[tuple[int, ...]]) -> None:
    left, right = matrices(171, 300, 5000)
    first = left @ right
    torch.randn(37, 300) @ right
    assert torch.equal(left @ right, first)
    assert calls


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [(AMD, "AVX512", True), ("HygonGenuine", "AVX512", True), (INTEL, "AVX512", False), (AMD, "AVX2", False),
     (None, "AVX512", False), (AMD, "DEFAULT", False)],
)  # fmt: skip
def test_which_processors_mkl_is_slow_on(maker: str | None, capability: str, expected: bool) -> None:
    assert is_slow_for_mkl(maker, capability) is expected


def test_a_processor_names_its_maker(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t: 2\n\nprocessor\t: 1\nvendor_id\t: x\n")
    assert products._maker(cpuinfo) == AMD
    cpuinfo.write_text("processor : 0\nCPU implementer : 0x41\n")
    assert products._maker(cpuinfo) is None
    assert products._maker(tmp_path / "none") is None


@pytest.mark.parametrize(("maker", "capability", "expected"), [(AMD, "AVX512", True), (INTEL, "AVX512", False)])
def test_a_rank_chooses_once_and_keeps_few_shapes(maker: str, capability: str, expected: bool) -> None:
    program = f"""
import os, torch
from kd_launch.runtime import products
products._maker = lambda path: {maker!r}
torch.backends.cpu.get_cpu_capability = lambda: {capability!r}
products.choose_products()
products.choose_products()
assert len(products._registered) == {int(expected)}
assert ("LRU_CACHE_CAPACITY" in os.environ) is {expected}
assert torch.equal(torch.ones(128, 128) @ torch.ones(128, 128), torch.full((128, 128), 128.0))
"""
    unset = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=unset, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


GROWTH = """
import sys, torch
from kd_launch.runtime import products
torch.set_num_threads(1)
library = products.use_onednn()
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024
weight, hidden = torch.randn(1024, 64), torch.randn(700, 64)
for rows in range(20, 100):
    hidden[:rows] @ weight.T
before = anonymous()
for rows in range(100, 700):
    hidden[:rows] @ weight.T
print(anonymous() - before)
"""


def test_memory_does_not_grow_with_the_number_of_shapes() -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150, "MiB; 600 shapes that are all kept are more than 300"

"""Products of float32 matrices on CPUs that MKL, with which torch multiplies them, does not make full use of.

On processors of other makers MKL computes with vectors of 256 bits. Where they have 512, oneDNN, which torch holds too
and asks for other types only, is about twice as fast (`python -m benchmarks.products`). A rank's products of two
matrices, those of linear layers, their gradients and the loss among them, are given to it there. Small products, those
of other types and of batches of matrices are torch's as before.

Which library multiplies follows from the processor and the shapes alone: a run that goes on repeats what it would have
computed.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_launch.runtime.allocator import HUGE_BYTES

# Multiplications from which on oneDNN's call, dearer by 10 us, pays.
LEAST = 2**20
# What is computed at a time of a product that goes to a given place: it comes from the heap and stays in a cache.
BLOCK_BYTES = HUGE_BYTES // 2
# Rows, or columns, of a block at least: with fewer, the other factor is read too often.
_THINNEST = 256

# oneDNN keeps what it generated for a shape, half a MiB and more, and looks at these at its first product. A loss has
# as many shapes as there are numbers of loss tokens: of the 1,024 that it would keep, a rank grew by 600 MiB. A model
# has some 30; what is not there any more is generated in a third of a millisecond.
_KEPT_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
_CPUINFO = Path("/proc/cpuinfo")
_registered: list[torch.library.Library] = []


def choose_products() -> None:
    """Of this process, until it ends: by oneDNN where that pays."""
    if not _registered and pays_here():
        _registered.append(use_onednn())


def pays_here() -> bool:
    """On this processor, with this torch."""
    return is_slow_for_mkl(_maker(_CPUINFO), torch.backends.cpu.get_cpu_capability()) and _has_both()


def is_slow_for_mkl(maker: str | None, capability: str) -> bool:
    """Of the processor's maker and the widest vectors that torch uses on it."""
    return capability == "AVX512" and maker not in (None, "GenuineIntel")


def _has_both() -> bool:
    has_call = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.library, "get_kernel")
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and has_call  # type: ignore[no-untyped-call]


def _maker(cpuinfo: Path) -> str | None:
    """As the kernel says it; None where it does not."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(found, None)


def use_onednn() -> torch.library.Library:
    """Registers oneDNN's products in place of torch's own; they are torch's again when the result is destroyed."""
    for name, number in _KEPT_SHAPES.items():
        os.environ.setdefault(name, number)
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():  # torch warns of what is the purpose here
        warnings.simplefilter("ignore", UserWarning)
        for name, make in _KERNELS.items():
            kernel = make(torch.library.get_kernel(f"aten::{name}", "CPU"))
            library.impl(name, kernel, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    return library


Kernel = Callable[..., Tensor]


def _mm(torchs: Any) -> Kernel:
    def mm(keys: Any, left: Tensor, right: Tensor) -> Tensor:
        if _pays(left, right):
            return multiply(left, right)
        return torchs.call_boxed(keys, left, right)  # type: ignore[no-any-return]

    return mm


def _mm_out(torchs: Any) -> Kernel:
    def mm_out(keys: Any, left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
        if not (_pays(left, right) and _is_place(out, left, right)):
            return torchs.call_boxed(keys, left, right, out=out)  # type: ignore[no-any-return]
        return _write(out, left, right)

    return mm_out


def _addmm(torchs: Any) -> Kernel:
    def addmm(keys: Any, bias: Tensor, left: Tensor, right: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        if _pays(left, right) and _is_bias(bias, right, beta, alpha):
            return multiply(left, right, bias)
        return torchs.call_boxed(keys, bias, left, right, beta=beta, alpha=alpha)  # type: ignore[no-any-return]

    return addmm


def _addmm_out(torchs: Any) -> Kernel:
    def addmm_out(
        keys: Any, bias: Tensor, left: Tensor, right: Tensor, *, beta: Any = 1, alpha: Any = 1, out: Tensor
    ) -> Tensor:  # fmt: skip
        if not (_pays(left, right) and _is_bias(bias, right, beta, alpha) and _is_place(out, left, right)):
            return torchs.call_boxed(keys, bias, left, right, beta=beta, alpha=alpha, out=out)  # type: ignore[no-any-return]
        return _write(out, left, right, bias)

    return addmm_out


def _addmm_in_place(torchs: Any) -> Kernel:
    def addmm_(keys: Any, place: Tensor, left: Tensor, right: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        if not (_pays(left, right) and _is_place(place, left, right)):
            return torchs.call_boxed(keys, place, left, right, beta=beta, alpha=alpha)  # type: ignore[no-any-return]
        for rows, columns in _blocks(*place.shape):
            block, product = place[rows, columns], multiply(left[rows], right[:, columns])
            if beta == 0:  # whatever it holds, not a number too, counts for nothing
                torch.mul(product, alpha, out=block)
            else:
                (block if beta == 1 else block.mul_(beta)).add_(product, alpha=alpha)
        return place

    return addmm_


_KERNELS: dict[str, Callable[[Any], Kernel]] = {
    "mm": _mm,
    "mm.out": _mm_out,
    "addmm": _addmm,
    "addmm.out": _addmm_out,
    "addmm_": _addmm_in_place,
}


def multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [m, k] right [k, n] (+ bias [n]) -> [m, n], float32, by oneDNN."""
    # Of other strides than a dense matrix's or its transpose's oneDNN computes a thousand times as long.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(left), _dense(right).T, bias, "none", [], "")
    return product


def _write(place: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, block by block, into its place."""
    for rows, columns in _blocks(*place.shape):
        place[rows, columns] = multiply(left[rows], right[:, columns], None if bias is None else bias[columns])
    return place


def _dense(matrix: Tensor) -> Tensor:
    """A matrix whose numbers, or those of its transpose, lie one after the other; itself where they do."""
    if matrix.is_contiguous() or matrix.T.is_contiguous():
        return matrix
    # Rows are copied fast, single numbers are not.
    return matrix.T.contiguous().T if matrix.stride(0) == 1 else matrix.contiguous()


def _pays(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype == torch.float32
        and left.dim() == right.dim() == 2
        and left.shape[1] == right.shape[0]
        and math.prod(left.shape) * right.shape[1] >= LEAST
    )


def _is_bias(bias: Tensor, right: Tensor, beta: Any, alpha: Any) -> bool:
    """Of a linear layer: one number for each column."""
    return bias.dtype == torch.float32 and bias.shape == right.shape[1:] and beta == alpha == 1


def _is_place(place: Tensor, left: Tensor, right: Tensor) -> bool:
    return place.dtype == torch.float32 and place.shape == (left.shape[0], right.shape[1])


def _blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """The parts of a product, cut along its longer side."""
    all_rows, all_columns = slice(None), slice(None)
    most = max(_THINNEST, BLOCK_BYTES // (4 * min(rows, columns)))
    for start in range(0, max(rows, columns), most):
        part = slice(start, start + most)
        yield (part, all_columns) if rows > columns else (all_rows, part)

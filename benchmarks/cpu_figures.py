"""What one core and gloo do here: the figures of the catalog's CPU entry (kd_launch/catalog/gpus.yaml).

    python -m benchmarks.cpu_figures [--processes 2]

Processes with one thread each measure at the same time: matrix products of the sizes of small models, sums of long
arrays, AdamW, and the collectives and messages between them. Medians; each process prints what rank 0 saw.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRODUCTS = ((128, 512, 1536), (128, 1408, 512), (512, 512, 2816), (128, 256, 768), (128, 512, 49152), (128, 49152, 256))
SUM_NUMBERS = 16_000_000
TENSOR_BYTES = (3_200_000, 50_000_000)
MESSAGE_BYTES = 25_000_000


def median_seconds(work: Callable[[], object], repetitions: int) -> float:
    """Of a work that all processes begin together."""
    work()
    times = []
    for _ in range(repetitions):
        dist.barrier()
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def one_core() -> dict[str, str]:
    found = {}
    for rows, inner, columns in PRODUCTS:
        left, right = torch.randn(rows, inner), torch.randn(columns, inner)
        seconds = median_seconds(lambda a=left, b=right: a @ b.T, 20)  # type: ignore[misc]
        found[f"product {rows} x {inner} x {columns}"] = f"{2e-9 * rows * inner * columns / seconds:.1f} GFLOP/s"
    one, two, out = torch.randn(SUM_NUMBERS), torch.randn(SUM_NUMBERS), torch.empty(SUM_NUMBERS)
    seconds = median_seconds(lambda: torch.add(one, two, out=out), 20)
    found["sum of long arrays"] = f"{12e-9 * SUM_NUMBERS / seconds:.1f} GB/s"
    parameter = torch.nn.Parameter(one)
    parameter.grad = two
    seconds = median_seconds(torch.optim.AdamW([parameter], fused=True).step, 10)
    found["AdamW"] = f"{1e9 * seconds / SUM_NUMBERS:.2f} ns per parameter"
    return found


def together(rank: int, ranks: int) -> dict[str, str]:
    """Bus bandwidths as nccl-tests defines them."""
    found = {}
    for size in TENSOR_BYTES:
        part = torch.ones(size // 4 // ranks)
        whole = torch.ones(part.numel() * ranks)
        once = 4e-9 * whole.numel() * (ranks - 1) / ranks
        works: dict[str, tuple[float, Callable[[], object]]] = {
            "all-reduce": (2 * once, lambda w=whole: dist.all_reduce(w)),  # type: ignore[misc]
            "all-gather": (once, lambda w=whole, p=part: dist.all_gather_into_tensor(w, p)),  # type: ignore[misc]
            "reduce-scatter": (once, lambda w=whole, p=part: dist.reduce_scatter_tensor(p, w)),  # type: ignore[misc]
        }
        for name, (gigabytes, work) in works.items():
            found[f"{name} of {size / 1e6:.1f} MB"] = f"{gigabytes / median_seconds(work, 10):.2f} GB/s"
    buffer = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)

    def message() -> None:
        if rank == 0:
            dist.send(buffer, 1)
        elif rank == 1:
            dist.recv(buffer, 0)

    found["message"] = f"{1e-9 * MESSAGE_BYTES / median_seconds(message, 10):.2f} GB/s"
    return found


def work(rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29741"}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    found = {**one_core(), **(together(rank, ranks) if ranks > 1 else {})}
    if rank == 0:
        print("\n".join(f"{name:32} {value}" for name, value in found.items()))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    mp.spawn(work, args=(asked.processes,), nprocs=asked.processes)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()

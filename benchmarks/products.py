"""Products of float32 matrices by torch's own library and by oneDNN, on one core: why kd_launch.runtime.products is.

    python -m benchmarks.products

The products of benchmarks.against_trl: a layer's and the head's, forward and both gradients, those of the head written
to a given place as the loss does it. Both take turns in each round; medians of the rounds. The last lines are the
ratios, and whether ranks on this processor use oneDNN. Raw figures go to benchmarks/results/products.json.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measuring import keep
from kd_launch.runtime import products

ROUNDS = 15
ROWS, HEAD_ROWS, WIDTH, WIDER, VOCABULARY = 512, 128, 256, 768, 49_152
Work = Callable[[], Tensor]


def works() -> dict[str, tuple[int, Work]]:
    """Name -> multiplications and what does them."""
    rows, wider, layer = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDER), torch.randn(WIDER, WIDTH)
    hidden, head = torch.randn(HEAD_ROWS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    logits, of_hidden, of_head = torch.randn(HEAD_ROWS, VOCABULARY), torch.empty_like(hidden), torch.zeros_like(head)
    place = torch.empty_like(logits)
    in_layer, in_head = ROWS * WIDTH * WIDER, HEAD_ROWS * WIDTH * VOCABULARY
    return {
        "layer": (in_layer, lambda: rows @ layer.T),
        "layer, gradient of inputs": (in_layer, lambda: wider @ layer),
        "layer, gradient of weights": (in_layer, lambda: wider.T @ rows),
        "head": (in_head, lambda: torch.mm(hidden, head.T, out=place)),
        "head, gradient of hidden states": (in_head, lambda: torch.mm(logits, head, out=of_hidden)),
        "head, gradient of weights": (in_head, lambda: of_head.addmm_(logits.T, hidden)),
    }


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def one_round(work: Work) -> tuple[float, float]:
    """Seconds by torch's library and by oneDNN, each after a first time that is not counted."""
    work()
    by_torch = seconds(work)
    library = products.use_onednn()
    work()
    by_onednn = seconds(work)
    library._destroy()
    return by_torch, by_onednn


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    print(f"{'GFLOP/s':36}{'torch':>8}{'oneDNN':>8}{'ratio':>8}")
    for name, (multiplications, work) in works().items():
        rounds = [one_round(work) for _ in range(ROUNDS)]
        by_torch, by_onednn = (statistics.median(side) for side in zip(*rounds, strict=True))
        found[name] = {"torch": by_torch, "onednn": by_onednn}
        speeds = (2e-9 * multiplications / took for took in (by_torch, by_onednn))
        print(f"{name:36}" + "".join(f"{speed:8.0f}" for speed in speeds) + f"{by_torch / by_onednn:8.2f}")
    ratios = [one["torch"] / one["onednn"] for one in found.values()]
    keep("products", {"seconds": found}, [])
    print(f"oneDNN is {min(ratios):.2f} to {max(ratios):.2f} times as fast")
    print(f"ranks on this processor use {'oneDNN' if products.pays_here() else 'what torch uses'}")


if __name__ == "__main__":
    main()

"""The loss alone, from hidden states to the gradients of hidden states and head: time and memory of each way.

    python -m benchmarks.loss [--tokens 512] [--vocabulary 49152] [--beta 0.5] [--compile]

chunked     kd-launch's
eager       TRL's generalized_jsd_loss on whole logits, with autograd
liger       Liger's chunked JSD (liger_kernel.chunked_loss), where it is installed

Each in a process of its own, on as many threads as OMP_NUM_THREADS says. Memory is what the loss adds to its inputs:
sampled anonymous memory of a CPU process, the allocator's peak on a GPU. Raw figures go to results/loss.json.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import RESULTS, anonymous_bytes

STUDENT_WIDTH, TEACHER_WIDTH, ROUNDS = 256, 512, 4
Run = Callable[[], Tensor]


def inputs(asked: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student's hidden states and head, with gradients; the teacher's; labels."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((asked.tokens, STUDENT_WIDTH), (asked.vocabulary, STUDENT_WIDTH), (asked.tokens, TEACHER_WIDTH),
              (asked.vocabulary, TEACHER_WIDTH))  # fmt: skip
    hidden, head, teacher_hidden, teacher_head = (
        torch.randn(shape, generator=generator).mul_(shape[1] ** -0.25).to(device) for shape in shapes
    )
    labels = torch.randint(asked.vocabulary, (asked.tokens,), generator=generator).to(device)
    return hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head, labels


def chunked(asked: argparse.Namespace, device: torch.device) -> tuple[Run, list[Tensor]]:
    from kd_launch.runtime.compiling import choose_compare
    from kd_launch.runtime.losses import ChunkedLoss, Head, LossInputs, Objective
    from kd_launch.runtime.payload import HiddenStates
    from kd_launch.runtime.products import choose_products

    choose_products()  # as every rank does
    hidden, head, teacher_hidden, teacher_head, labels = inputs(asked, device)
    signal = HiddenStates(teacher_hidden, Head(teacher_head), asked.vocabulary)
    compare = choose_compare(asked.compile or "auto", device)
    given = LossInputs(
        signal, labels, Objective(asked.beta, 1.0, 0.0), 1 / asked.tokens, Head, compare=compare
    )  # fmt: skip
    return lambda: ChunkedLoss.apply(hidden, head, None, given)[0], [hidden, head]  # type: ignore[no-any-return,no-untyped-call]


def eager(asked: argparse.Namespace, device: torch.device) -> tuple[Run, list[Tensor]]:
    from trl.experimental.gkd import GKDTrainer

    hidden, head, teacher_hidden, teacher_head, labels = inputs(asked, device)

    def run() -> Tensor:
        with torch.no_grad():
            teacher = (teacher_hidden @ teacher_head.T).unsqueeze(0)
        student = (hidden @ head.T).unsqueeze(0)
        return GKDTrainer.generalized_jsd_loss(student, teacher, labels.unsqueeze(0), asked.beta, 1.0)

    return run, [hidden, head]


def liger(asked: argparse.Namespace, device: torch.device) -> tuple[Run, list[Tensor]]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hidden, head, teacher_hidden, teacher_head, labels = inputs(asked, device)
    loss = LigerFusedLinearJSDLoss(0.0, 1.0, asked.beta, compiled=asked.compile, chunk_size=1024)
    return lambda: loss(hidden, head, teacher_hidden, teacher_head, labels), [hidden, head]


class PeakMemory:
    """The most memory between enter and exit, above that at the start."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.bytes = device, 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return anonymous_bytes(os.getpid())

    def _sample(self) -> None:
        while not self._is_over.wait(0.002):
            self._most = max(self._most, self._now())

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._start = self._most = self._now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.bytes = max(self._most, self._now()) - self._start


def one_side(asked: argparse.Namespace) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run, leaves = {"chunked": chunked, "eager": eager, "liger": liger}[asked.side](asked, device)
    seconds, cpu = [], []
    with PeakMemory(device) as peak:
        for _ in range(ROUNDS + 1):
            for leaf in leaves:
                leaf.grad = None
            started = time.perf_counter(), time.process_time()
            loss = run()
            loss.backward()  # type: ignore[no-untyped-call]
            value = loss.item()  # waits for a GPU
            seconds.append(time.perf_counter() - started[0])
            cpu.append(time.process_time() - started[1])
    norm = torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]).norm().item()
    return {"seconds": min(seconds[1:]), "cpu_seconds": min(cpu[1:]), "peak_mib": peak.bytes / 2**20,
            "bytes_per_token_and_entry": peak.bytes / asked.tokens / asked.vocabulary, "loss": value,
            "gradient": norm}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--compile", action="store_true", help="on a CPU, too")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(one_side(asked)))
        return
    found: dict[str, Any] = {}
    for side in ("chunked", "eager", "liger"):
        command = [sys.executable, "-m", "benchmarks.loss", *sys.argv[1:], "--side", side]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{side}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
            continue
        found[side] = json.loads(done.stdout.splitlines()[-1])
        print(side, json.dumps(found[side]))
    for side in ("eager", "liger"):
        if side in found:
            ratios = {
                name: found["chunked"][name] / found[side][name] for name in ("seconds", "cpu_seconds", "peak_mib")
            }
            print(f"chunked / {side}: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    RESULTS.mkdir(exist_ok=True)
    given = {name: value for name, value in vars(asked).items() if name != "side"}
    (RESULTS / "loss.json").write_text(json.dumps({**given, "sides": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Where a GPU differs from a CPU: what is asked of it happens later, so that copies and waits need more than a call."""

import os
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def choose_queues() -> None:
    """Before the first use of a GPU: as many hardware queues as it has, not 8, where the environment names no number.

    A student has more streams than 8, one for each pair of ranks among them. Receives that are posted ahead wait in
    theirs; what shares their queue would wait with them.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device. From pinned memory a GPU takes it when it comes to that, and the host goes on."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def wait_for(messages: Sequence[dist.Work], device: torch.device) -> float:
    """Waits until messages have been received, or sent, and returns the seconds.

    With NCCL a wait only orders what the GPU does: the host would go on, and measure nothing. What the GPU was given to
    do before is no wait for the message, so it comes first.
    """
    is_gpu = device.type == "cuda"
    # Gloo's messages are never complete before they are waited for.
    must_wait = not (is_gpu and all(message.is_completed() for message in messages))
    if is_gpu and must_wait:
        torch.cuda.current_stream(device).synchronize()
    started = time.perf_counter()
    for message in messages:
        message.wait()
    if is_gpu and must_wait:
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter() - started

"""The batch of a request: the micro-batch that was asked for, else the fastest that fits."""

from collections.abc import Callable

from kd_launch.estimate.request import Request

MOST = 64
"""Sequences of a micro-batch beyond which nothing gets faster."""

OfBatch = Callable[[int, int], float]
"""(sequences of a micro-batch, micro-batches of a step) -> a figure."""


def batches(request: Request, memory: OfBatch, seconds: OfBatch, limit: float) -> tuple[int, int]:
    """Sequences of a micro-batch, and micro-batches of a step.

    Without a global batch a step is one micro-batch, the largest within the limit.
    """
    batch, micro = request.global_batch_size, request.micro_batch_size
    if batch is None:
        sizes = [micro] if micro else [size for size in range(MOST, 0, -1) if memory(size, 1) <= limit]
        return (sizes or [1])[0], 1
    each = batch // request.data_parallel
    if micro is not None:
        return micro, each // micro
    choices = [(size, each // size) for size in range(1, min(each, MOST) + 1) if each % size == 0]
    fitting = [choice for choice in choices if memory(*choice) <= limit]
    return min(fitting, key=lambda choice: seconds(*choice), default=choices[0])

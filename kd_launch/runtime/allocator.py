"""What the C library does with the memory that a CPU rank frees: it keeps it, or gives it back at once.

The same large tensors come and go in every step. glibc gives the largest of them pages of their own and returns these
when they are freed, so that the kernel clears every page again in every step: measured on two ranks, a fifth of a step.
But where layers are gathered and freed between small things that stay, memory that is kept falls into holes that none
of the next layers fits: measured, seven times what the plan says. There memory counts more than time.
"""

import ctypes
import sys
from contextlib import suppress

import torch

from kd_launch.plan import Layout

# Of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 16 * 2**20
_OWN_PAGES_FROM = 64 * 2**10
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _TOP_PAD_BYTES}
# Whoever sets the threshold keeps glibc from raising it, to 32 MiB in the end.
_RETURN = {_MMAP_THRESHOLD: _OWN_PAGES_FROM}


def gathers_weights(layout: Layout) -> bool:
    """Whether any rank holds shards of layers that it makes whole for a moment, or is cut to hold little."""
    teacher = layout.teacher
    return layout.student.fsdp > 1 or teacher.fsdp * teacher.tp * teacher.pp > 1


def choose_allocation(device: torch.device, layout: Layout) -> None:
    """From now on, until this process ends. Nothing for a GPU, whose tensors torch keeps itself, or where the C library
    is not glibc."""
    if device.type == "cpu":
        _set(_RETURN if gathers_weights(layout) else _KEEP)


def _set(parameters: dict[int, int]) -> None:
    """Gives back what is free, first."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)

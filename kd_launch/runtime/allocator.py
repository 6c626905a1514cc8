"""What the C library does with the memory that a CPU rank frees, where the teacher is cut over ranks: gives it back.

Where layers are gathered and freed between small things that stay, memory that is kept falls into holes that none of
the next layers fits: measured, seven times what the plan says. There memory counts more than time. Everywhere else
glibc's own ways stay: to keep all memory slowed the steps of the fastest layouts.
"""

import ctypes
import sys
from contextlib import suppress

import torch

from kd_launch.plan import Layout

# Of malloc.h.
_MMAP_THRESHOLD = -3
_OWN_PAGES_FROM = 64 * 2**10


def gathers_weights(layout: Layout) -> bool:
    """Whether teacher ranks hold shards of layers that they make whole for a moment, or are cut to hold little."""
    teacher = layout.teacher
    return teacher.fsdp * teacher.tp * teacher.pp > 1


def choose_allocation(device: torch.device, layout: Layout) -> None:
    """From now on, until this process ends. Nothing for a GPU, whose tensors torch keeps itself, or where the C library
    is not glibc."""
    if device.type == "cpu" and gathers_weights(layout):
        _return_freed_memory()


def _return_freed_memory() -> None:
    """What is free now, and later what is freed; glibc raises the threshold, to 32 MiB in the end, unless it is set."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(_MMAP_THRESHOLD, _OWN_PAGES_FROM)

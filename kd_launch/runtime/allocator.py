"""How a rank's memory on the host is had and given back, where the C library is glibc.

A fault costs about as much for a huge page as for a small one, which holds 512 times less, and a step of training
touches gigabytes anew: measured on CPU ranks, it takes 1.2 times as long on small pages. Torch asks for huge ones where
a variable says so.

Tensors that are large enough for that get mappings of their own, and leave no holes in the heap when they are freed.
Smaller ones come from the heap, which keeps what is freed: to have it again costs no faults, without which a step takes
half the time. Not so where a rank gathers a teacher's layers: between small things that stay, what they leave are holes
that none of the next layers fits: measured, seven times what the plan says. There memory counts more than time.
"""

import ctypes
import os
import sys
from contextlib import suppress

from kd_launch.plan import Layout, Role

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

# Of torch: tensors of 2 MiB and more lie on pages that Linux may make huge. It is read at the first tensor.
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
HUGE_BYTES = 2 * 2**20
_WHERE_LAYERS_ARE_GATHERED = 64 * 2**10
# Free memory at the heap's end that stays: the small tensors of a step.
_KEPT = 64 * 2**20


def choose_allocation(layout: Layout, role: Role) -> None:
    """Of a rank, until its process ends, which must not have made a tensor yet; where torch's variable is set, that
    holds."""
    os.environ.setdefault(_HUGE_PAGES, "1")
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if layout.teacher.fsdp > 1 and role is not Role.STUDENT:
            libc.mallopt(_MMAP_THRESHOLD, _WHERE_LAYERS_ARE_GATHERED)
        else:
            libc.mallopt(_MMAP_THRESHOLD, HUGE_BYTES)
            libc.mallopt(_TRIM_THRESHOLD, _KEPT)

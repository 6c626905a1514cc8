"""Whether the loss's elementwise part is compiled, and what happens where it cannot be.

Measured: on a GPU eager operations read and write every logit about thirty times, a compiled kernel twice. On a CPU the
blocks of rows stay in its caches, and compiled code gains 5 % after half a minute of compiling: `auto` does not.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kd_launch.runtime.departure import say
from kd_launch.runtime.divergence import Compare, Rule, compare


def choose_compare(asked: bool | Literal["auto"], device: torch.device) -> Compare:
    """`divergence.compare`, compiled where that was asked for or pays."""
    if asked is True or (asked == "auto" and device.type == "cuda"):
        return Compiled(torch.compile(compare, dynamic=True), say)
    return compare


class Compiled:
    """A compiled `compare` that goes on eagerly, and says so once, when it cannot be compiled."""

    def __init__(self, compiled: Compare, say: Callable[[str], None]) -> None:
        self._function, self._say = compiled, say
        self._is_proven = False

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor, rule: Rule) -> Tensor:
        try:
            values = self._function(student, teacher, labels, rule)
        except Exception as error:
            if self._is_proven:  # the compiler works; this is something else
                raise
            first = str(error).strip().split("\n", maxsplit=1)[0]
            self._say(f"the loss is not compiled, which costs time only: {type(error).__name__}: {first}")
            self._function = compare
            values = compare(student, teacher, labels, rule)
        self._is_proven = True
        return values

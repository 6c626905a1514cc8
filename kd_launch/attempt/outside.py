"""The world outside of an attempt: Slurm's programs and the clock, as arguments."""

from collections.abc import Callable
from dataclasses import dataclass

from kd_launch.commands import Runner


@dataclass(frozen=True)
class Outside:
    """What is asked."""

    run: Runner
    now: Callable[[], float]
    """Unix time."""
    clock: Callable[[], float]
    """Seconds that only go forward."""
    sleep: Callable[[float], None]

"""Between two steps: the one place where weights change, and where another thread may keep them from changing.

Weights and optimizer states change only in the optimizer step. A thread that has closed the gate holds the state of the
last completed step in its hands, whatever the main thread is in or waits for.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class GateError(Exception):
    """The main thread did not come to where it was awaited."""


class Gate:
    """Of one student rank."""

    def __init__(self, completed: int) -> None:
        self._condition = threading.Condition()
        self._completed = completed
        self._last: int | None = None
        """The step after which none may be completed; None: open."""

    @contextmanager
    def completing(self, step: int) -> Iterator[None]:
        """Around all that belongs to the end of a step: weights, its line in the metrics, the start of a save.

        Waits, for ever if need be, where the gate is closed before `step`.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._last is None or step <= self._last)
            yield
            self._completed = step
            self._condition.notify_all()

    def close(self, seconds: float) -> int:
        """How many steps are completed, none after it. Raises GateError where the end of a step takes longer."""
        if not self._condition.acquire(timeout=seconds):
            raise GateError(f"the end of a step takes longer than {seconds:.0f} s")
        try:
            self._last = self._completed
            return self._completed
        finally:
            self._condition.release()

    def let_through(self, step: int, seconds: float) -> None:
        """Lets the main thread complete steps up to this one, and waits for it. Raises GateError if it does not."""
        deadline = time.monotonic() + seconds
        if not self._condition.acquire(timeout=seconds):
            raise GateError(f"step {step} is not completed within {seconds:.0f} s")
        try:
            self._last = step
            self._condition.notify_all()
            left = deadline - time.monotonic()
            if not self._condition.wait_for(lambda: self._completed >= step, max(0.0, left)):
                raise GateError(f"step {step} is not completed within {seconds:.0f} s")
        finally:
            self._condition.release()

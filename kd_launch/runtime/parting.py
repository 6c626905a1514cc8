"""What the ranks of a run do together before they leave: all hear of it at once, the students save, the others wait.

Everything here happens in threads beside the main one, which may wait for a rank that will never come. Each thread has
a client of its own to the store: one that waits holds its client. The students need none: rank 0, which serves it, may
be the one that stands still.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from kd_launch.runtime.checkpoint.saver import SaveError, Saver
from kd_launch.runtime.checkpoint.state import SavedState
from kd_launch.runtime.departure import say
from kd_launch.runtime.gate import Gate, GateError
from kd_launch.runtime.meeting import Address, MeetingError

AGREE_SECONDS = 10.0
"""For every student to say how far it is: threads answer at once, whatever their main threads wait for; in the worst
case one hears of it with its next sign of life."""
TELL_SECONDS = 3.0
NEVER = timedelta(days=30)


class Parting:
    """One rank's part."""

    def __init__(self, address: Address, group: dist.ProcessGroup | None) -> None:
        """
        Args:
            group: all students, for nothing else; None on a rank that is a teacher only.
        """
        self._address, self._group = address, group
        self._save: Callable[[float], str] | None = None
        self._has_heard = threading.Event()

    def keep(self, gate: Gate, saver: Saver, describe: Callable[[int], SavedState]) -> None:
        """From now on this student rank has something to save."""

        def save(seconds: float) -> str:
            deadline = time.monotonic() + seconds
            completed = self._agree(gate, seconds)
            saver.save_now(lambda: describe(completed), max(0.0, deadline - time.monotonic()))
            return f"the state of step {completed} is saved"

        self._save = save

    def wait_for_stop(self) -> str | None:
        """The signal that some rank was told to leave by; None at the end of a run, or where the store has gone."""
        try:
            store = self._address.connect()
            store.wait(["stop"], NEVER)
            return store.get("stop").decode() or None
        except (RuntimeError, MeetingError):
            return None
        finally:
            self._has_heard.set()

    def nobody_stops_any_more(self, store: Store) -> None:
        """Every rank has left: ends this one's waiting, which else would see the store go, and say so in the log."""
        store.set("stop", "")
        self._has_heard.wait(AGREE_SECONDS)

    def nothing_is_left_to_save(self) -> None:
        """Said by the first student after the last step: no teacher need wait for it."""
        self._say({"parting": "1", "parted": "1"})

    def part(self, word: str, seconds: float) -> None:
        """Tells every rank that this one was told to leave. Then saves the last completed step, or waits for those who
        do: within so many seconds, or not at all."""
        is_first = self._group is not None and self._group.rank() == 0
        self._tell({"stop": word, **({"parting": "1"} if is_first else {})})
        if self._group is None:
            self._wait_for_students(seconds)
            return
        self._save_last(seconds)
        if is_first:
            self._tell({"parted": "1"}).join(TELL_SECONDS)

    def _tell(self, values: Mapping[str, str]) -> threading.Thread:
        """In a thread: a store whose process stands still lets nobody go."""
        thread = threading.Thread(target=self._say, args=(values,), name="telling", daemon=True)
        thread.start()
        return thread

    def _say(self, values: Mapping[str, str]) -> None:
        with suppress(RuntimeError, MeetingError):  # nobody is there to hear it
            store = self._client(AGREE_SECONDS)
            for key, value in values.items():
                store.set(key, value)

    def _client(self, seconds: float) -> Store:
        store = self._address.connect()
        store.set_timeout(timedelta(seconds=seconds))
        return store

    def _save_last(self, seconds: float) -> None:
        if self._save is None:
            return
        try:
            say(f"leaves: {self._save(seconds)}")
        except (RuntimeError, GateError, SaveError) as error:
            # torch's errors have a stack of C++ behind their first line.
            words = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"leaves without a checkpoint of the last step: {words}")

    def _wait_for_students(self, seconds: float) -> None:
        """A teacher goes when they have saved: the end of its connections would look like a failure before."""
        with suppress(
            RuntimeError, MeetingError
        ):  # they do not answer, or rank 0, which serves the store and goes last, is gone
            store = self._client(seconds)
            store.wait(["parting"], timedelta(seconds=min(seconds, AGREE_SECONDS)))
            store.wait(["parted"], timedelta(seconds=seconds))

    def _agree(self, gate: Gate, seconds: float) -> int:
        """The last step that any student has completed; when this returns, this one has too.

        They differ by one at most: all of them take part in the sum that ends a step.
        """
        patience = min(AGREE_SECONDS, seconds)
        completed = torch.tensor([gate.close(patience)])
        work = dist.all_reduce(completed, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        work.wait(timedelta(seconds=patience))
        last = int(completed.item())
        gate.let_through(last, patience)
        return last

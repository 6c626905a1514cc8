"""Payloads from teacher ranks to student ranks: preposted receives, a bounded teacher, every message checked.

Both sides number micro-batches alike (see `data`) and work through theirs in increasing number, so no message asks for
another. A teacher holds `depth` buffers and waits for the oldest send when all are in flight; a student keeps `depth`
receives posted. That cannot deadlock: of all micro-batches not yet delivered, the one with the least number has a
teacher whose earlier sends are done and a student whose earlier receives are consumed.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kd_launch.errors import RunFailedError
from kd_launch.runtime.payload import STAMP_BYTES, PayloadForm, Stamp


class TransportError(RunFailedError):
    """A message that is not the one expected: the two sides do not agree on what they work on."""


@dataclass(frozen=True)
class Parcel:
    """One message as both sides know it beforehand."""

    number: int
    """Of the micro-batch."""
    peer: int
    """Global rank of the other side."""
    stamp: Stamp


class Sender:
    """The teacher's side."""

    def __init__(
        self, form: PayloadForm, group: dist.ProcessGroup, depth: int, device: torch.device, most: int
    ) -> None:
        """Makes `depth` buffers for messages of at most `most` loss tokens."""
        self._form, self._group = form, group
        self._free = deque(_buffer(form, most, device) for _ in range(depth))
        self._in_flight: deque[tuple[dist.Work, Tensor]] = deque()
        self._waited = 0.0

    def send(self, parcel: Parcel, parts: list[Tensor]) -> None:
        """Copies a payload into a free buffer and starts sending it; waits while none is free."""
        if not self._free:
            self._reclaim()
        buffer = self._free.popleft()
        tokens = parcel.stamp.tokens
        message = buffer[: self._form.message_bytes(tokens)]
        stamp = Stamp(**{**vars(parcel.stamp), "waited_seconds": self._waited})
        message[:STAMP_BYTES].copy_(stamp.pack())
        for view, part in zip(self._form.views(message, tokens), parts, strict=True):
            view.copy_(part)
        self._waited = 0.0
        work = dist.isend(message, parcel.peer, group=self._group)
        assert work is not None
        self._in_flight.append((work, buffer))

    def drain(self) -> None:
        """Waits until every message has arrived. Leaving before that would break the student's connection."""
        while self._in_flight:
            self._reclaim()

    def _reclaim(self) -> None:
        started = time.perf_counter()
        work, buffer = self._in_flight.popleft()
        work.wait()
        self._waited += time.perf_counter() - started
        self._free.append(buffer)


class Receiver:
    """The student's side. `take` the next message, use it, then `release` it: that posts the receive after next."""

    def __init__(
        self,
        form: PayloadForm,
        group: dist.ProcessGroup,
        depth: int,
        device: torch.device,
        most: int,
        parcels: Iterator[Parcel],
    ) -> None:
        """Makes `depth` buffers; `parcels` yields what this rank will receive, in order."""
        self._form, self._group, self._parcels = form, group, parcels
        self._free = deque(_buffer(form, most, device) for _ in range(depth))
        self._posted: deque[tuple[Parcel, dist.Work, Tensor]] = deque()
        self._held: Tensor | None = None
        self._post()

    def take(self) -> tuple[list[Tensor], Stamp, float]:
        """The next payload's tensors (views, valid until `release`), its stamp, and the seconds waited for it.

        Raises:
            TransportError: the message is not the one that this rank expects next.
        """
        parcel, work, buffer = self._posted.popleft()
        started = time.perf_counter()
        work.wait()
        waited = time.perf_counter() - started
        stamp = Stamp.unpack(buffer[:STAMP_BYTES])
        check_stamp(parcel, stamp)
        assert stamp is not None
        self._held = buffer
        return self._form.views(buffer, parcel.stamp.tokens), stamp, waited

    def release(self) -> None:
        """Gives the buffer of the last `take` back."""
        assert self._held is not None
        self._free.append(self._held)
        self._held = None
        self._post()

    def _post(self) -> None:
        while self._free and (parcel := next(self._parcels, None)) is not None:
            buffer = self._free.popleft()
            message = buffer[: self._form.message_bytes(parcel.stamp.tokens)]
            work = dist.irecv(message, parcel.peer, group=self._group)
            assert work is not None
            self._posted.append((parcel, work, buffer))


def check_stamp(parcel: Parcel, found: Stamp | None) -> None:
    """Compares a message with what was expected.

    Raises:
        TransportError: names the teacher's rank, the micro-batch and the first thing that differs.
    """
    where = f"micro-batch {parcel.number} from teacher rank {parcel.peer}"
    if found is None:
        raise TransportError(f"{where}: the message is no payload; do all ranks run the same version of kd-launch?")
    for name in ("attempt", "micro_batch", "tokens", "checksum", "kind"):
        expected, got = getattr(parcel.stamp, name), getattr(found, name)
        if expected != got:
            raise TransportError(
                f"{where}: refused, its {name.replace('_', '-')} is {got} but must be {expected}; "
                "teacher and student do not work on the same data"
            )


def _buffer(form: PayloadForm, most: int, device: torch.device) -> Tensor:
    # Whole 64-byte lines keep the views of every part aligned.
    return torch.empty(-(-form.message_bytes(most) // 64) * 64, dtype=torch.uint8, device=device)

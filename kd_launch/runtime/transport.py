"""Payloads from teacher ranks to student ranks: preposted receives, a bounded teacher, every message checked.

Both sides number micro-batches alike (see `data`) and work through theirs in increasing number, so no message asks for
another. A teacher holds `depth` buffers and waits for the oldest send when all are in flight; a student keeps `depth`
receives posted. That cannot deadlock: of all micro-batches not yet delivered, the one with the least number has a
teacher whose earlier sends are done and a student whose earlier receives are consumed.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kd_launch.errors import RunFailedError
from kd_launch.runtime.devices import to_device, wait_for
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
        self, form: PayloadForm, group: dist.ProcessGroup, depth: int, device: torch.device, most: int, stripe: int = 0
    ) -> None:
        """Makes `depth` buffers for stripes of payloads of at most `most` loss tokens."""
        self._form, self._group, self._device = form, group, device
        self._free = deque(_buffer(form, most, device, stripe) for _ in range(depth))
        self._in_flight: deque[tuple[dist.Work, Tensor]] = deque()
        self._waited = 0.0

    def send(self, parcel: Parcel, parts: list[Tensor]) -> None:
        """Copies a payload into a free buffer and starts sending it; waits while none is free."""
        if not self._free:
            self._reclaim()
        buffer = self._free.popleft()
        tokens = parcel.stamp.tokens
        stripe = parcel.stamp.stripe
        message = buffer[: self._form.message_bytes(tokens, stripe)]
        stamp = Stamp(**{**vars(parcel.stamp), "waited_seconds": self._waited})
        message[:STAMP_BYTES].copy_(to_device(stamp.pack(), self._device))
        for view, part in zip(self._form.views(message, tokens, stripe), parts, strict=True):
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
        work, buffer = self._in_flight.popleft()
        self._waited += wait_for([work], self._device)
        self._free.append(buffer)


@dataclass(frozen=True)
class _Slot:
    """One stripe of a payload: where it comes, and the receive that is posted."""

    parcel: Parcel
    work: dist.Work
    message: Tensor


class Receiver:
    """The student's side. `take` the next payload, use it, then `release` it: that posts the receive after next."""

    def __init__(
        self,
        form: PayloadForm,
        group: dist.ProcessGroup,
        depth: int,
        device: torch.device,
        most: int,
        parcels: Iterator[tuple[Parcel, ...]],
    ) -> None:
        """Makes `depth` buffers; `parcels` yields what this rank will receive, in order, by payloads of stripes."""
        self._form, self._group, self._device, self._parcels = form, group, device, parcels
        self._free = deque(
            [_buffer(form, most, device, stripe) for stripe in range(form.stripes)] for _ in range(depth)
        )
        self._posted: deque[tuple[list[_Slot], list[Tensor]]] = deque()
        self._held: list[Tensor] | None = None
        self._post()

    def take(self) -> tuple[list[list[Tensor]], float, float]:
        """The next payload.

        Returns:
            The tensors of each stripe (views, valid until `release`), the seconds that this side waited for it, and
            those that the other side waited for a free buffer since its last one.

        Raises:
            TransportError: a message is not the one that this rank expects next.
        """
        slots, buffers = self._posted.popleft()
        waited = wait_for([slot.work for slot in slots], self._device)
        stamps = [check_stamp(slot.parcel, Stamp.unpack(slot.message[:STAMP_BYTES])) for slot in slots]
        self._held = buffers
        views = [self._form.views(slot.message, slot.parcel.stamp.tokens, slot.parcel.stamp.stripe) for slot in slots]
        return views, waited, max(stamp.waited_seconds for stamp in stamps)

    def release(self) -> None:
        """Gives the buffers of the last `take` back."""
        assert self._held is not None
        self._free.append(self._held)
        self._held = None
        self._post()

    def _post(self) -> None:
        while self._free and (parcels := next(self._parcels, None)) is not None:
            buffers = self._free.popleft()
            self._posted.append(([self._slot(*pair) for pair in zip(parcels, buffers, strict=True)], buffers))

    def _slot(self, parcel: Parcel, buffer: Tensor) -> _Slot:
        message = buffer[: self._form.message_bytes(parcel.stamp.tokens, parcel.stamp.stripe)]
        work = dist.irecv(message, parcel.peer, group=self._group)
        assert work is not None
        return _Slot(parcel, work, message)


def check_stamp(parcel: Parcel, found: Stamp | None) -> Stamp:
    """Compares a message with what was expected, and returns its stamp.

    Raises:
        TransportError: names the teacher's rank, the micro-batch and the first thing that differs.
    """
    where = f"micro-batch {parcel.number} from teacher rank {parcel.peer}"
    if found is None:
        raise TransportError(f"{where}: the message is no payload; do all ranks run the same version of kd-launch?")
    for name in ("attempt", "micro_batch", "tokens", "checksum", "kind", "stripe"):
        expected, got = getattr(parcel.stamp, name), getattr(found, name)
        if expected != got:
            raise TransportError(
                f"{where}: refused, its {name.replace('_', '-')} is {got} but must be {expected}; "
                "teacher and student do not work on the same data"
            )
    return found


def _buffer(form: PayloadForm, most: int, device: torch.device, stripe: int) -> Tensor:
    # Whole 64-byte lines keep the views of every part aligned.
    return torch.empty(-(-form.message_bytes(most, stripe) // 64) * 64, dtype=torch.uint8, device=device)

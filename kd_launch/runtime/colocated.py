"""Where the student's payloads come from: computed here when colocated, else received. There is one student loop."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from kd_launch.plan import RunPlan
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.data import Item
from kd_launch.runtime.links import rank_of, senders
from kd_launch.runtime.losses import Head
from kd_launch.runtime.parallel import MicroBatch
from kd_launch.runtime.payload import Payload, PayloadForm, open_payload, open_stripes
from kd_launch.runtime.pipeline import Downstream, Upstream
from kd_launch.runtime.shared_head import SharedHead
from kd_launch.runtime.teacher import Teacher
from kd_launch.runtime.transport import Parcel, Receiver, Sender
from kd_launch.runtime.turns import group_of
from kd_launch.runtime.world import World


class PayloadSource(Protocol):
    """The payload of micro-batch after micro-batch, in the schedule's order."""

    student_waited: float
    """Seconds that this student waited for payloads so far."""
    teacher_waited: float
    """Seconds that its teachers waited for it so far."""

    def take(self, item: Item, batch: MicroBatch) -> Payload:
        """The payload of the next item; valid until `release`."""
        ...

    def release(self) -> None:
        """The last payload has been used."""
        ...


@dataclass(frozen=True)
class _Visit:
    """One micro-batch of a phase: of one of the ranks of this instance."""

    item: Item
    tokens: int
    is_worked: bool
    """Whether it, or its counterpart in an instance that shares its weights, has tokens."""
    stage: int
    """Of the rank that trains on it."""
    tp_rank: int


class ColocatedTeacher:
    """Each instance of the teacher computes the payloads of its own ranks.

    In each round the teacher has its phase: the micro-batches of all ranks of the instance pass through it, one after
    the other, and the payload of each is left on the rank that trains on it. What the phase needs ends with it.
    """

    def __init__(
        self, world: World, run: RunPlan, batches: Batches, teacher: Teacher, form: PayloadForm,
        head: Head | SharedHead | None,
    ) -> None:  # fmt: skip
        assert world.teacher is not None
        self._world, self._run, self._batches, self._teacher = world, run, batches, teacher
        self._form, self._head = replace(form, stripes=1), head
        self._stripes, self._groups, self._place = form, world.teacher, world.teacher.place
        self._last = run.layout.teacher.pp - 1
        self.student_waited = self.teacher_waited = 0.0

    def take(self, item: Item, batch: MicroBatch) -> Payload:
        return open_payload(self._form, self._phase(item, batch), self._head)

    def release(self) -> None:
        """Nothing is held."""

    def _phase(self, item: Item, batch: MicroBatch) -> list[Tensor]:
        visits = list(self._visits(item))
        worked = [visit for visit in visits if visit.tokens]
        up = down = out = None
        if self._place.stage > 0:
            items = iter([visit.item for visit in worked])
            up = Upstream(self._world, self._run, self._batches, self._stripes, items, min(2, max(1, len(worked))))
        if self._place.stage < self._last:
            down = Downstream(self._world, self._run, self._batches, self._stripes, 2)
        mine = self._receiver(item) if self._place.stage < self._last else None
        if self._place.stage == self._last > 0:
            out = self._sender()
        kept = self._form.empty(self._world.device)
        for visit in visits:
            parts = self._forward(visit, item, batch, up, down)
            if self._place.stage == self._last and parts is not None:
                kept = self._keep_or_send(visit, item, parts, kept, out)
        for side in (down, out):
            if side is not None:
                side.drain()
        if mine is not None:
            ((parts,), _, _) = mine.take()
            return parts
        return kept

    def _visits(self, item: Item) -> Iterator[_Visit]:
        """The micro-batches of this round that this instance works on, in the order that all its ranks keep."""
        teacher, instance = self._run.layout.teacher, self._place.instance
        for stage in range(teacher.pp):
            for tp_rank in range(teacher.tp):
                items = {
                    member: self._batches.beside(item, rank_of(teacher, member, stage, tp_rank))
                    for member in group_of(teacher, instance)
                }
                tokens = {member: self._batches.teacher_tokens(one) for member, one in items.items()}
                yield _Visit(items[instance], tokens[instance], any(tokens.values()), stage, tp_rank)

    def _forward(
        self, visit: _Visit, own: Item, batch: MicroBatch, up: Upstream | None, down: Downstream | None
    ) -> list[Tensor] | None:
        if not visit.tokens:
            if visit.is_worked:
                self._teacher.idle()
            return None
        this = batch if visit.item == own else self._batches.micro_batch(visit.item)
        hidden = None if up is None else up.take(this)
        with torch.no_grad():
            parts = self._teacher.payload(this, hidden)
        if up is not None:
            up.release()
        if down is not None:
            down.send(visit.item, parts[0])
        return parts

    def _keep_or_send(
        self, visit: _Visit, own: Item, parts: list[Tensor], kept: list[Tensor], out: Sender | None
    ) -> list[Tensor]:
        """Of the last stage: brings a payload to its rank; `kept`, or it where that is this one."""
        if self._form.kind == "logits" and self._run.layout.teacher.tp > 1:
            parts = self._columns(parts[0], visit.tp_rank)
        if visit.tp_rank != self._place.tp_rank:
            return kept
        if visit.item == own:
            return parts
        assert out is not None
        stamp = self._batches.stamp(visit.item, self._world.attempt, self._form.kind)
        peer = rank_of(self._run.layout.teacher, self._place.instance, visit.stage, visit.tp_rank)
        out.send(Parcel(visit.item.number, peer, stamp), parts)
        return kept

    def _columns(self, mine: Tensor, to: int) -> list[Tensor]:
        """The logits of all tensor-parallel ranks side by side, on one of them; nothing on the others."""
        assert self._groups.mesh is not None
        group, form = self._groups.mesh.get_group("tp"), self._stripes
        widths = [stop - start for start, stop in map(form.columns, range(form.stripes))]
        padded = torch.nn.functional.pad(mine, (0, max(widths) - mine.shape[1])).contiguous()
        found = [torch.empty_like(padded) for _ in widths] if self._place.tp_rank == to else None
        dist.gather(padded, found, group=group, group_dst=to)
        if found is None:
            return []
        return [torch.cat([part[:, :width] for part, width in zip(found, widths, strict=True)], -1)]

    def _receiver(self, item: Item) -> Receiver | None:
        """For this rank's own payload, which the last stage makes; None where there is none to make."""
        if not self._batches.teacher_tokens(item):
            return None
        assert self._groups.delivery is not None
        sender = senders(self._run.layout.teacher, self._place.instance)[self._place.tp_rank]
        stamp = self._batches.stamp(item, self._world.attempt, self._form.kind)
        parcels = iter([(Parcel(item.number, sender, stamp),)])
        return Receiver(self._form, self._groups.delivery, 1, self._world.device, stamp.tokens, parcels)

    def _sender(self) -> Sender:
        assert self._groups.delivery is not None
        most = self._batches.most_tokens()
        return Sender(self._form, self._groups.delivery, 2, self._world.device, most)


class RemoteTeacher:
    """Receives each payload from teacher ranks."""

    def __init__(
        self, world: World, run: RunPlan, batches: Batches, form: PayloadForm, head: Head | SharedHead | None,
        begin: int = 0,
    ) -> None:  # fmt: skip
        """`begin`: the steps that are done."""
        assert world.lane is not None
        self._form, self._head = form, head
        self.student_waited = self.teacher_waited = 0.0
        parcels = (
            self._parcels(run, batches, item, world.attempt)
            for item in batches.items_of_student(world.role_rank, begin)
        )
        depth = max(1, run.layout.prefetch)
        self._receiver = Receiver(form, world.lane, depth, world.device, batches.most_tokens(), parcels)

    def take(self, item: Item, batch: MicroBatch) -> Payload:  # noqa: ARG002 - the colocated teacher needs the batch
        stripes, student_waited, teacher_waited = self._receiver.take()
        self.student_waited += student_waited
        self.teacher_waited += teacher_waited
        return open_stripes(self._form, stripes, self._head)

    def release(self) -> None:
        self._receiver.release()

    def _parcels(self, run: RunPlan, batches: Batches, item: Item, attempt: int) -> tuple[Parcel, ...]:
        stamp = batches.stamp(item, attempt, self._form.kind)
        peers = senders(run.layout.teacher, item.teacher)
        return tuple(Parcel(item.number, peer, replace(stamp, stripe=stripe)) for stripe, peer in enumerate(peers))

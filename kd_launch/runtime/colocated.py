"""Where the student's payloads come from: computed here when colocated, else received. There is one student loop."""

from typing import Protocol

from kd_launch.plan import RunPlan
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.data import Item
from kd_launch.runtime.losses import Head
from kd_launch.runtime.parallel import MicroBatch
from kd_launch.runtime.payload import Payload, PayloadForm, open_payload
from kd_launch.runtime.teacher import FrozenTeacher
from kd_launch.runtime.transport import Parcel, Receiver
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


class ColocatedTeacher:
    """Computes each payload on the student's own rank."""

    def __init__(self, teacher: FrozenTeacher, batches: Batches, form: PayloadForm, head: Head | None) -> None:
        self._teacher, self._batches, self._form, self._head = teacher, batches, form, head
        self.student_waited = self.teacher_waited = 0.0

    def take(self, item: Item, batch: MicroBatch) -> Payload:
        needed = self._batches.needs_teacher(item)
        parts = self._teacher.payload(batch) if needed else self._form.empty(batch.ids.device)
        return open_payload(self._form, parts, self._head)

    def release(self) -> None:
        """Nothing is held."""


class RemoteTeacher:
    """Receives each payload from a teacher rank."""

    def __init__(
        self, world: World, run: RunPlan, batches: Batches, form: PayloadForm, head: Head | None, begin: int = 0
    ) -> None:
        """`begin`: the steps that are done."""
        assert world.lane is not None
        self._form, self._head = form, head
        self.student_waited = self.teacher_waited = 0.0
        teachers = run.layout.teacher_ranks
        parcels = (
            Parcel(item.number, teachers[item.teacher], batches.stamp(item, world.attempt, form.kind))
            for item in batches.items_of_student(world.role_rank, begin)
        )
        depth = max(1, run.layout.prefetch)
        self._receiver = Receiver(form, world.lane, depth, world.device, batches.most_tokens(), parcels)

    def take(self, item: Item, batch: MicroBatch) -> Payload:  # noqa: ARG002 - the colocated teacher needs the batch
        parts, stamp, waited = self._receiver.take()
        self.student_waited += waited
        self.teacher_waited += stamp.waited_seconds
        return open_payload(self._form, parts, self._head)

    def release(self) -> None:
        self._receiver.release()

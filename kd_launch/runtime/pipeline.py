"""The loop of a teacher rank: micro-batch after micro-batch, from the stage before to the next stage or to a student.

Every rank works in increasing turns without a pause between steps: a stage begins a micro-batch as soon as the one
before has sent it, and is stopped only by the buffers of the next one, or of the students.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from kd_launch.plan import RunPlan
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.data import Item
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.links import rank_of
from kd_launch.runtime.parallel import MicroBatch
from kd_launch.runtime.payload import PayloadForm, Stamp
from kd_launch.runtime.teacher import Teacher
from kd_launch.runtime.transport import Parcel, Receiver, Sender
from kd_launch.runtime.turns import Turn, turns_of_teacher
from kd_launch.runtime.world import World


def teach(
    world: World, run: RunPlan, batches: Batches, teacher: Teacher, form: PayloadForm, progress: Progress,
    begin: int = 0,
) -> None:  # fmt: skip
    """Streams the payload of each of this rank's micro-batches from step `begin` on, `prefetch` ahead of its
    students."""
    assert world.teacher is not None
    instance = world.teacher.place.instance
    ahead, now = (turns_of_teacher(batches, run.layout.teacher, instance, begin) for _ in range(2))
    loop = _Loop(world, run, batches, form, progress, ahead)
    for turn in now:
        loop.work(turn, teacher)
        progress.done += turn.item is not None
        progress.move()
    loop.drain()


class Upstream:
    """Activations from the stage before."""

    def __init__(
        self, world: World, run: RunPlan, batches: Batches, form: PayloadForm, items: Iterator[Item], depth: int
    ) -> None:  # fmt: skip
        """Posts `depth` receives for the micro-batches of `items`, all of which have tokens."""
        assert world.teacher is not None
        assert world.teacher.chain is not None
        place, link = world.teacher.place, link_form(form)
        before = rank_of(run.layout.teacher, place.instance, place.stage - 1, place.tp_rank)
        parcels = ((Parcel(item.number, before, link_stamp(batches, item, world.attempt)),) for item in items)
        self._receiver = Receiver(link, world.teacher.chain, depth, world.device, batches.most_tokens(), parcels)

    def take(self, batch: MicroBatch) -> Tensor:
        """[b, s, h]; valid until `release`."""
        ((hidden,),), _, _ = self._receiver.take()
        return hidden.view(*batch.ids.shape, -1)

    def release(self) -> None:
        self._receiver.release()


class Downstream:
    """Activations for the next stage."""

    def __init__(self, world: World, run: RunPlan, batches: Batches, form: PayloadForm, depth: int) -> None:
        assert world.teacher is not None
        assert world.teacher.chain is not None
        place = world.teacher.place
        self._peer = rank_of(run.layout.teacher, place.instance, place.stage + 1, place.tp_rank)
        self._batches, self._attempt = batches, world.attempt
        most = batches.most_tokens()
        self._sender = Sender(link_form(form), world.teacher.chain, depth, world.device, most)

    def send(self, item: Item, hidden: Tensor) -> None:
        stamp = link_stamp(self._batches, item, self._attempt)
        self._sender.send(Parcel(item.number, self._peer, stamp), [hidden.flatten(0, 1)])

    def drain(self) -> None:
        self._sender.drain()


def link_form(form: PayloadForm) -> PayloadForm:
    """Of what stages pass on: the hidden states of all tokens."""
    return replace(form, kind="hidden_states", stripes=1)


def link_stamp(batches: Batches, item: Item, attempt: int) -> Stamp:
    """Like the payload's, but of all tokens of the micro-batch."""
    return replace(batches.stamp(item, attempt, "hidden_states"), tokens=batches.rows(item).ids.size)


class _Loop:
    """One rank's sides of the links."""

    def __init__(
        self, world: World, run: RunPlan, batches: Batches, form: PayloadForm, progress: Progress,
        ahead: Iterator[Turn],
    ) -> None:  # fmt: skip
        """
        Args:
            ahead: the turns of the run once more, for the receives that are posted early.
        """
        assert world.teacher is not None
        assert world.lane is not None or world.teacher.place.stage < run.layout.teacher.pp - 1
        place, depth = world.teacher.place, max(1, run.layout.prefetch)
        self._world, self._batches, self._form, self._progress = world, batches, form, progress
        self._students, self._stripe = run.layout.student_ranks, place.tp_rank
        self._up: Upstream | None = None
        self._down: Downstream | None = None
        self._out: Sender | None = None
        if place.stage > 0:
            items = (turn.item for turn in ahead if turn.item is not None and turn.tokens)
            self._up = Upstream(world, run, batches, form, items, depth)
        if place.stage < run.layout.teacher.pp - 1:
            self._down = Downstream(world, run, batches, form, depth)
        elif world.lane is not None:
            most = batches.most_tokens()
            self._out = Sender(form, world.lane, depth, world.device, most, self._stripe)

    def work(self, turn: Turn, teacher: Teacher) -> None:
        """One micro-batch, or the part in others' that an empty one has."""
        parts = self._form.empty(self._world.device, self._stripe)
        if turn.item is not None and turn.tokens:
            parts = self._forward(turn.item, teacher)
        elif turn.is_worked:
            teacher.idle()
        if self._out is not None and turn.item is not None:
            self._send(self._out, turn.item, parts)

    def _forward(self, item: Item, teacher: Teacher) -> list[Tensor]:
        batch = self._batches.micro_batch(item)
        hidden = None
        if self._up is not None:
            with self._progress.waiting(f"the stage before, with micro-batch {item.number}"):
                hidden = self._up.take(batch)
        parts = teacher.payload(batch, hidden)
        if self._up is not None:
            self._up.release()
        if self._down is not None:
            with self._progress.waiting(f"the next stage to take a micro-batch before {item.number}"):
                self._down.send(item, parts[0])
        return parts

    def _send(self, out: Sender, item: Item, parts: list[Tensor]) -> None:
        stamp = replace(self._batches.stamp(item, self._world.attempt, self._form.kind), stripe=self._stripe)
        parcel = Parcel(item.number, self._students[item.student], stamp)
        with self._progress.waiting(f"a student to take a micro-batch before {item.number}"):
            out.send(parcel, self._form.cut(parts, stamp.tokens, self._stripe))

    def drain(self) -> None:
        """Waits until everything has arrived."""
        if self._down is not None:
            with self._progress.waiting("the next stage to take the last micro-batches"):
                self._down.drain()
        if self._out is not None:
            with self._progress.waiting("the students to take the last micro-batches"):
                self._out.drain()

"""The items of the schedule as tensors: what a rank computes on, and what a payload's stamp says of it."""

import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kd_launch.plan import RunPlan
from kd_launch.runtime.data import Item, Rows, Store, schedule_of
from kd_launch.runtime.devices import to_device
from kd_launch.runtime.parallel import MicroBatch
from kd_launch.runtime.payload import Kind, Stamp

KEPT = 16
"""Items whose sequences are kept: receives are posted a few items ahead."""


class Batches:
    """The prepared data of a run, as micro-batches on one device."""

    def __init__(self, run: RunPlan, device: torch.device) -> None:
        assert run.tokens is not None
        self._stores = {"train": Store.open(Path(run.tokens.train))}
        if run.tokens.eval is not None:
            self._stores["eval"] = Store.open(Path(run.tokens.eval))
        self._device = device
        self.schedule = schedule_of(run, *(len(store) for store in self._stores.values()))
        self._order = self.schedule.order()
        self._read: OrderedDict[int, Rows] = OrderedDict()
        self._text_alone = run.spec.distillation.cross_entropy_weight == 1.0

    def rows(self, item: Item) -> Rows:
        """The sequences of an item, possibly none. The last ones are kept: a stamp is made of them, then a batch."""
        if item.number not in self._read:
            self._read[item.number] = self._stores[item.kind].rows(item.rows)
            while len(self._read) > KEPT:
                self._read.popitem(last=False)
        return self._read[item.number]

    def loss_tokens(self, step: int) -> int:
        """Loss tokens of the whole global batch of a step."""
        return self._stores["train"].loss_tokens(self._order.rows(step))

    def eval_loss_tokens(self) -> int:
        """Loss tokens of the whole held-out data."""
        store = self._stores["eval"]
        return store.loss_tokens(np.arange(len(store)))

    def micro_batch(self, item: Item) -> MicroBatch:
        """An item's tensors. An item without sequences, at the end of the held-out data, becomes one row without loss
        tokens: collectives need every rank."""
        rows = self.rows(item)
        if len(rows.ids) == 0:
            rows = self._stores[item.kind].rows([0])
            return self._tensors(rows, np.zeros_like(rows.loss))
        return self._tensors(rows, rows.loss)

    def _tensors(self, rows: Rows, loss: NDArray[np.bool_]) -> MicroBatch:
        index = np.flatnonzero(loss.reshape(-1))
        labels = np.roll(rows.ids, -1, axis=1).reshape(-1)[index]
        arrays = (rows.ids, rows.positions, index, labels)
        return MicroBatch(*(to_device(torch.from_numpy(array.astype(np.int64)), self._device) for array in arrays))

    def needs_teacher(self, item: Item) -> bool:
        """Whether anything of the loss on this item comes from the teacher: not when training on the text alone."""
        return len(item.rows) > 0 and not (self._text_alone and item.kind == "train")

    def teacher_tokens(self, item: Item) -> int:
        """Loss tokens of an item that the teacher is asked about."""
        return self._stores[item.kind].loss_tokens(item.rows) if self.needs_teacher(item) else 0

    def beside(self, item: Item, student: int) -> Item:
        """What another student rank works on in the same round."""
        return self.schedule.item_beside(item, student, self._order)

    def stamp(self, item: Item, attempt: int, kind: Kind) -> Stamp:
        """What a payload for this item must say of itself."""
        rows = self.rows(item)
        tokens = int(np.count_nonzero(rows.loss)) if self.needs_teacher(item) else 0
        checksum = zlib.crc32(rows.loss.tobytes(), zlib.crc32(rows.ids.tobytes()))
        return Stamp(attempt, item.number, tokens, checksum, kind)

    def first_checksum(self) -> int:
        """Of the first step's first sequences: differs where two ranks see different data."""
        return self.stamp(next(self.schedule.items()), 0, "logits").checksum

    def most_tokens(self) -> int:
        """The most loss tokens that a micro-batch can have."""
        return self.schedule.micro_batch_size * self._stores["train"].sequence_length

    def items_of_student(self, student: int, begin: int = 0) -> Iterator[Item]:
        """From the moment when `begin` steps are done."""
        return self.schedule.items_of_student(student, begin)

    def items_of_teacher(self, teacher: int, begin: int = 0) -> Iterator[Item]:
        """From the moment when `begin` steps are done."""
        return self.schedule.items_of_teacher(teacher, begin)

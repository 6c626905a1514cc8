"""Tokens on disk -> the sequences of every step: the same for every layout, known to both roles from the plan alone."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, gcd
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kd_launch.errors import SpecError
from kd_launch.plan import RunPlan
from kd_launch.tokens import StoreHeader, read_header

ARRAYS: dict[str, type[np.generic]] = {
    "ids": np.int32,
    "positions": np.int32,
    "loss": np.bool_,
    "loss_tokens": np.int32,
}
"""The arrays of a store, each `<name>.npy`: [sequences, sequence_length], loss_tokens [sequences]."""


class Rows(NamedTuple):
    """Some sequences of a store, each of them [n, sequence_length]."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    """Position within the document; 0 begins a document. Padding is a document of its own at the end of a row."""
    loss: NDArray[np.bool_]
    """[i, t]: whether the prediction of ids[i, t + 1] counts for the loss. False at the end of each document."""


class Store:
    """Prepared sequences, mapped into memory and read as they are needed."""

    def __init__(self, path: Path, header: StoreHeader, arrays: dict[str, NDArray[Any]]) -> None:
        self.header = header
        self._path, self._arrays = path, arrays

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens the store in folder `path`.

        Raises:
            SpecError: it is missing, incomplete or damaged.
        """
        header = read_header(path)
        arrays = {name: _open_array(path / f"{name}.npy", np.dtype(kind)) for name, kind in ARRAYS.items()}
        for name, array in arrays.items():
            _check_shape(path, name, array, header)
        if int(arrays["loss_tokens"].sum(dtype=np.int64)) != header.loss_tokens:
            raise _damaged(path / "loss_tokens.npy", "its sum is not that of the header")
        return cls(path, header, arrays)

    def __len__(self) -> int:
        return self.header.sequences

    @property
    def sequence_length(self) -> int:
        return self.header.sequence_length

    def rows(self, indices: Sequence[int] | NDArray[np.int64]) -> Rows:
        """Copies of the rows with these numbers, in this order; none for no indices.

        Raises:
            SpecError: they hold what is no token, of which a GPU would only say that an assertion failed.
        """
        index = np.asarray(indices, dtype=np.int64)
        rows = Rows(*(np.asarray(self._arrays[name][index]) for name in ("ids", "positions", "loss")))
        if rows.ids.size and not 0 <= rows.ids.min() <= rows.ids.max() < self.header.vocabulary:
            raise _damaged(
                self._path / "ids.npy",
                f"its ids go from {rows.ids.min()} to {rows.ids.max()}, but there are {self.header.vocabulary} tokens",
            )
        return rows

    def loss_tokens(self, indices: Sequence[int] | NDArray[np.int64]) -> int:
        """How many tokens of these rows count for the loss."""
        index = np.asarray(indices, dtype=np.int64)
        return int(self._arrays["loss_tokens"][index].sum(dtype=np.int64))


def _open_array(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    if array.dtype != dtype:
        raise _damaged(path, f"holds {array.dtype}, not {dtype}")
    return array


def _check_shape(path: Path, name: str, array: NDArray[Any], header: StoreHeader) -> None:
    shape: tuple[int, ...] = (header.sequences, header.sequence_length)
    expected = shape[:1] if name == "loss_tokens" else shape
    if array.shape != expected:
        raise _damaged(path / f"{name}.npy", f"has shape {array.shape}, not {expected}")


def _damaged(path: Path, why: str) -> SpecError:
    return SpecError(f"{path}: is damaged: {why}; remove {path.parent} and run `kd-launch prepare` again")


class Order:
    """Which rows a step reads: a function of seed, epoch and step, never of the layout.

    Sequence j of step s has the number s * global_batch_size + j. It lies in epoch number // sequences; each epoch
    reads every row once, permuted by numpy.random.default_rng([seed, epoch]), or as stored where `shuffle` is false.
    """

    def __init__(self, sequences: int, global_batch_size: int, seed: int, shuffle: bool) -> None:
        assert sequences > 0
        self._sequences, self._batch, self._seed, self._shuffle = sequences, global_batch_size, seed, shuffle
        self._epochs: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def rows(self, step: int) -> NDArray[np.int64]:
        """Row numbers [global_batch_size] of step `step` (from 0)."""
        numbers = step * self._batch + np.arange(self._batch, dtype=np.int64)
        epochs, within = numbers // self._sequences, numbers % self._sequences
        if not self._shuffle:
            return within
        parts = [self._epoch(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """The order of one epoch. Two are kept: a step may lie across the end of one."""
        if epoch not in self._epochs:
            self._epochs[epoch] = np.random.default_rng([self._seed, epoch]).permutation(self._sequences)
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


Kind = Literal["train", "eval"]


@dataclass(frozen=True)
class Round:
    """One micro-batch for every student rank."""

    number: int
    """From 0, over the whole run, evaluations included."""
    kind: Kind
    step: int
    """Of a train round the step it belongs to, from 0; of an eval round the steps that are done."""
    micro_batch: int
    """Within the step or the evaluation, from 0."""


@dataclass(frozen=True)
class Item:
    """One micro-batch of one student rank: what a teacher computes and sends, and that student consumes."""

    number: int
    """g, from 0: round * students + student. All ranks work in increasing g."""
    kind: Kind
    step: int
    """As in `Round`."""
    micro_batch: int
    student: int
    teacher: int
    """The teacher replica that serves it."""
    rows: tuple[int, ...]
    """Row numbers of the store: `micro_batch_size` of them, fewer or none at the end of an evaluation."""


def serving_teacher(round_number: int, student: int, teachers: int, students: int) -> int:
    """The teacher replica that serves a student rank in a round.

    Lane l of gcd(teachers, students) lanes holds the teachers and the students whose number is l modulo the lanes;
    within a lane the replicas take the items in turn.
    """
    lanes = gcd(teachers, students)
    position = round_number * (students // lanes) + student // lanes
    return student % lanes + lanes * (position % (teachers // lanes))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Every item of a run in order. Both roles derive the same one from the plan and the stores' sizes.

    An evaluation comes before the first step, after every `eval_every_steps` steps and after the last; without held-out
    sequences there is none.
    """

    steps: int
    accumulation: int
    """Micro-batches of a student rank in one step."""
    micro_batch_size: int
    students: int
    """Student ranks that work on micro-batches of their own."""
    teachers: int
    """Teacher replicas."""
    train_sequences: int
    eval_sequences: int = 0
    eval_every_steps: int
    seed: int
    shuffle: bool

    @property
    def global_batch_size(self) -> int:
        return self.accumulation * self.students * self.micro_batch_size

    @property
    def eval_rounds(self) -> int:
        """Rounds of one evaluation; 0 where there is nothing to evaluate on."""
        return ceil(self.eval_sequences / (self.students * self.micro_batch_size))

    @property
    def items_per_teacher(self) -> int:
        """Items of the busiest teacher replica over the whole run."""
        evaluations = self._evaluations_before(self.steps) + 1
        rounds = self.steps * self.accumulation + evaluations * self.eval_rounds
        return ceil(rounds * self.students / self.teachers)

    def order(self) -> Order:
        """The rows of each step, such as for counting the loss tokens of the global batch."""
        return Order(self.train_sequences, self.global_batch_size, self.seed, self.shuffle)

    def rounds(self, start_step: int = 0) -> Iterator[Round]:
        """All rounds from the moment when `start_step` steps are done: an evaluation that is due then comes first.

        The rounds are the last ones of those from step 0, numbers included.
        """
        number = start_step * self.accumulation + self._evaluations_before(start_step) * self.eval_rounds
        for done in range(start_step, self.steps + 1):
            if self.evaluates_after(done):
                for k in range(self.eval_rounds):
                    yield Round(number + k, "eval", done, k)
                number += self.eval_rounds
            if done < self.steps:
                for k in range(self.accumulation):
                    yield Round(number + k, "train", done, k)
                number += self.accumulation

    def evaluates_after(self, done: int) -> bool:
        """Whether an evaluation is due when `done` steps are done."""
        return self.eval_sequences > 0 and (done % self.eval_every_steps == 0 or done == self.steps)

    def _evaluations_before(self, done: int) -> int:
        """Evaluations at fewer than `done` steps; `done` is at most `steps`."""
        return ceil(done / self.eval_every_steps)

    def items(self, start_step: int = 0) -> Iterator[Item]:
        """All items in increasing g."""
        return self._items(range(self.students), start_step)

    def items_of_student(self, student: int, start_step: int = 0) -> Iterator[Item]:
        """The items that a student rank consumes, in increasing g."""
        return self._items((student,), start_step)

    def items_of_teacher(self, teacher: int, start_step: int = 0) -> Iterator[Item]:
        """The items that a teacher replica serves, in increasing g."""
        lanes = gcd(self.teachers, self.students)
        lane = range(teacher % lanes, self.students, lanes)
        return (item for item in self._items(lane, start_step) if item.teacher == teacher)

    def _items(self, students: Sequence[int], start_step: int) -> Iterator[Item]:
        order, rows = self.order(), np.arange(0)
        for turn in self.rounds(start_step):
            if turn.micro_batch == 0:
                rows = order.rows(turn.step) if turn.kind == "train" else np.arange(self.eval_sequences)
            yield from (self._item(turn, student, rows) for student in students)

    def item_beside(self, item: Item, student: int, order: Order) -> Item:
        """What another student rank works on in the round of `item`."""
        turn = Round(item.number // self.students, item.kind, item.step, item.micro_batch)
        rows = order.rows(item.step) if item.kind == "train" else np.arange(self.eval_sequences)
        return self._item(turn, student, rows)

    def _item(self, turn: Round, student: int, rows: NDArray[np.int64]) -> Item:
        start = (turn.micro_batch * self.students + student) * self.micro_batch_size
        return Item(
            number=turn.number * self.students + student,
            kind=turn.kind,
            step=turn.step,
            micro_batch=turn.micro_batch,
            student=student,
            teacher=serving_teacher(turn.number, student, self.teachers, self.students),
            rows=tuple(rows[start : start + self.micro_batch_size].tolist()),
        )


def schedule_of(plan: RunPlan, train_sequences: int, eval_sequences: int = 0) -> Schedule:
    """The schedule of a planned run whose stores hold so many sequences; `eval_sequences` 0 means no held-out data.

    Colocated, every rank is its own teacher.

    Raises:
        SpecError: the layout's numbers do not give the global batch.
    """
    layout, training = plan.layout, plan.spec.training
    students = layout.student.data_parallel
    schedule = Schedule(
        steps=training.steps,
        accumulation=layout.grad_accumulation_steps,
        micro_batch_size=layout.student.micro_batch_size,
        students=students,
        teachers=students if layout.colocated else layout.teacher.data_parallel,
        train_sequences=train_sequences,
        eval_sequences=eval_sequences,
        eval_every_steps=training.eval_every_steps,
        seed=training.seed,
        shuffle=plan.spec.data.shuffle,
    )
    if schedule.global_batch_size != training.global_batch_size:
        raise SpecError(
            f"plan.json: {schedule.accumulation} accumulation steps x {students} student ranks x micro-batch "
            f"{schedule.micro_batch_size} give {schedule.global_batch_size} sequences per step, but "
            f"training.global_batch_size is {training.global_batch_size}; plan again"
        )
    return schedule

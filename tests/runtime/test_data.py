"""The store that ranks read, the order of its rows, and the schedule that both roles derive."""

from collections import Counter
from math import ceil, gcd
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_launch.errors import SpecError
from kd_launch.plan import Interval, Layout, RoleLayout, RunPlan
from kd_launch.runtime.data import Order, Rows, Schedule, Store, schedule_of, serving_teacher
from kd_launch.runtime.store_writer import StoreWriter, write_header
from kd_launch.tokens import StoreHeader

# --- the store


def make_rows(count: int, length: int = 6) -> Rows:
    ids = np.arange(count * length, dtype=np.int32).reshape(count, length)
    return Rows(ids, np.tile(np.arange(length, dtype=np.int32), (count, 1)), ids % 3 == 1)


def make_store(folder: Path, count: int = 5) -> Path:
    folder.mkdir()
    rows = make_rows(count)
    with StoreWriter(folder, 6) as writer:
        writer.append(Rows(*(array[:2] for array in rows)))
        writer.append(Rows(*(array[2:] for array in rows)))
        sizes = writer.finish()
    header = StoreHeader(
        key="k", kind="text", sequences=count, sequence_length=6, tokens=count * 6, loss_tokens=writer.loss_tokens,
        documents=count, truncated=0, dropped=0, vocabulary=99, bytes=sizes, version="0",
    )  # fmt: skip
    write_header(folder, header)
    return folder


def test_a_store_gives_the_rows_that_were_written(tmp_path: Path) -> None:
    store, rows = Store.open(make_store(tmp_path / "s")), make_rows(5)
    assert (len(store), store.sequence_length) == (5, 6)
    found = store.rows([4, 0, 4])
    for got, wrote, dtype in zip(found, rows, (np.int32, np.int32, np.bool_), strict=True):
        assert got.dtype == dtype
        assert np.array_equal(got, wrote[[4, 0, 4]])
    assert store.loss_tokens([1, 3]) == rows.loss[[1, 3]].sum()
    assert store.loss_tokens(np.arange(5)) == store.header.loss_tokens == rows.loss.sum()


def test_no_indices_give_no_rows(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path / "s"))
    assert store.rows(()).ids.shape == (0, 6)
    assert store.loss_tokens(()) == 0


def damaged_stores(tmp_path: Path) -> list[tuple[Path, str]]:
    """Stores with one fault each, and a word of the error."""

    def broken(name: str, array: np.ndarray[Any, Any]) -> Path:
        folder = make_store(tmp_path / f"{name}-{array.dtype}-{array.ndim}")
        np.save(folder / f"{name}.npy", array)
        header = StoreHeader.model_validate_json((folder / "store.json").read_bytes())
        size = (folder / f"{name}.npy").stat().st_size
        write_header(folder, header.model_copy(update={"bytes": {**header.bytes, f"{name}.npy": size}}))
        return folder

    torn = make_store(tmp_path / "torn")
    with (torn / "ids.npy").open("r+b") as file:
        file.truncate(150)
    overwritten = make_store(tmp_path / "overwritten")
    size = (overwritten / "loss.npy").stat().st_size
    (overwritten / "loss.npy").write_bytes(b"x" * size)
    return [
        (tmp_path / "nowhere", "does not exist"),
        (torn, "bytes"),
        (overwritten, "is damaged"),
        (broken("ids", np.zeros((5, 6), dtype=np.int64)), "holds int64, not int32"),
        (broken("positions", np.zeros((4, 6), dtype=np.int32)), "has shape (4, 6), not (5, 6)"),
        (broken("loss_tokens", np.zeros((5, 1), dtype=np.int32)), "has shape (5, 1), not (5,)"),
        (broken("loss_tokens", np.zeros(5, dtype=np.int32)), "its sum is not that of the header"),
    ]


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    for folder, words in damaged_stores(tmp_path):
        with pytest.raises(SpecError) as error:
            Store.open(folder)
        assert words in str(error.value)
        assert str(folder) in str(error.value)
        assert "kd-launch prepare" in str(error.value)


def test_ids_that_are_no_tokens_are_refused_when_they_are_read(tmp_path: Path) -> None:
    make_store(tmp_path / "store", 3)
    ids = np.load(tmp_path / "store" / "ids.npy")
    vocabulary = Store.open(tmp_path / "store").header.vocabulary
    ids[2, 5] = vocabulary
    np.save(tmp_path / "store" / "ids.npy", ids)
    store = Store.open(tmp_path / "store")
    store.rows([0, 1])
    with pytest.raises(SpecError, match=rf"ids\.npy: is damaged: its ids go from \d+ to {vocabulary}, but there are"):
        store.rows([1, 2])


# --- the order


def test_an_epoch_reads_every_row_once_and_the_next_one_in_another_order() -> None:
    order = Order(sequences=7, global_batch_size=3, seed=5, shuffle=True)
    numbers = np.concatenate([order.rows(step) for step in range(14)])
    epochs = numbers.reshape(6, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6
    assert np.array_equal(epochs[2], np.random.default_rng([5, 2]).permutation(7))


def test_without_shuffle_the_rows_come_as_stored() -> None:
    order = Order(sequences=5, global_batch_size=3, seed=0, shuffle=False)
    assert [order.rows(step).tolist() for step in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


@given(
    sequences=st.integers(1, 40), batch=st.integers(1, 100), seed=st.integers(0, 2**63 - 1), shuffle=st.booleans(),
    steps=st.lists(st.integers(0, 50), min_size=1, max_size=6),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_a_step_does_not_depend_on_the_steps_before_it(
    sequences: int, batch: int, seed: int, shuffle: bool, steps: list[int]
) -> None:
    used = Order(sequences, batch, seed, shuffle)
    for step in steps:
        rows = used.rows(step)
        assert rows.shape == (batch,)
        assert rows.tolist() == Order(sequences, batch, seed, shuffle).rows(step).tolist()
        # Numbers step * batch and on: however many epochs that is, each row comes as often as the others, but for one.
        counts = Counter(rows.tolist())
        assert set(counts) <= set(range(sequences))
        if batch >= 2 * sequences:
            assert set(counts) == set(range(sequences))


def test_the_seed_changes_the_order() -> None:
    orders = [Order(50, 50, seed, shuffle=True).rows(0).tolist() for seed in range(5)]
    assert len({tuple(order) for order in orders}) == 5


# --- the schedule


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    return Schedule(
        steps=draw(st.integers(1, 9)),
        accumulation=draw(st.integers(1, 3)),
        micro_batch_size=draw(st.integers(1, 3)),
        students=draw(st.integers(1, 6)),
        teachers=draw(st.integers(1, 6)),
        train_sequences=draw(st.integers(1, 60)),
        eval_sequences=draw(st.integers(0, 20)),
        eval_every_steps=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 3)),
        shuffle=draw(st.booleans()),
    )


def make_schedule(**changes: Any) -> Schedule:
    values = {
        "steps": 4, "accumulation": 2, "micro_batch_size": 1, "students": 2, "teachers": 1, "train_sequences": 10,
        "eval_sequences": 3, "eval_every_steps": 2, "seed": 0, "shuffle": False, **changes,
    }  # fmt: skip
    return Schedule(**values)


def test_a_small_schedule_written_out() -> None:
    rounds = [(turn.number, turn.kind, turn.step, turn.micro_batch) for turn in make_schedule().rounds()]
    assert rounds == [
        (0, "eval", 0, 0), (1, "eval", 0, 1),
        (2, "train", 0, 0), (3, "train", 0, 1), (4, "train", 1, 0), (5, "train", 1, 1),
        (6, "eval", 2, 0), (7, "eval", 2, 1),
        (8, "train", 2, 0), (9, "train", 2, 1), (10, "train", 3, 0), (11, "train", 3, 1),
        (12, "eval", 4, 0), (13, "eval", 4, 1),
    ]  # fmt: skip
    items = [(item.number, item.student, item.rows) for item in make_schedule().items()]
    assert items[:4] == [
        (0, 0, (0,)),
        (1, 1, (1,)),
        (2, 0, (2,)),
        (3, 1, ()),
    ]  # three held-out sequences, two at a time
    assert items[4:8] == [(4, 0, (0,)), (5, 1, (1,)), (6, 0, (2,)), (7, 1, (3,))]


def test_without_held_out_data_there_is_no_evaluation() -> None:
    schedule = make_schedule(eval_sequences=0)
    assert schedule.eval_rounds == 0
    assert {turn.kind for turn in schedule.rounds()} == {"train"}


@given(schedules())
@settings(max_examples=150, deadline=None)
def test_every_row_of_a_step_is_read_exactly_once(schedule: Schedule) -> None:
    items = list(schedule.items())
    order = schedule.order()
    for step in range(schedule.steps):
        of_step = [item for item in items if item.kind == "train" and item.step == step]
        assert len(of_step) == schedule.accumulation * schedule.students
        assert [row for item in of_step for row in item.rows] == order.rows(step).tolist()
        assert all(len(item.rows) == schedule.micro_batch_size for item in of_step)


@given(schedules())
@settings(max_examples=150, deadline=None)
def test_evaluations_come_first_when_due_and_last_and_read_all_held_out_rows_in_order(schedule: Schedule) -> None:
    items = list(schedule.items())
    evaluated = [item for item in items if item.kind == "eval"]
    due = {step for step in range(schedule.steps + 1) if step % schedule.eval_every_steps == 0} | {schedule.steps}
    if not schedule.eval_sequences:
        assert not evaluated
        return
    assert {item.step for item in evaluated} == due
    for step in due:
        of_step = [item for item in evaluated if item.step == step]
        assert [row for item in of_step for row in item.rows] == list(range(schedule.eval_sequences))
        assert len(of_step) == schedule.students * ceil(
            schedule.eval_sequences / (schedule.students * schedule.micro_batch_size)
        )
    # Before an evaluation at `step` exactly that many steps were trained.
    for place, item in enumerate(items):
        if item.kind == "eval":
            assert {one.step for one in items[:place] if one.kind == "train"} == set(range(item.step))


@given(schedules(), st.data())
@settings(max_examples=150, deadline=None)
def test_rows_of_a_step_are_the_same_for_every_layout(schedule: Schedule, data: st.DataObject) -> None:
    batch = schedule.global_batch_size
    students = data.draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0]))
    micro = data.draw(st.sampled_from([n for n in range(1, batch // students + 1) if (batch // students) % n == 0]))
    values = {name: getattr(schedule, name) for name in Schedule.__dataclass_fields__}
    values |= {"students": students, "micro_batch_size": micro, "accumulation": batch // students // micro}
    other = Schedule(**values)
    assert other.global_batch_size == batch

    def sequences(one: Schedule) -> list[tuple[str, int, int]]:
        return [(item.kind, item.step, row) for item in one.items() for row in item.rows]

    assert sequences(schedule) == sequences(other)


@given(schedules())
@settings(max_examples=150, deadline=None)
def test_every_item_has_one_teacher_in_its_lane_and_one_student(schedule: Schedule) -> None:
    items = list(schedule.items())
    assert [item.number for item in items] == list(range(len(items)))
    by_teacher = [list(schedule.items_of_teacher(teacher)) for teacher in range(schedule.teachers)]
    by_student = [list(schedule.items_of_student(student)) for student in range(schedule.students)]
    for shares in (by_teacher, by_student):
        assert sorted((item for share in shares for item in share), key=lambda item: item.number) == items
        assert all([one.number for one in share] == sorted(one.number for one in share) for share in shares)
    lanes = gcd(schedule.teachers, schedule.students)
    assert all(item.teacher % lanes == item.student % lanes for item in items)
    assert all(item.teacher == teacher for teacher, share in enumerate(by_teacher) for item in share)


@given(schedules())
@settings(max_examples=150, deadline=None)
def test_teachers_have_equal_shares_but_for_one_item(schedule: Schedule) -> None:
    shares = [len(list(schedule.items_of_teacher(teacher))) for teacher in range(schedule.teachers)]
    assert max(shares) - min(shares) <= 1


@given(schedules(), st.data())
@settings(max_examples=150, deadline=None)
def test_resuming_gives_the_end_of_the_schedule(schedule: Schedule, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, schedule.steps))
    everything, rest = list(schedule.items()), list(schedule.items(start))
    assert rest == everything[len(everything) - len(rest) :]
    trained = [item.step for item in rest if item.kind == "train"]
    assert set(trained) == set(range(start, schedule.steps))
    student, teacher = (
        data.draw(st.integers(0, schedule.students - 1)),
        data.draw(st.integers(0, schedule.teachers - 1)),
    )
    assert list(schedule.items_of_student(student, start)) == [item for item in rest if item.student == student]
    assert list(schedule.items_of_teacher(teacher, start)) == [item for item in rest if item.teacher == teacher]
    # An evaluation that is due at the start is repeated: it may have been cut short.
    if schedule.eval_sequences and (start % schedule.eval_every_steps == 0 or start == schedule.steps):
        assert (rest[0].kind, rest[0].step) == ("eval", start)


@pytest.mark.parametrize(
    ("teachers", "students"), [(1, 1), (1, 3), (3, 1), (2, 4), (4, 2), (4, 6), (6, 4), (3, 3), (2, 3)]
)
def test_replicas_of_a_lane_take_turns(teachers: int, students: int) -> None:
    lanes = gcd(teachers, students)
    for lane in range(lanes):
        served = [
            serving_teacher(number, student, teachers, students)
            for number in range(12)
            for student in range(lane, students, lanes)
        ]
        replicas = list(range(lane, teachers, lanes))
        assert served == [replicas[i % len(replicas)] for i in range(len(served))]


# --- from the plan


def make_role(**changes: Any) -> RoleLayout:
    values = {
        "pool": "p", "partition": None, "nodes": 1, "gpus_per_node": 2, "gpus": 2, "replicas": 2, "fsdp": 1,
        "micro_batch_size": 3, "memory_gib": 1, "memory_limit_gib": 2, **changes,
    }  # fmt: skip
    return RoleLayout(**values)


def make_plan(teacher: RoleLayout, student: RoleLayout, placement: str, accumulation: int, batch: int) -> RunPlan:
    layout = Layout(
        placement=placement, launch=None, shares_nodes=True, teacher=teacher, student=student, payload="logits",
        payload_bytes_per_token=1, prefetch=1, nodes=1, gpus=4, global_batch_size=batch,
        grad_accumulation_steps=accumulation, step_seconds=Interval(p10=1, p50=1, p90=1), samples_per_second=1,
        tokens_per_second=1, gpu_hours=1, gpus_idle=0, teacher_seconds=1, student_seconds=1, transport_seconds=1,
        limited_by="student",
    )  # fmt: skip
    spec = {
        "teacher": {"model": "t"}, "student": {"model": "s"}, "data": {"train": "d", "shuffle": False},
        "training": {"steps": 7, "global_batch_size": batch, "eval_every_steps": 3, "seed": 11}, "cluster": "c",
    }  # fmt: skip
    cluster = {"scheduler": "local", "pools": [{"name": "p", "nodes": 1, "gpus_per_node": 4, "gpu": "CPU"}]}
    document = {"version": "0", "spec": spec, "cluster": cluster, "layout": layout.model_dump(), "tokens": None}
    return RunPlan.model_validate(document, strict=False)


def test_the_schedule_comes_from_the_plan() -> None:
    student = make_role(replicas=2, fsdp=2, gpus=4)
    schedule = schedule_of(make_plan(make_role(replicas=3, gpus=3), student, "disjoint", 2, 24), 50, 9)
    assert schedule == Schedule(
        steps=7, accumulation=2, micro_batch_size=3, students=4, teachers=3, train_sequences=50, eval_sequences=9,
        eval_every_steps=3, seed=11, shuffle=False,
    )  # fmt: skip


def test_colocated_every_rank_is_its_own_teacher() -> None:
    role = make_role(replicas=2, fsdp=2, gpus=4)
    schedule = schedule_of(make_plan(make_role(gpus=4, replicas=1, fsdp=4), role, "colocated", 1, 12), 50)
    assert all(item.teacher == item.student for item in schedule.items())


def test_a_layout_that_does_not_give_the_global_batch_is_refused() -> None:
    with pytest.raises(SpecError, match=r"give 6 sequences per step, but training\.global_batch_size is 8; plan again"):
        schedule_of(make_plan(make_role(), make_role(), "disjoint", 1, 8), 50)

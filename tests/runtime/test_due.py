"""When checkpoints are due: also while one is being written, and after one that could not be."""

from collections.abc import Callable

from kd_launch.runtime.checkpoint.due import Due


def begun(every: int, steps: int, writes: int, fails: Callable[[int], bool] = lambda _: False) -> list[int]:
    """After which steps a checkpoint begins, each of which takes `writes` steps and fails if begun where `fails`."""
    due, found = Due(every), list[int]()
    for done in range(1, steps + 1):
        saving = bool(found) and done < found[-1] + writes
        if due.after(done, saving, bool(found) and not saving and fails(found[-1])):
            found.append(done)
    return found


def test_every_so_many_steps() -> None:
    assert begun(4, 20, 1) == [4, 8, 12, 16, 20]


def test_one_that_is_still_written_puts_off_the_next() -> None:
    assert begun(4, 20, 6) == [4, 10, 16]


def test_one_that_takes_longer_than_the_interval_is_known_for_it() -> None:
    due = Due(4)
    assert [done for done in range(1, 12) if due.after(done, 4 < done < 10, False) or due.takes_longer(done)] == [
        4,
        8,
        9,
        10,
    ]
    assert not due.takes_longer(11)


def test_a_disk_that_was_full_for_a_moment_is_asked_again_at_once() -> None:
    assert begun(10, 40, 1, lambda step: step == 10) == [10, 11, 20, 30, 40]
    assert begun(10, 30, 2, lambda step: step < 14) == [10, 12, 15, 20, 30]


def test_a_disk_that_stays_full_is_asked_ever_less() -> None:
    assert begun(100, 400, 1, lambda _: True) == [100, 101, 103, 107, 115, 131, 163, 200, 300, 400]


def test_all_is_well_again_after_one_that_was_written() -> None:
    assert begun(10, 60, 1, lambda step: step in (10, 11, 13, 40)) == [10, 11, 13, 17, 20, 30, 40, 41, 50, 60]

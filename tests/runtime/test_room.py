"""What is finished is not lost to a disk that is full just then."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.room import write_patiently

FULL = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
PATH = Path("/runs/r/model")


def written(errors: list[Exception]) -> tuple[float, Progress]:
    """How long it took to write what fails with one error after the other."""
    now, progress, left = [0.0], Progress("steps"), list(errors)

    def write() -> None:
        if left:
            raise left.pop(0)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock: Callable[[], float] = lambda: now[0]  # noqa: E731 - a clock
    write_patiently(PATH, write, progress, clock, sleep)
    return now[0], progress


def test_it_is_tried_again_until_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    took, progress = written([FULL, OSError(122, "Disk quota exceeded"), FULL])
    assert took == 60
    assert progress.moved > 0  # whoever watches does not take it for a rank that hangs
    assert capsys.readouterr().err.count(f"warning: {PATH}: No space left on device; what is finished stays in") == 1


def test_not_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        written([FULL] * 1000)
    assert (caught.value.errno, caught.value.filename) == (28, str(PATH))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_does_not_pass_is_raised_at_once() -> None:
    with pytest.raises(OSError, match="no tokenizer"):
        written([OSError("no tokenizer")])
    with pytest.raises(OSError, match="a tensor is missing"):
        written([SafetensorError("a tensor is missing")])

"""A student is told to leave while its teacher is some micro-batches ahead: all leave in order, none sees a failure."""

import json
from pathlib import Path

import pytest

from tests.runtime.conftest import Material
from tests.runtime.harness import make_layout, make_run, start_ranks
from tests.runtime.test_layout_invariance import WORKER

STEPS = 3


@pytest.mark.parametrize(("where", "word", "done"), [("first", "TERM", 0), ("last", "USR2", STEPS - 1)])
@pytest.mark.parametrize("depth", [1, 4, 8])
def test_all_leave_in_order_however_far_the_teacher_is_ahead(
    tmp_path: Path, material: Material, depth: int, where: str, word: str, done: int
) -> None:
    layout = make_layout(teachers=1, replicas=1, fsdp=2, micro_batch=1, accumulation=2, prefetch=depth)
    run = make_run(tmp_path / "run", layout, material.teacher, material.student, material.tokens,
                   training__steps=STEPS)  # fmt: skip
    ranks = start_ranks(run, layout, (WORKER, f"told_in_the_{where}_step"))
    assert ranks.wait(120) == [0, 0, 0], ranks.outputs()
    leave = json.loads(run.leave_record(1).read_text())
    assert (leave["signal"], leave["rank"]) == (word, 1)
    assert run.checkpoint_steps() == ([done] if done else [])
    assert not run.failure(1).exists()
    said = ranks.outputs().lower()
    assert "connection" not in said
    assert "error" not in said, said

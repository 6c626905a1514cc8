"""What people see of a run on Slurm: one run in every state, and the list."""

from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_folders import write_record
from slurm_runs import NOW, SILENT, accounted, beats, end, failed, make_slurm_run, queued

from kd_launch.cli.display import runs_table, status_view
from kd_launch.cli.status_text import attempt_lines, headlines, in_short
from kd_launch.runs.facts import Facts, gather
from kd_launch.runs.slurm_status import Asked
from kd_launch.runs.status import Status, build

STEP = {"step": 412, "loss": 2.3456, "tokens_per_second": 123456.0, "step_seconds": 1.5, "attempt": 1}
BOTH_RUN = queued("30+0|RUNNING|None|big[1-2]", "30+1|RUNNING|None|small1")


def at(seconds: float) -> str:
    """A moment so long after NOW, as Slurm writes it."""
    return datetime.fromtimestamp(NOW + seconds).strftime("%Y-%m-%dT%H:%M:%S")


def looked_at(folder: Path, asked: Asked, **records: Any) -> tuple[Facts, Status]:
    facts = gather(make_slurm_run(folder / "chat-1", **records), NOW)
    return facts, build(facts, asked)


def shown(renderable: Any, width: int = 80) -> list[str]:
    out = Console(file=StringIO(), width=width, markup=False, highlight=False, emoji=False)
    out.print(renderable)
    assert isinstance(out.file, StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def view(folder: Path, asked: Asked, **records: Any) -> list[str]:
    lines = shown(status_view(*looked_at(folder, asked, **records)), 200)
    assert lines.pop().startswith("folder: ")
    return lines


def test_a_waiting_run(tmp_path: Path) -> None:
    asked = queued(f"30+0|PENDING|Priority||{at(4000)}", f"30+1|PENDING|Resources||{at(3000)}")
    lines = view(tmp_path, asked, attempts=0)
    assert lines == [
        "chat-1  PENDING  job 30  no attempt yet",
        "waits: other jobs come first (Priority); its nodes are busy (Resources)",
        f"starts about {at(4000)[11:16]}, in 1:06:40",
        "role     job   state",
        "teacher  30+0  PENDING",
        "student  30+1  PENDING",
    ]


def test_a_running_run(tmp_path: Path) -> None:
    heartbeats = beats(1)
    heartbeats[0]["waiting_for"] = "rank 4 to take micro-batch 12"
    assert view(tmp_path, BOTH_RUN, heartbeats=heartbeats, metrics=[STEP]) == [
        "chat-1  RUNNING  job 30  attempt 1",
        "step 412 of 1000, loss 2.3456, 123,456 tokens/s, about 0:14:42 left",
        "step time 1.5 s, predicted 1 s: 1.50 times as long, outside its 1 to 1 s",
        "role     job   state    nodes     done            sign of life",
        "teacher  30+0  RUNNING  big[1-2]  16 of 40 steps  1 s ago, 4 ranks",
        "student  30+1  RUNNING  small1    4 of 10 steps   1 s ago, 2 ranks",
        "teacher waits for rank 4 to take micro-batch 12",
    ]


def test_a_run_between_attempts_tells_what_became_of_the_last_and_how_it_goes_on(tmp_path: Path) -> None:
    why = "teacher rank 2 on big2 (silent): no sign of life for 60 s; requeued"
    lines = view(
        tmp_path, queued("30+0|PENDING|Resources", "30+1|PENDING|Resources"),
        metrics=[STEP], heartbeats=beats(200), end=end("requeue", "failed", why), failure=failed("silent"),
    )  # fmt: skip
    assert lines == [
        "chat-1  PENDING  job 30  attempt 1",
        "waits: its nodes are busy (Resources)",
        "attempt 1 reached step 412 of 1000",
        "role     job   state",
        "teacher  30+0  PENDING",
        "student  30+1  PENDING",
        f"attempt 1, 0:13:20: {why}",
        "to let it start: scontrol update JobId=30+0 ExcNodeList=big2",
    ]


def test_a_run_that_failed_says_so_once(tmp_path: Path) -> None:
    lines = view(
        tmp_path, accounted("30+0|FAILED|big[1-2]", "30+1|FAILED|small1"),
        end=end("fail", "failed", "student rank 4 on small1 (raised): ValueError: no; the next attempt would too"),
        failure=failed("raised", 4, "small1", "ValueError: no"),
    )  # fmt: skip
    assert lines == [
        "chat-1  FAILED  job 30  attempt 1",
        "role     job   state   nodes",
        "teacher  30+0  FAILED  big[1-2]",
        "student  30+1  FAILED  small1",
        "first failure: student rank 4 on small1 (attempt 1, raised): ValueError: no",
    ]


def test_a_component_with_a_state_of_its_own_tells_why(tmp_path: Path) -> None:
    lines = view(tmp_path, queued("30+0|COMPLETING|None|big2", "30+1|TIMEOUT|TimeLimit|small1"))
    assert lines[-2:] == [
        "teacher: Slurm ends it (COMPLETING)", "student: its time limit is reached (TimeLimit)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "no step yet: ranks meet"),
        ({"phase": "loading"}, "no step yet: models are loaded"),
        ({"phase": "training"}, "no step yet"),
        ({"phase": "of another version"}, "no step yet"),
    ],
)
def test_before_the_first_step_the_slowest_rank_is_told(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    phases = [{"phase": "training"}, {"phase": "joining", **changes}, *[{"phase": "training"}] * 4]
    heartbeats = [{**beat, **phase} for beat, phase in zip(beats(1), phases, strict=True)]
    assert headlines(*looked_at(tmp_path, BOTH_RUN, heartbeats=heartbeats)) == [words]


def test_ranks_that_are_missing_are_counted(tmp_path: Path) -> None:
    lines = view(tmp_path, BOTH_RUN, heartbeats=beats(1)[:3])
    assert lines[1] == "no step yet: 3 of 6 ranks have started"
    assert lines[3].endswith("1 s ago, 3 of 4 ranks")


def test_of_many_attempts_the_first_are_only_counted(tmp_path: Path) -> None:
    run = make_slurm_run(tmp_path / "chat-1", attempts=6)
    for attempt in range(1, 6):
        write_record(run, "end", end("requeue", "preempted", f"it left after step {attempt}"), attempt)
    lines = attempt_lines(build(gather(run, NOW), BOTH_RUN))
    assert lines == ["2 earlier attempts", *(f"attempt {n}: it left after step {n}" for n in (3, 4, 5))]


def statuses(folder: Path) -> list[Status]:
    found = [
        looked_at(folder / "a", queued(f"30+0|PENDING|Resources||{at(600)}", "30+1|PENDING|Resources"), attempts=0),
        looked_at(folder / "b", BOTH_RUN, metrics=[STEP], heartbeats=beats(1)),
        looked_at(folder / "c", SILENT),
        looked_at(folder / "d", queued("30+0|COMPLETING|None|big2", "30+1|TIMEOUT|TimeLimit|small1")),
    ]
    return [status for _, status in found]


def test_the_reason_in_short(tmp_path: Path) -> None:
    assert [in_short(status, NOW) for status in statuses(tmp_path)] == [
        f"starts about {at(600)[11:16]}, in 0:10:00; Resources", "",
        "Slurm does not answer: squeue gave no answer within 30 s", "TimeLimit",
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "figures"), [(80, False), (120, True)])
def test_a_list_keeps_its_columns_in_any_window(tmp_path: Path, width: int, figures: bool) -> None:
    found = statuses(tmp_path)
    found += [found[0].model_copy(update={"run": "qwen3-14b-to-1.7b-20270115-080000"})]
    lines = shown(runs_table(found, NOW, width), width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 6
    assert [line.split()[1] for line in lines] == ["state", "PENDING", "RUNNING", "UNKNOWN", "TIMEOUT", "PENDING"]
    assert ("0:14:42" in lines[2]) is figures

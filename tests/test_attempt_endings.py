"""srun's words, as 22.05 has written them on a real cluster, and the first failure that they tell of."""

from typing import Any

import pytest
from render_cases import layout_of, role

from kd_launch.attempt.endings import Evidence, first_failure, told_to_leave, unheard_hosts
from kd_launch.attempt.failures import FailureRecord
from kd_launch.attempt.place import Place, Seats
from kd_launch.attempt.srun_log import read_srun_log
from kd_launch.plan import Launch
from kd_launch.runs.records import Heartbeat

EXIT_CODE = """\
srun: error: t1: task 1: Exited with exit code 7
srun: launch/slurm: _step_signal: Terminating StepId=1.0
srun: launch/slurm: _step_signal: Terminating StepId=2.0
srun: error: t1: task 0: Terminated
srun: error: t2: tasks 2-3: Terminated
srun: Force Terminated StepId=1.0
srun: error: s1: tasks 0-1: Terminated
srun: Force Terminated StepId=2.0
"""
KILLED = """\
srun: error: s1: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=5.0
srun: Force Terminated StepId=6.0
"""
SETUP = "srun: error: s1: tasks 0-1: Exited with exit code 2\n"
SHELL = "srun: error: s1: task 0: Exited with exit code 137\n"
CORE = "srun: error: t2: task 2: Segmentation fault (core dumped)\n"
MEMORY = "srun: error: t1: task 0: Out Of Memory\n"
PREEMPTED = "srun: error: t2: task 3: Terminated\nsrun: error: t2: task 2: Exited with exit code 1\n"
TOLD_TO_END = """\
srun: forcing job termination
srun: Job step aborted: Waiting up to 32 seconds for job step to finish.
srun: error: t1: tasks 0-1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=32.0
srun: error: s1: tasks 0-1: Killed
srun: error: Timed out waiting for job step to complete
"""
LEFT_ALONE = """\
srun: First task exited 60s ago
srun: StepId=42.0 tasks 0-1: exited
srun: StepId=41.0 tasks 0-3: running
srun: error: t1: tasks 0-1: Killed
"""
NODE_FAILED = (
    "srun: error: Node failure on s1\nsrun: Job step aborted: Waiting up to 7 seconds for job step to finish.\n"
)
NOT_LAUNCHED = """\
srun: error: Task launch for StepId=48.0 failed on node s1: Communication connection failure
srun: error: Application launch failed: Communication connection failure
srun: Job step aborted
"""
REFUSED = "srun: error: Only allocated 1 nodes asked for 3\n"
DUPLICATE = "srun: error: Unable to create step for job 8: Duplicate job step id\n"

PLACE = Place("1", ("1", "2"), 0, "t1", (("t1", "t2"), ("s1",)), (2, 2))
ONE_COMPONENT = Place("1", ("1",), 0, "n1", (("n1", "n2", "n3"),), (2,))


def seats(launch: Launch = "hetjob", place: Place = PLACE) -> Seats:
    """Teachers 0 to 3 on two nodes, students 4 and 5 on one."""
    return Seats(layout_of(launch, role("a", 2, 2), role("b", 1, 2)), place)


def beat(rank: int, ended: str | None = None, time: float = 100.0) -> Heartbeat:
    who = {"rank": rank, "role": "any", "host": seats().host_of(rank), "time": time, "attempt": 1}
    return Heartbeat.model_validate({**who, "done": 0, "total": 1, "unit": "steps", "ended": ended})


def evidence(text: str, **changes: Any) -> Evidence:
    beats = {rank: beat(rank) for rank in range(6)}
    known = {"attempt": 1, "srun_status": 143, "heartbeats": beats, "record": None, "seats": seats(), "now": 200.0}
    return Evidence(**{**known, "srun_log": read_srun_log(text), "last_words": lambda _: "", **changes})


def record(kind: Any, rank: int = 0) -> FailureRecord:
    return FailureRecord(attempt=1, kind=kind, role="teacher", rank=rank, host="t1", error="x", time=1.0)


@pytest.mark.parametrize(
    ("text", "kind", "role_name", "rank", "host", "words"),
    [
        (EXIT_CODE, "exited", "teacher", 1, "t1", "ended by itself with exit code 7"),
        (KILLED, "killed", "student", 5, "s1", "killed by signal 9 (SIGKILL)"),
        (SHELL, "killed", "student", 4, "s1", "killed by signal 9 (SIGKILL), told by its exit code 137"),
        (SETUP, "exited", "student", 4, "s1", "ended by itself with exit code 2"),
        (CORE, "killed", "teacher", 2, "t2", "killed by signal 11 (SIGSEGV)"),
        (MEMORY, "killed", "teacher", 0, "t1", "killed: Out Of Memory"),
        (NODE_FAILED, "silent", "student", 4, "s1", "srun lost its node: Node failure on s1"),
    ],
)
def test_the_first_to_die_is_named(text: str, kind: str, role_name: str, rank: int, host: str, words: str) -> None:
    found = first_failure(evidence(text))
    assert found is not None
    assert (found.kind, found.role, found.rank, found.host, found.error) == (kind, role_name, rank, host, words)
    assert found.time == 100.0


def test_tasks_are_numbered_within_each_part_and_through_in_one_step() -> None:
    text = "srun: error: {}: task 1: Killed\n"
    for launch, place, host, rank in (
        ("two_steps", PLACE, "s1", 5),
        ("hetstep", ONE_COMPONENT, "n2", 1),
        ("hetstep", ONE_COMPONENT, "n3", 5),
    ):
        found = first_failure(evidence(text.format(host), seats=seats(launch, place)))
        assert found is not None
        assert found.rank == rank
    found = first_failure(evidence("srun: error: n3: task 4: Killed\n", seats=seats("ranks", ONE_COMPONENT)))
    assert found is not None
    assert (found.rank, found.role, found.host) == (4, "student", "n3")


def test_of_ranks_that_srun_names_together_the_one_without_a_last_word_died_first() -> None:
    text = "srun: error: t2: tasks 2-3: Exited with exit code 1\n"
    beats = {2: beat(2, "lost_peer"), 3: beat(3)}
    found = first_failure(evidence(text, heartbeats=beats))
    assert found is not None
    assert found.rank == 3


def test_a_rank_that_ended_by_itself_is_quoted() -> None:
    found = first_failure(evidence(SETUP, heartbeats={}, last_words=lambda rank: f"{rank}: no such module"))
    assert found is not None
    assert found.error == "ended by itself with exit code 2; its last line: 4: no such module"
    assert found.time == 200.0


def test_a_record_that_explains_the_end_stays() -> None:
    assert first_failure(evidence(KILLED, record=record("raised"))) is None
    found = first_failure(evidence(KILLED, record=record("lost_peer")))
    assert found is not None
    assert (found.kind, found.rank) == ("killed", 5)


def test_who_only_lost_a_peer_is_not_blamed_for_it() -> None:
    """Rank 2's node is gone: srun saw no end of it."""
    text = "srun: error: t1: tasks 0-1: Exited with exit code 1\nsrun: error: s1: tasks 0-1: Exited with exit code 1\n"
    beats = {rank: beat(rank, "lost_peer") for rank in (0, 1, 4, 5)} | {2: beat(2, time=90), 3: beat(3, time=91)}
    found = first_failure(evidence(text, heartbeats=beats, record=record("lost_peer")))
    assert found is not None
    assert (found.kind, found.rank, found.host, found.time) == ("silent", 2, "t2", 90)


@pytest.mark.parametrize(("last_word", "kind"), [("raised", "raised"), ("orphaned", "orphaned")])
def test_a_last_word_without_a_record_counts(last_word: str, kind: str) -> None:
    text = "srun: error: t1: task 0: Exited with exit code 1\n"
    found = first_failure(evidence(text, heartbeats={0: beat(0, last_word)}))
    assert found is not None
    assert found.kind == kind


def test_ranks_that_terminated_were_told_to_leave_and_did_not_fail() -> None:
    assert first_failure(evidence(PREEMPTED)) is None
    told = told_to_leave(evidence(PREEMPTED))
    assert told is not None
    assert told.name == "SIGTERM"
    assert told_to_leave(evidence(EXIT_CODE)) is None
    assert told_to_leave(evidence(PREEMPTED, record=record("raised"))) is None


@pytest.mark.parametrize("text", [TOLD_TO_END, LEFT_ALONE])
def test_what_srun_itself_ended_did_not_die_first(text: str) -> None:
    assert read_srun_log(text).first_death is None


def test_nothing_failed_where_srun_ended_well() -> None:
    assert first_failure(evidence("", srun_status=0)) is None


@pytest.mark.parametrize(("text", "kind"), [(REFUSED, "exited"), (DUPLICATE, "absent"), (NOT_LAUNCHED, "absent")])
def test_a_step_that_did_not_start_comes_back_unless_it_never_can(text: str, kind: str) -> None:
    found = first_failure(evidence(text, heartbeats={}, srun_status=1))
    assert found is not None
    assert found.kind == kind


def test_while_srun_runs_only_a_death_is_known() -> None:
    assert first_failure(evidence("", srun_status=None)) is None
    assert first_failure(evidence(DUPLICATE, srun_status=None, heartbeats={})) is None
    assert first_failure(evidence(KILLED, srun_status=None)) is not None


def test_an_srun_that_was_killed_itself_is_said() -> None:
    found = first_failure(evidence("", srun_status=137))
    assert found is not None
    assert (found.kind, found.error) == ("killed", "srun ended with exit code 137")


def test_nodes_of_which_nobody_told_an_end() -> None:
    assert unheard_hosts(evidence(TOLD_TO_END)) == ["t2"]
    beats = {2: beat(2, "TERM")}
    assert unheard_hosts(evidence(TOLD_TO_END, heartbeats=beats)) == []


def test_lines_that_are_torn_or_of_another_kind_are_passed_over() -> None:
    log = read_srun_log(
        "srun: error: t1: task 1: Exi\nsrun: error: t1: task x: Killed\n0: slurmstepd-t1: error: no\n\n"
    )
    assert [death.words for death in log.deaths] == ["Exi"]
    assert read_srun_log("srun: error: t[1-2],s1: tasks 0-1,4: Killed").deaths[2].host == "s1"
    assert read_srun_log("srun: error: t1: tasks 0-1,4: Killed").deaths[0].tasks == (0, 1, 4)

"""Each launcher's variables, Slurm's as a real Slurm set them, and the place in the plan's world that follows."""

import json
from pathlib import Path
from typing import Any

import pytest

from kd_launch.errors import SpecError
from kd_launch.plan import Layout, Role
from kd_launch.runtime.environment import Environment, expand_tasks_per_node, guess_environment, read_environment
from kd_launch.runtime.place import take_place
from tests.runtime.harness import make_layout

# Every rank's variables of real job steps (22.05): teacher nodes ztea1 ztea2, student nodes astu1 astu2.
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("slurm_variables.json").read_text())
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "KD_LAUNCH_ATTEMPT": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_STEP_NODELIST": "astu1,ztea[1-2]", "SLURMD_NODENAME": "astu1",
}  # fmt: skip
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def recorded(step: str, **changes: str) -> list[dict[str, str]]:
    """The variables of each rank of a recorded step."""
    found = RECORDED[step]
    return [{**found["step"], **rank, "KD_LAUNCH_ATTEMPT": "1", **changes} for rank in found["ranks"]]


def places(step: str, **changes: str) -> list[tuple[int, int, int, int, str]]:
    found = [read_environment(variables) for variables in recorded(step, **changes)]
    return [(e.rank, e.world_size, e.local_rank, e.local_world_size, e.host) for e in found]


def test_torchrun_goes_before_submitit_before_slurm() -> None:
    local = {
        "SUBMITIT_LOCAL_GLOBALID": "2",
        "SUBMITIT_LOCAL_NTASKS": "3",
        "SUBMITIT_LOCAL_LOCALID": "2",
        "SUBMITIT_LOCAL_JOB_ID": "99",
    }
    assert read_environment({**SLURM, **local, **TORCHRUN}) == Environment("torchrun", 1, 4, 1, 2, 3)
    assert read_environment({**SLURM, **local}) == Environment("submitit", 2, 3, 2, 3, 3, launcher_pid=99)
    assert read_environment({}) == Environment("single", 0, 1, 0, 1, 1)
    assert read_environment(SLURM) == Environment("slurm", 5, 6, 1, 2, 3, host="astu1")


def test_every_rank_of_a_real_het_step_finds_its_place() -> None:
    assert places("hetjob") == [
        (0, 6, 0, 2, "ztea1"), (1, 6, 1, 2, "ztea1"), (2, 6, 0, 2, "ztea2"), (3, 6, 1, 2, "ztea2"),
        (4, 6, 0, 2, "astu1"), (5, 6, 1, 2, "astu1"),
    ]  # fmt: skip
    assert places("hetstep") == [(0, 3, 0, 2, "ztea1"), (1, 3, 1, 2, "ztea1"), (2, 3, 0, 1, "ztea2")]
    assert places("ranks uneven")[3:] == [(3, 5, 3, 4, "ztea1"), (4, 5, 0, 1, "ztea2")]


@pytest.mark.parametrize("step", RECORDED)
@pytest.mark.parametrize("gtids", [True, False])
def test_the_local_world_size_is_the_number_of_ranks_on_the_node_also_where_a_script_unsets_gtids(
    step: str, gtids: bool
) -> None:
    found = places(step, **({} if gtids else {"SLURM_GTIDS": ""}))
    nodes = [host for *_, host in found]
    assert [size for *_, size, _ in found] == [nodes.count(host) for host in nodes]


def test_the_list_of_tasks_is_not_indexed_by_the_nodes_number() -> None:
    student = recorded("hetjob student first by name")[-1]
    assert (student["SLURM_STEP_TASKS_PER_NODE"], student["SLURM_NODEID"]) == ("1(x2),3(x2)", "3")
    assert read_environment(student).local_world_size == 1


def test_tasks_per_node() -> None:
    assert expand_tasks_per_node("4(x2),2") == [4, 4, 2]
    assert expand_tasks_per_node("3") == [3]


@pytest.mark.parametrize(("variables", "words"), [
    ({"RANK": "0"}, "WORLD_SIZE is not set"),
    ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is '-1' but must be a whole number"),
    ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 2 but WORLD_SIZE is 2"),
    ({"KD_LAUNCH_ATTEMPT": "one"}, "KD_LAUNCH_ATTEMPT is 'one'"),
    ({"KD_LAUNCH_ATTEMPT": "0"}, "KD_LAUNCH_ATTEMPT is 0; attempts count from 1"),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x"}, r"SLURM_STEP_TASKS_PER_NODE is '2\(x' but must be a list"),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2,1"}, "they do not tell how many ranks astu1 has"),
    ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_STEP_NODELIST": "a[x]"}, r"'a\[x\]', which is no list"),
    ({**SLURM, "SLURM_LOCALID": "2"}, "SLURM_LOCALID is 2 but astu1 has 2 ranks"),
    ({name: value for name, value in SLURM.items() if "STEP" not in name}, "but srun did not start it"),
    ({name: value for name, value in SLURM.items() if "ATTEMPT" not in name}, "give srun --export=ALL"),
])  # fmt: skip
def test_what_is_wrong_is_named(variables: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_environment(variables)


def test_a_process_with_wrong_variables_still_says_which_it_probably_is() -> None:
    guess = guess_environment({"SLURM_PROCID": "5", "KD_LAUNCH_ATTEMPT": "3"}, attempt=1)
    assert (guess.rank, guess.attempt) == (5, 3)
    guess = guess_environment({"SLURM_PROCID": "x", "KD_LAUNCH_ATTEMPT": "x"}, attempt=2)
    assert (guess.rank, guess.attempt) == (0, 2)


# The place in the plan


def layout(launch: str | None = "hetjob", teachers: int = 4, students: int = 2, colocated: bool = False) -> Layout:
    made = make_layout(teachers=teachers, replicas=students, micro_batch=1, accumulation=1, colocated=colocated)
    return made.model_copy(update={"launch": launch})


def taken(step: str, role: Role, plan: Layout, **changes: str) -> list[tuple[int, int]]:
    found = [take_place(read_environment(variables), plan, role) for variables in recorded(step, **changes)]
    return [(place.rank, place.world_size) for place in found]


def test_two_steps_are_one_world() -> None:
    plan = layout("two_steps")
    assert taken("two_steps teacher", Role.TEACHER, plan) == [(0, 6), (1, 6), (2, 6), (3, 6)]
    assert taken("two_steps student", Role.STUDENT, plan) == [(4, 6), (5, 6)]


@pytest.mark.parametrize(("step", "role", "plan", "words"), [
    ("two_steps student", Role.STUDENT, layout("two_steps", students=3),
     r"the student's job step has 2 ranks \(SLURM_NTASKS\) but the plan has 3 of its role"),
    ("two_steps student", Role.TEACHER, layout("two_steps"), "the teacher's job step has 2 ranks"),
    ("hetjob", Role.TEACHER, layout(teachers=3), "6 ranks were started but the plan has 5"),
    ("hetjob", Role.TEACHER, layout(teachers=3, students=3), "the het groups of this step have 4 and 2 ranks"),
    ("hetjob", Role.STUDENT, layout(), "rank 0 was started as student but the plan makes it teacher"),
    ("hetstep", Role.BOTH, layout(teachers=2, students=1), "rank 0 was started as both"),
])  # fmt: skip
def test_ranks_that_the_plan_does_not_have_are_refused(step: str, role: Role, plan: Layout, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        taken(step, role, plan)


def test_an_uneven_step_is_not_held_against_the_jobs_own_task_counts() -> None:
    ranks = recorded("hetjob uneven")
    assert ranks[0]["SLURM_NTASKS_HET_GROUP_0"] == "4"
    plan = layout(teachers=3)
    assert take_place(read_environment(ranks[0]), plan, Role.TEACHER).rank == 0
    assert take_place(read_environment(ranks[3]), plan, Role.STUDENT).rank == 3

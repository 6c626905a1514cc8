"""Each launcher's variables."""

import pytest

from kd_launch.errors import SpecError
from kd_launch.runtime.environment import Environment, expand_tasks_per_node, read_environment

SLURM = {"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "1", "SLURM_NODEID": "2"}


def test_torchrun_goes_before_submitit_before_slurm() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    local = {
        "SUBMITIT_LOCAL_GLOBALID": "2",
        "SUBMITIT_LOCAL_NTASKS": "3",
        "SUBMITIT_LOCAL_LOCALID": "2",
        "SUBMITIT_LOCAL_JOB_ID": "99",
    }
    assert read_environment({**SLURM, **local, **torchrun}) == Environment("torchrun", 1, 4, 1, 2, 1)
    assert read_environment({**SLURM, **local}) == Environment("submitit", 2, 3, 2, 3, 1, launcher_pid=99)
    assert read_environment({}) == Environment("single", 0, 1, 0, 1, 1)


def test_an_uneven_slurm_step_is_read_from_its_own_list_and_not_divided() -> None:
    variables = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "KD_LAUNCH_ATTEMPT": "3"}
    assert read_environment({**variables, "SLURM_NODEID": "1"}).local_world_size == 2
    assert read_environment(variables).local_world_size == 1
    assert read_environment(variables).attempt == 3


def test_tasks_per_node() -> None:
    assert expand_tasks_per_node("4(x2),2") == [4, 4, 2]
    assert expand_tasks_per_node("3") == [3]


@pytest.mark.parametrize(("variables", "words"), [
    ({"RANK": "0"}, "WORLD_SIZE is not set"),
    ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is '-1' but must be a whole number"),
    ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 2 but WORLD_SIZE is 2"),
    ({"KD_LAUNCH_ATTEMPT": "one"}, "KD_LAUNCH_ATTEMPT is 'one'"),
])  # fmt: skip
def test_what_is_wrong_is_named(variables: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_environment(variables)

"""What became of the runs of slow_failures, which began with the session; asked for last of all."""

from collections.abc import Mapping
from concurrent.futures import Future

import pytest

from tests.slurm.slow_failures import TRIALS
from tests.slurm.trials import Sent

pytestmark = pytest.mark.timeout(1200)
BY_US = [("failed", "requeue"), ("done", "done")]
BY_SLURM = [(None, None), ("done", "done")]
FATES = {"node of the student": BY_US, "slurmd of the student": BY_SLURM, "node of the batch script": BY_SLURM}


@pytest.mark.parametrize("name", TRIALS)
def test_with_slurms_own_timeouts_a_run_comes_back_once(slow: "Future[Mapping[str, Sent]]", name: str) -> None:
    one = slow.result()[name]
    assert set(one.states.values()) == {"COMPLETED"}, one.said()
    assert [(attempt.outcome, attempt.next) for attempt in one.attempts] == FATES[name], one.said()
    assert one.starts == 2, one.said()


def test_the_silent_rank_of_the_dead_node_is_named(slow: "Future[Mapping[str, Sent]]") -> None:
    failure = slow.result()["node of the student"].attempts[0].failure
    assert failure is not None
    assert (failure.kind, failure.role) == ("silent", "student")

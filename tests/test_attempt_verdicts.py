"""What a watcher makes of heartbeats, on its own clock."""

from collections.abc import Iterable
from typing import Any

import pytest
from render_cases import cluster_of, layout_of, pool, role

from kd_launch.attempt.verdicts import LOADING_S, Limits, Verdict, Watched, judge, limits_of, observe
from kd_launch.runs.records import Heartbeat

LIMITS = Limits(silent=60, absent=300, stalled=300)
STEP, COLLECTIVE = "student.py:88 step", "torch/distributed/distributed_c10d.py:2810 all_reduce"


def beat(rank: int, time: float, **changes: Any) -> Heartbeat:
    """`time` is of that rank's clock, which may be anything."""
    who = {"rank": rank, "role": "student", "host": f"n{rank // 2}", "time": time, "attempt": 1, "total": 9}
    return Heartbeat.model_validate({**who, "done": 0, "unit": "steps", "where": (STEP,), **changes})


class Watch:
    """Looks every two seconds."""

    def __init__(self, world_size: int = 4, trains: bool = True) -> None:
        self.watched, self.world_size, self.trains = Watched(), world_size, trains

    def look(self, seconds: float, beats: Iterable[Heartbeat]) -> Verdict | None:
        self.watched = observe(self.watched, beats, self.trains, seconds)
        return judge(self.watched, LIMITS, self.world_size)

    def last(self, until: float, beats: Any, start: float = 0.0) -> tuple[float, Verdict | None]:
        """When the first verdict came; `beats` makes the heartbeats of a moment."""
        seconds = start
        while seconds <= until:
            if (verdict := self.look(seconds, beats(seconds))) is not None:
                return seconds, verdict
            seconds += 2.0
        return seconds, None


def working(seconds: float, ranks: Iterable[int] = range(4), **changes: Any) -> list[Heartbeat]:
    return [beat(rank, seconds, done=int(seconds), **changes) for rank in ranks]


def test_a_run_that_works_is_left_alone() -> None:
    assert Watch().last(2000, working) == (2002, None)


def test_clocks_of_other_nodes_play_no_part() -> None:
    def strange(seconds: float) -> list[Heartbeat]:
        return [beat(rank, (-1) ** rank * 1e6 * rank + seconds, done=int(seconds)) for rank in range(4)]

    assert Watch().last(500, strange)[1] is None


def test_a_rank_without_a_sign_of_life_is_silent() -> None:
    def stopped(seconds: float) -> list[Heartbeat]:
        return [*working(seconds, (0, 1, 3)), beat(2, min(seconds, 100))]

    seconds, verdict = Watch().last(500, stopped)
    assert seconds == 162
    assert verdict == Verdict("silent", 2, "no sign of life for 62 s: stopped, or its node or slurmstepd is gone")


def test_of_a_dead_node_the_first_silent_rank_is_named_with_the_others() -> None:
    def dead(seconds: float) -> list[Heartbeat]:
        return [*working(seconds, (0, 1)), beat(2, min(seconds, 100)), beat(3, min(seconds, 100))]

    _, verdict = Watch().last(500, dead)
    assert verdict is not None
    assert verdict.rank == 2
    assert "nor of 1 more of n1" in verdict.error


def test_a_rank_that_has_said_its_last_word_is_not_silent() -> None:
    done = [beat(rank, 5, ended="done") for rank in range(4)]
    assert Watch().last(2000, lambda _: done)[1] is None


def test_a_rank_that_never_joins_is_absent_counted_from_the_first() -> None:
    watch = Watch(trains=False)
    assert watch.last(1000, lambda _: [])[1] is None
    seconds, verdict = watch.last(2000, lambda s: working(s, (0, 1)), start=1000)
    assert seconds == 1302
    assert verdict == Verdict("absent", 2, "has not joined (and 1 more) 302 s after the first rank began")


def test_ranks_of_which_none_ever_shows_up_are_absent_in_the_end() -> None:
    seconds, verdict = Watch(trains=False).last(4000, lambda _: [])
    assert seconds == LOADING_S + 2
    assert verdict is not None
    assert (verdict.kind, verdict.rank) == ("absent", 0)


def test_a_run_may_load_for_long_as_long_as_something_moves() -> None:
    def loading(seconds: float) -> list[Heartbeat]:
        return [beat(0, seconds, where=(f"models.py:{seconds // 900} load",)), *(beat(r, seconds) for r in (1, 2, 3))]

    assert Watch(trains=False).last(4000, loading)[1] is None
    seconds, verdict = Watch(trains=False).last(4000, lambda s: [beat(r, s) for r in range(4)])
    assert seconds == LOADING_S + 2
    assert verdict is not None
    assert verdict.kind == "stuck"


def stuck(culprit: dict[str, Any], others: dict[str, Any]) -> Verdict:
    """The verdict on a run whose rank 1 stops at 100 s for a reason of its own."""

    def beats(seconds: float) -> list[Heartbeat]:
        if seconds < 100:
            return working(seconds)
        waiting = [beat(rank, seconds, done=100, **others) for rank in (0, 2, 3)]
        return [*waiting, beat(1, seconds, done=99, **{name: made(seconds) for name, made in culprit.items()})]

    seconds, verdict = Watch().last(1000, beats)
    assert verdict is not None
    assert verdict.kind == "stuck"
    assert seconds == pytest.approx(402, abs=2)
    return verdict


def test_a_rank_that_never_entered_the_collective_is_named() -> None:
    verdict = stuck({"where": lambda _: ("hang.py:3 for_ever",)}, {"where": (COLLECTIVE, STEP)})
    assert verdict == Verdict(
        "stuck", 1,
        f"it never entered the collective that ranks 0, 2, 3 wait in for 302 s ({COLLECTIVE}): its main thread is at "
        "hang.py:3 for_ever",
    )  # fmt: skip


def test_so_is_one_in_an_endless_loop_whose_place_changes() -> None:
    verdict = stuck({"where": lambda s: (f"loop.py:{int(s) % 7} spin",)}, {"where": (COLLECTIVE, STEP)})
    assert verdict.rank == 1
    assert "never entered the collective" in verdict.error


def test_a_rank_that_does_not_return_while_others_wait_for_its_payload_is_named() -> None:
    verdict = stuck({"where": lambda _: ("hang.py:3 for_ever",)}, {"waiting_for": "the payload of micro-batch 7"})
    assert verdict.rank == 1
    assert verdict.error == (
        "its main thread has not returned from hang.py:3 for_ever for 302 s; rank 0 waits for the payload of "
        "micro-batch 7"
    )


def test_where_all_wait_the_first_to_stop_is_named() -> None:
    verdict = stuck({"where": lambda _: (COLLECTIVE,)}, {"where": (COLLECTIVE,)})
    assert "its main thread has not returned from torch/distributed" in verdict.error


@pytest.mark.parametrize("sign", ["moved", "since"])
def test_an_evaluation_or_a_wait_that_goes_on_is_progress(sign: str) -> None:
    assert Watch().last(2000, lambda s: [beat(r, s, done=5, **{sign: s}) for r in range(4)])[1] is None


def test_an_export_may_take_as_long_as_loading() -> None:
    seconds, verdict = Watch().last(4000, lambda s: [beat(r, s, done=9, phase="finishing") for r in range(4)])
    assert seconds == LOADING_S + 2
    assert verdict is not None


@pytest.mark.parametrize(("word", "after"), [("raised", 16), ("lost_peer", 16), ("orphaned", 0)])
def test_a_failed_rank_whose_srun_ends_nobody_is_enough(word: str, after: float) -> None:
    def beats(seconds: float) -> list[Heartbeat]:
        return [*working(seconds, (0, 2, 3)), beat(1, min(seconds, 100), ended=word if seconds >= 100 else None)]

    seconds, verdict = Watch().last(1000, beats)
    assert seconds == 100 + after
    assert verdict is not None
    assert (verdict.kind, verdict.rank) == (word, 1)


def test_a_rank_that_stays_when_others_have_left_is_named_after_sruns_own_patience() -> None:
    def beats(seconds: float) -> list[Heartbeat]:
        word = "TERM" if seconds >= 100 else None
        return [*working(seconds, (0,)), *(beat(r, min(seconds, 100), ended=word) for r in (1, 2, 3))]

    seconds, verdict = Watch().last(1000, beats)
    assert seconds == 176
    assert verdict is not None
    assert (verdict.kind, verdict.rank) == ("stuck", 0)
    assert "rank 1 ended (TERM) 76 s ago, but this rank stays" in verdict.error


def test_a_file_that_cannot_be_read_for_a_moment_is_no_end() -> None:
    watch = Watch()
    assert watch.last(100, working)[1] is None
    assert watch.last(150, lambda _: [], start=102)[1] is None
    assert watch.last(400, working, start=152)[1] is None


def test_limits_are_the_cluster_files_and_the_predictions() -> None:
    layout = layout_of("hetjob", role("h100", 1, 8), role("h100", 1, 8))
    slow = layout.model_copy(update={"step_seconds": layout.step_seconds.model_copy(update={"p50": 90.0})})
    cluster = cluster_of(pool("h100"), heartbeat_timeout_s=20.0)
    assert limits_of(cluster, layout) == Limits(silent=20, absent=100, stalled=300)
    assert limits_of(cluster, slow).stalled == 900
    assert limits_of(cluster_of(pool("h100"), stall_timeout_s=5.0), slow).stalled == 5

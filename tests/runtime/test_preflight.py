"""Before any weight is loaded: who does not come, who stops on the way, and where no data flows, named."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

from kd_launch.cluster import Cluster
from kd_launch.plan import Layout, Role
from kd_launch.run_dir import RunDir
from kd_launch.runtime.culprit import Spot, View
from kd_launch.runtime.departure import Departure
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.heartbeat import Beat, Heartbeat, Progress
from kd_launch.runtime.links import checks_of, rank_list
from kd_launch.runtime.meeting import MeetingError, meet, meeting_host
from kd_launch.runtime.preflight import Preflight, PreflightError
from tests.runtime.conftest import Material
from tests.runtime.harness import Ranks, make_layout, make_run, start_rank
from tests.runtime.test_failures import ONE_AND_ONE, failure, start
from tests.runtime.test_layout_invariance import wait_for

# Two teachers, and two replicas of two shards: ranks 0-1 and 2-5.
LAYOUT = make_layout(teachers=2, replicas=2, fsdp=2, micro_batch=1, accumulation=1)


def test_every_group_and_every_pair_that_will_exchange_data_is_tried_once() -> None:
    checks = [(check.kind, check.members) for check in checks_of(LAYOUT)]
    assert checks == [
        ("meeting", (0, 1, 2, 3, 4, 5)), ("groups", (0, 1, 2, 3, 4, 5)), ("students", (2, 3, 4, 5)),
        ("shard", (2, 3)), ("shard", (4, 5)), ("replicate", (2, 4)), ("replicate", (3, 5)),
        ("lane", (0, 2)), ("lane", (0, 4)), ("lane", (1, 3)), ("lane", (1, 5)),
    ]  # fmt: skip
    alone = make_layout(teachers=1, replicas=1, colocated=True, micro_batch=1, accumulation=1)
    assert [check.kind for check in checks_of(alone)] == ["meeting", "groups"]


@pytest.mark.parametrize(
    ("teachers", "replicas", "fsdp"), [(1, 1, 1), (3, 1, 2), (2, 3, 2), (5, 7, 1), (6, 2, 2), (4, 1, 6)]
)
def test_the_order_of_the_checks_cannot_deadlock(teachers: int, replicas: int, fsdp: int) -> None:
    layout = make_layout(teachers=teachers, replicas=replicas, fsdp=fsdp, micro_batch=1, accumulation=1)
    ahead = {rank: [check for check in checks_of(layout) if rank in check.members] for rank in range(layout.world_size)}
    while any(ahead.values()):
        ready = [mine[0] for mine in ahead.values() if mine and all(ahead[m][0] == mine[0] for m in mine[0].members)]
        assert ready, "every rank waits for another"
        for rank in ready[0].members:
            ahead[rank].pop(0)


# The judgement


def view(*, layout: Layout = LAYOUT, silent: tuple[int, ...] = (), **changes: Any) -> View:
    """After 60 s: every rank beat a second ago, `silent` ones long before."""
    beats = {
        rank: Beat(rank, layout.role_of(rank), f"node{rank}", 900 if rank in silent else 999, None, ("a.py:1 f",))
        for rank in range(layout.world_size)
    }
    return replace(View(layout, checks_of(layout), beats, 1000, 60, False), **changes)


def spots(check: int = 10, left: bool = True, **others: tuple[int, bool] | None) -> dict[int, Spot | None]:
    """Every rank in one check, but r3=(5, False) and so on."""
    found: dict[int, Spot | None] = {rank: Spot(check, left, f"node{rank}") for rank in range(6)}
    for name, value in others.items():
        found[int(name[1:])] = None if value is None else Spot(*value, f"node{name[1:]}")
    return found


def blamed(found: Any) -> tuple[str, int, str, str]:
    return found.kind, found.rank, str(found.role), found.host


def test_when_everybody_is_through_nobody_is_to_blame() -> None:
    assert view().culprit(spots()) is None


def test_who_has_not_come_is_absent_also_when_nothing_is_known_of_it() -> None:
    seen = view()
    found = seen.culprit(spots(0, False, r4=None, r5=None))
    assert found is not None
    assert blamed(found) == ("absent", 4, "student", "node4")
    assert "within 60 s, like rank 5: its last heartbeat, 1 s ago, found it at a.py:1 f" in found.error
    unseen = replace(seen, beats={rank: beat for rank, beat in seen.beats.items() if rank != 4})
    found = unseen.culprit(spots(0, False, r4=None, r5=None))
    assert found is not None
    assert found.host == "unknown"
    assert "no sign of life" in found.error


def test_who_has_no_heartbeat_any_more_is_silent_wherever_it_stopped() -> None:
    before, within = spots(3, False, r3=(2, True), r4=(5, False), r0=(7, False)), spots(3, False, r4=(4, True))
    for where in (before, within):
        found = view(silent=(3,)).culprit(where)
        assert found is not None
        assert blamed(found) == ("silent", 3, "student", "node3")
        assert "the first sum over ranks 2-3: its last heartbeat, 100 s ago" in found.error


def test_who_lives_but_does_not_come_is_stuck_and_not_the_one_that_waits_behind_it() -> None:
    # 0 waits for 2, which waits for 3, which has gone nowhere since the groups were made.
    found = view().culprit(spots(r0=(7, False), r2=(2, False), r3=(1, True), r4=(2, False), r5=(2, False)))
    assert found is not None
    assert blamed(found) == ("stuck", 3, "student", "node3")
    assert "did not come to the first sum over ranks 2-5 within 60 s" in found.error


@pytest.mark.parametrize(("trained_before", "kind"), [(False, "raised"), (True, "stuck")])
def test_where_all_came_and_nothing_flows_both_ends_and_the_settings_are_named(trained_before: bool, kind: str) -> None:
    found = view(trained_before=trained_before).culprit(spots(r1=(10, False), r5=(10, False)))
    assert found is not None
    assert blamed(found) == (kind, 1, "teacher", "node1")
    assert "the first message from rank 1 to rank 5: all came" in found.error
    assert "between ranks 1 (teacher on node1), 5 (student on node5)" in found.error
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "host_suffix", "firewalls"):
        assert name in found.error


def test_a_store_that_does_not_answer_is_rank_0_missing_or_stopped_or_a_network_that_hides_it() -> None:
    assert blamed(view().unreachable(5, "node5", None)) == ("absent", 0, "teacher", "node0")
    assert blamed(view(silent=(0,)).unreachable(5, "node5", "a:1")) == ("silent", 0, "teacher", "node0")
    found = view().unreachable(5, "node5", "a:1")
    assert blamed(found) == ("raised", 5, "student", "node5")
    assert "at a:1" in found.error
    assert "host_suffix" in found.error


def test_ranks_in_words() -> None:
    assert rank_list([4, 5, 6, 9]) == "ranks 4-6, 9"


def test_a_sites_suffix_follows_the_name_of_the_node() -> None:
    pool = {"name": "p", "partition": "p", "nodes": 1, "gpus_per_node": 1, "gpu": "CPU"}
    cluster = Cluster.model_validate({"scheduler": "slurm", "pools": (pool,)})
    assert meeting_host(cluster, "n1.site.org") == "n1.site.org"
    suffixed = cluster.model_copy(update={"host_suffix": "i"})
    assert meeting_host(suffixed, "n1.site.org") == "n1i"


def test_two_runs_meet_on_one_node_at_once_each_in_its_own_store(tmp_path: Path) -> None:
    pool = {"name": "p", "nodes": 1, "gpus_per_node": 1, "gpu": "CPU"}
    cluster = Cluster.model_validate({"scheduler": "local", "pools": (pool,)})
    zero, one = Environment("single", 0, 2, 0, 2, 1), Environment("single", 1, 2, 1, 2, 1)
    runs = [RunDir(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        run.attempt(1).mkdir(parents=True)
    served = [meet(zero, run, cluster) for run in runs]
    came = [meet(one, run, cluster) for run in runs]
    assert len({address.port for _, address in served}) == 2
    for run, (store, _) in zip(runs, came, strict=True):
        store.set("run", run.name)
    assert [store.get("run") for store, _ in served] == [b"a", b"b"]


def test_the_store_of_another_job_on_the_same_port_is_refused_at_once(tmp_path: Path) -> None:
    pool = {"name": "p", "nodes": 1, "gpus_per_node": 1, "gpu": "CPU"}
    cluster = Cluster.model_validate({"scheduler": "local", "pools": (pool,)})
    ours, others = (RunDir(tmp_path / name) for name in ("ours", "others"))
    for run in (ours, others):
        run.attempt(1).mkdir(parents=True)
    _, address = meet(Environment("single", 0, 2, 0, 2, 1), others, cluster)
    stale = {"host": address.host, "port": address.port, "secret": "of ours", "node": "here"}
    ours.store_address(1).write_text(json.dumps(stale))
    with pytest.raises(MeetingError, match=f"the store at 127.0.0.1:{address.port} is not this attempt's"):
        meet(Environment("single", 1, 2, 1, 2, 1), ours, cluster)


def test_a_second_process_that_takes_itself_for_a_rank_is_refused(tmp_path: Path) -> None:
    pool = {"name": "p", "nodes": 1, "gpus_per_node": 1, "gpu": "CPU"}
    cluster = Cluster.model_validate({"scheduler": "local", "pools": (pool,)})
    place, run = Environment("single", 0, 1, 0, 1, 1), RunDir(tmp_path)
    run.attempt(1).mkdir(parents=True)
    layout = make_layout(teachers=1, replicas=1, colocated=True, micro_batch=1, accumulation=1)
    departure = Departure(run, place, Role.BOTH, Heartbeat(run, place, Role.BOTH, Progress("steps")), None)
    store, address = meet(place, run, cluster)
    first, second = (Preflight(run, place, layout, 60.0, departure, Progress("steps")) for _ in range(2))
    first.all_are_here(store, address)
    with pytest.raises(PreflightError, match=r"rank 0 on .*: another process of this attempt is this rank"):
        second.all_are_here(store, address)


# Real ranks


def test_a_rank_that_never_came_is_named_and_a_stray_process_is_not_it(tmp_path: Path, material: Material) -> None:
    layout = make_layout(**ONE_AND_ONE)
    run_dir = make_run(
        tmp_path / "run", layout, material.teacher, material.student, material.tokens, cluster__heartbeat_timeout_s=1.0
    )
    ranks = Ranks(run_dir, [start_rank(run_dir, layout, 0)])
    wait_for(run_dir.store_address(1).exists)
    address = json.loads(run_dir.store_address(1).read_text())
    assert run_dir.store_address(1).stat().st_mode & 0o77 == 0
    stray = TCPStore(address["host"], address["port"], is_master=False, timeout=timedelta(seconds=10))
    for key in ("come", "come/1"):
        stray.add(key, 1)
    for key, value in {"at/1": "0 0 here", "all": "1"}.items():
        stray.set(key, value)
    assert ranks.wait(60) == [1]
    record = failure(ranks)
    assert (record["kind"], record["role"], record["rank"]) == ("absent", "student", 1)
    assert "did not come to the meeting of all ranks within 5 s: it has given no sign of life" in record["error"]
    assert f"noticed by rank 0 on {json.loads(run_dir.heartbeat(0).read_text())['host']}" in record["error"]
    assert "kd_launch/runtime/preflight.py" in str(json.loads(run_dir.heartbeat(0).read_text())["where"])


def test_a_rank_that_came_and_stopped_before_its_lane_is_named(tmp_path: Path, material: Material) -> None:
    ranks = start(tmp_path / "run", material, "stop_before_the_lane", cluster__heartbeat_timeout_s=6.0)
    try:
        assert ranks.processes[0].wait(60) == 1
    finally:
        ranks.processes[1].kill()
    record = failure(ranks)
    assert (record["kind"], record["role"], record["rank"]) == ("silent", "student", 1)
    assert "the first message from rank 0 to rank 1" in record["error"]
    assert not ranks.run_dir.start_record(1).exists()

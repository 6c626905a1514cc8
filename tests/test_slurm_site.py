"""What Slurm says of a site, in the words of several versions, becomes values."""

import pytest
from recorded_site import RecordedSlurm, recorded, replaced

from kd_launch.cluster import SiteFacts
from kd_launch.errors import SlurmSilentError
from kd_launch.slurm.features import UnreadableConstraintError, satisfies
from kd_launch.slurm.fields import mib_of, parse_records, seconds_of, time_text
from kd_launch.slurm.gres import Gpus, has_gpus, parse_gres, parse_request
from kd_launch.slurm.inventory import Memory, fold, parse_nodes, parse_partitions, state_words, unfold
from kd_launch.slurm.limits import Limit, limits_in_force
from kd_launch.slurm.site import Config, ask_config, ask_site, site_facts


def test_the_partitions_of_the_test_cluster() -> None:
    partitions = {partition.name: partition for partition in parse_partitions(recorded("22.05-partitions"))}
    teach = partitions["teach"]
    assert (teach.state, teach.is_default, teach.max_time_s, teach.default_time_s) == ("UP", True, 86400, 1800)
    assert (teach.max_nodes, teach.allow_accounts, teach.qos, teach.default_memory) == (None, (), None, Memory())
    assert partitions["single"].max_nodes == 1
    assert (partitions["shut"].is_up, partitions["drained"].state, partitions["inactive"].state) == (
        False,
        "DRAIN",
        "INACTIVE",
    )
    assert (partitions["private"].allow_accounts, partitions["noteam"].deny_accounts) == (("other",), ("team",))
    assert (partitions["longest"].allow_qos, partitions["capped"].qos) == (("long",), "onenode")
    assert (partitions["groups"].allow_groups, partitions["root"].root_only) == (("daemon",), True)
    assert (partitions["hidden"].hidden, partitions["reserved"].needs_reservation) == (True, True)


def test_partitions_of_other_versions() -> None:
    (old,) = parse_partitions(recorded("20.11-partitions"))
    assert (old.max_time_s, old.allow_groups) == (3 * 86400, ("gabc", "wheel"))
    assert (old.default_memory, old.max_memory) == (Memory(per_cpu=800), Memory(per_node=3200))
    cpu, gpu = parse_partitions(recorded("25.11-partitions"))
    assert (cpu.name, cpu.max_time_s, cpu.default_time_s, cpu.whole_nodes) == ("cpu", None, None, False)
    assert (gpu.name, gpu.whole_nodes, gpu.is_default) == ("gpu", True, False)


def test_the_nodes_of_the_test_cluster() -> None:
    nodes = {node.name: node for node in parse_nodes(recorded("22.05-nodes"))}
    assert list(nodes) == ["c1", "c2", "s1", "s2", "t1", "t2"]
    assert (nodes["t1"].gpus, nodes["t1"].features) == ((Gpus("", 4),), ("a100", "ib"))
    assert (nodes["c1"].gpus, nodes["c1"].cpus, nodes["c1"].memory_mib) == ((), 8, 16000)
    assert "hidden" in nodes["t1"].partitions
    # The words of an administrator are no fields.
    assert nodes["s2"].states == {"IDLE", "DRAIN"}
    assert nodes["s2"].reason.startswith("bad disk")
    assert [name for name, node in nodes.items() if node.is_out()] == ["s2"]


def test_nodes_of_other_versions() -> None:
    (old,) = parse_nodes(recorded("21.08-nodes"))
    # Before 22.05 the cores and the memory that Slurm keeps have to be taken off.
    assert (old.cpus, old.memory_mib, old.gpus) == (60, 250000, (Gpus("a100", 4),))
    assert (old.features[-1], old.partitions, old.is_out()) == ("gpua100", ("interactive", "gpu"), False)
    (silent,) = parse_nodes(recorded("23.11-nodes"))
    assert (silent.gpus, silent.cpus, silent.is_out()) == ((Gpus("quadro_p1000", 1),), 20, True)
    assert silent.reason == "Not responding [slurm@2026-01-24T12:00:00]"
    first, second = parse_nodes(recorded("24.11-nodes"))
    assert (first.name, first.gpus, first.gpu_count) == ("worker-1", (Gpus("nvidia_h100_80gb_hbm3", 8),), 8)
    assert (second.states, second.is_out()) == ({"MIXED", "DYNAMIC_NORM", "PLANNED"}, False)


@pytest.mark.parametrize(
    ("text", "out"),
    [
        *(
            ("IDLE", False),
            ("MIXED+CLOUD", False),
            ("IDLE~", False),
            ("ALLOCATED#", False),
            ("IDLE+POWERED_DOWN", False),
        ),
        *(("DOWN*", True), ("IDLE*", True), ("MIXED+DRAIN", True), ("FUTURE", True), ("IDLE+MAINTENANCE", True)),
    ],
)
def test_states_of_nodes(text: str, out: bool) -> None:
    (node,) = parse_nodes(f"NodeName=a State={text}")
    assert node.is_out() is out


def test_a_reserved_node_is_one_for_who_has_the_reservation() -> None:
    (node,) = parse_nodes("NodeName=a State=IDLE+RESERVED")
    assert (node.is_out(), node.is_out(has_reservation=True)) == (True, False)
    assert state_words("DOWN+NOT_RESPONDING") == state_words("DOWN*")


@pytest.mark.parametrize("text", ["", "No nodes in the system", "slurm_load_node error: Invalid", "NodeName"])
def test_answers_without_a_record(text: str) -> None:
    assert parse_records(text, "NodeName") == []


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("(null)", ()),
        ("gpu:4", (Gpus("", 4),)),
        ("gpu", (Gpus("", 1),)),
        ("gpu:a100", (Gpus("a100", 1),)),
        ("gpu:a100:4(S:0-1),nvme:1,craynetwork:4", (Gpus("a100", 4),)),
        ("gpu:a100:4(S:0-3),gpu:a40:2(S:4-5),shard:a40:8", (Gpus("a100", 4), Gpus("a40", 2))),
        ("gpu:1g.5gb:7(S:0),gpu_mem:no_consume:32G", (Gpus("1g.5gb", 7),)),
    ],
)
def test_gpus_of_nodes(text: str, gpus: tuple[Gpus, ...]) -> None:
    assert parse_gres(text) == gpus


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("gpu:8", (Gpus("", 8),)),
        ("gres:gpu:a100:2", (Gpus("a100", 2),)),
        ("gres/gpu=2", (Gpus("", 2),)),
        ("nvme:1,gpu:a100=2", (Gpus("a100", 2),)),
        ("h100:4,a100:1", (Gpus("h100", 4), Gpus("a100", 1))),
        ("none", ()),
        ("nvme", ()),
    ],
)
def test_gpus_that_are_asked_for(text: str, gpus: tuple[Gpus, ...]) -> None:
    assert parse_request(text) == gpus


def test_a_node_with_the_gpus_of_a_request() -> None:
    node = parse_gres("gpu:A100:2,gpu:v100:2")
    assert has_gpus(node, [Gpus("", 4)])
    assert has_gpus(node, [Gpus("a100", 2)])
    assert not has_gpus(node, [Gpus("a100", 3)])
    assert not has_gpus(node, [Gpus("", 5)])


@pytest.mark.parametrize(
    ("constraint", "met"),
    [
        *(("a", True), ("x", False), ("a&b", True), ("a&x", False), ("x|a", True), ("x|a&b", True), ("a|b&x", False)),
        *(("[x|a]", True), ("(x|a)&b", True), ("(x|y)&b", False), ("[x*2&a*1]", True), ("x*2&y*4", False)),
        *(("[(x&a)*2]", False), ("(a&b)*2", True), (" a & b ", True)),
    ],
)
def test_constraints(constraint: str, met: bool) -> None:
    assert satisfies(["a", "b"], constraint) is met


@pytest.mark.parametrize("constraint", ["a&", "&a", "(a", "a)", "[]", "a b"])
def test_constraints_that_are_none(constraint: str) -> None:
    with pytest.raises(UnreadableConstraintError):
        satisfies(["a", "b"], constraint)


def test_times_and_memory() -> None:
    assert [seconds_of(text) for text in ("1-00:00:00", "30:00", "UNLIMITED", "NONE", "", "N/A", "soon")] == [
        *(86400, 1800),
        *[None] * 5,
    ]
    assert [time_text(seconds) for seconds in (600, 86400, 90061)] == ["00:10:00", "1-00:00:00", "1-01:01:01"]
    assert [mib_of(text) for text in ("4000", "1.5T", "512MB", "2GiB", "100Gn", "UNLIMITED", "(null)")] == [
        *(4000, 1.5 * 1024**2, 512, 2048, 102400),
        *(None, None),
    ]
    assert [unfold("gpu[1-3],x"), unfold("a["), fold({"n2", "n1"})] == [{"gpu1", "gpu2", "gpu3", "x"}, set(), "n[1-2]"]


# Configuration and facts


def test_the_configuration_of_the_test_cluster() -> None:
    config = ask_config(RecordedSlurm())
    assert (config.version, config.cluster_name) == ("22.05.8", "box")
    assert (config.hetjobs, config.hetjob_steps, config.requeues, config.counts_gpus) == (True,) * 4
    assert (config.enforces_associations, config.enforces_limits, config.memory_is_counted) == (True,) * 3
    assert (config.default_memory, config.plugins) == (Memory(per_cpu=500), "")


def test_the_configuration_of_25_11() -> None:
    config = ask_config(RecordedSlurm(config=lambda _: recorded("25.11-config")))
    assert (config.version, config.plugins, config.requeues) == ("25.11.4", "lua", True)
    assert (config.hetjobs, config.hetjob_steps, config.enforces_associations) == (True, True, False)


def test_what_a_site_may_rule_out() -> None:
    config = Config(
        {"SchedulerType": "sched/builtin", "SchedulerParameters": "a,disable_hetjob_steps", "JobRequeue": "0"}
    )
    assert (config.hetjobs, config.hetjob_steps, config.requeues) == (False, False, False)
    # Not what only begins so.
    assert Config({"SchedulerParameters": "disable_hetjob_steps_x"}).hetjob_steps
    assert not Config({"AccountingStorageEnforce": "associations"}).enforces_limits
    assert Config({"AccountingStorageEnforce": "safe"}).enforces_associations
    assert not Config({"SelectType": "select/cons_res"}).counts_gpus


def test_facts_for_the_plan() -> None:
    builtin = RecordedSlurm(config=replaced("sched/backfill", "sched/builtin"))
    assert site_facts(builtin) == SiteFacts(hetjobs=False, hetjob_steps=True)
    silent = RecordedSlurm()
    silent.silent["scontrol"] = "scontrol: error: Unable to contact slurm controller (connect failure)\n"
    facts = site_facts(silent)
    assert (facts.hetjobs, facts.hetjob_steps) == (None, None)
    assert facts.no_answer is not None
    assert "Unable to contact slurm controller" in facts.no_answer


# Accounts and limits


def test_the_accounting_of_the_test_cluster() -> None:
    accounting = RecordedSlurm().site().accounting
    assert accounting is not None
    assert (accounting.user, accounting.default_account) == ("kdbox", "team")
    assert set(accounting.accounts) == {"team", "poor", "tiny", "slow"}
    team, poor = accounting.association("TEAM", "teach"), accounting.association("poor", "teach")
    assert team is not None
    assert team.default_qos == "normal"
    assert "onenode" in team.qos
    assert poor is not None
    assert poor.limits == {("job", "wall"): 600, ("user", "jobs"): 2}
    assert accounting.association("other", "teach") is None
    assert accounting.qos["twoeach"].limits == {("user", "node"): 2}
    assert accounting.qos["many"].limits == {("least", "node"): 2}
    assert accounting.qos["quick"].flags == {"denyonlimit"}
    tiny = accounting.association("tiny", None)
    assert tiny is not None
    assert [one.account for one in accounting.above(tiny)] == ["tiny", "tiny", "root"]


def test_an_association_for_one_partition_goes_before_one_for_all() -> None:
    more = "team|kdbox|gpu||long|long|||||||\n"
    accounting = RecordedSlurm(associations=lambda text: text + more).site().accounting
    assert accounting is not None
    there, elsewhere = accounting.association("team", "gpu"), accounting.association("team", "cpu")
    assert there is not None
    assert elsewhere is not None
    assert (there.default_qos, elsewhere.default_qos) == ("long", "normal")


def test_what_a_qos_limits_nothing_after_it_limits() -> None:
    accounting = RecordedSlurm().site().accounting
    assert accounting is not None
    association = accounting.association("poor", None)
    assert association is not None
    above = list(accounting.above(association))
    quick, onejob, onenode = (accounting.qos[name] for name in ("quick", "onejob", "onenode"))
    walls = {limit.amount for limit in limits_in_force([quick], above) if limit.what == "wall"}
    assert walls == {300}
    found = list(limits_in_force([onenode, onejob], above))
    assert Limit("job", "node", 1, "QOS onenode") in found
    assert Limit("job", "wall", 600, "kdbox in account poor") in found
    assert [limit.amount for limit in found if limit.what == "jobs"] == [1]


def test_limits_of_a_group_hold_for_every_account_above() -> None:
    more = "sub|kdbox|||normal||||cpu=4||||\n"
    slurm = RecordedSlurm(
        associations=lambda text: text + more,
        accounts=lambda text: text + "sub|||tiny|normal||||cpu=8||||\n",
    )
    accounting = slurm.site().accounting
    assert accounting is not None
    association = accounting.association("sub", None)
    assert association is not None
    found = [
        (limit.what, limit.amount, limit.owner) for limit in limits_in_force([], list(accounting.above(association)))
    ]
    assert found == [
        ("cpu", 4, "kdbox in account sub"),
        ("cpu", 8, "account sub"),
        ("node", 2, "account tiny"),
    ]


def test_a_site_without_accounting() -> None:
    slurm = RecordedSlurm()
    slurm.silent["sacctmgr"] = "sacctmgr: You are not running a supported accounting_storage plugin\n"
    site = ask_site(slurm)
    assert site.accounting is None
    assert "not running a supported accounting_storage" in site.no_accounting
    assert len(site.nodes) == 6


def test_a_controller_that_does_not_answer() -> None:
    slurm = RecordedSlurm()
    slurm.silent["scontrol"] = "slurm_load_ctl_conf error: Socket timed out on send/recv operation\n"
    with pytest.raises(SlurmSilentError, match="Socket timed out"):
        ask_site(slurm)

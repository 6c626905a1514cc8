"""Specs that are wrong in one way each: what check has to say to them, and what Slurm really does."""

from dataclasses import dataclass

from tests.slurm.box import Box
from tests.slurm.setup import USER, Nodes, Partition, Setup

# EnforcePartLimits=NO: sbatch takes more than it can ever start, so that a check matters most.
SITE = Setup(
    nodes=(Nodes("t", 2, gpus=4), Nodes("s", 2, gpus=2), Nodes("c", 2)),
    partitions=(
        Partition("teach", "t[1-2]", "Default=YES"),
        Partition("train", "s[1-2]"),
        Partition("both", "t[1-2],s[1-2]"),
        Partition("single", "t[1-2]", "MaxNodes=1"),
        Partition("pairs", "s[1-2]", "MinNodes=2"),
        Partition("short", "t[1-2]", "MaxTime=10 DefaultTime=5"),
        Partition("shut", "t[1-2]", "State=DOWN"),
        Partition("drained", "t[1-2]", "State=DRAIN"),
        Partition("inactive", "t[1-2]", "State=INACTIVE"),
        Partition("private", "t[1-2]", "AllowAccounts=other"),
        Partition("noteam", "t[1-2]", "DenyAccounts=team"),
        Partition("longest", "t[1-2]", "AllowQos=long"),
        Partition("groups", "t[1-2]", "AllowGroups=daemon"),
        Partition("root", "t[1-2]", "RootOnly=YES"),
        Partition("hidden", "t[1-2]", "Hidden=YES"),
        Partition("reserved", "t[1-2]", "ReqResv=YES"),
        Partition("capped", "t[1-2]"),
    ),
    enforce_limits="NO",
)
# What the accounting of every test cluster lacks. Accounts and QOS with limits, most of them on jobs of several nodes.
LIMITS = (
    ("add", "qos", "onenode", "set", "maxtresperjob=node=1"),
    ("add", "qos", "twonodes", "set", "grptres=node=2"),
    ("add", "qos", "twoeach", "set", "maxtresperuser=node=2"),
    ("add", "qos", "onejob", "set", "maxjobsperuser=1"),
    ("add", "qos", "fewgpus", "set", "maxtresperjob=gres/gpu=4"),
    ("add", "qos", "many", "set", "mintresperjob=node=2"),
    ("add", "account", "tiny", "cluster=box", "grptres=node=2"),
    ("add", "account", "slow", "cluster=box", "maxwall=00:05:00"),
    ("add", "user", USER, "cluster=box", "account=tiny,slow"),
    ("modify", "user", USER, "set", "qos=normal,long,quick,onenode,twonodes,twoeach,onejob,fewgpus,many"),
)
FEATURES = ("AvailableFeatures=a100,ib", "ActiveFeatures=a100,ib")


def prepare(box: Box) -> None:
    """Gives a cluster of SITE its limits, and the teacher's nodes features. Does nothing twice."""
    if box.ask("sacctmgr", "-nP", "show", "qos", "onenode", "format=name", as_root=True).strip():
        return
    for words in LIMITS:
        box.ask("sacctmgr", "-i", *words, as_root=True)
    box.ask("scontrol", "update", "NodeName=t[1-2]", *FEATURES, as_root=True)
    box.ask("scontrol", "update", "PartitionName=capped", "QOS=onenode", as_root=True)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    settings: tuple[str, ...]
    """Arguments of --set that bring it about."""
    what: str
    """The finding that fails."""
    says: str
    """Part of it."""
    refused: str | None = None
    """Part of sbatch's words; None: it takes the job, which then waits."""
    reason: str | None = None
    """Part of squeue's reason for one of the components, where that tells anything."""


def _teacher(setting: str) -> tuple[str, ...]:
    return (f"cluster.pools.0.{setting}",)


FAULTS = {
    "a partition that does not exist": Fault(
        _teacher("partition=teech"), "teacher: partition", "no partition here; did you mean 'teach'?",
        refused="invalid partition specified: teech",
    ),
    "a partition that is down": Fault(
        _teacher("partition=shut"), "teacher: partition", "shut is down", reason="PartitionDown",
    ),
    "a partition that is drained": Fault(
        _teacher("partition=drained"), "teacher: partition", "takes no new jobs",
        refused="Required partition not available",
    ),
    "a partition that is inactive": Fault(
        _teacher("partition=inactive"), "teacher: partition", "takes no jobs",
        refused="Required partition not available",
    ),
    "another account's partition": Fault(
        _teacher("partition=private"), "teacher: partition", "takes account other only (AllowAccounts), not team",
        reason="account not permitted",
    ),
    "a partition that refuses the account": Fault(
        _teacher("partition=noteam"), "teacher: partition", "refuses account team (DenyAccounts)",
        reason="account not permitted",
    ),
    "another QOS' partition": Fault(
        _teacher("partition=longest"), "teacher: partition", "takes QOS long only (AllowQos), not normal",
        reason="QOS not permitted",
    ),
    "another group's partition": Fault(
        _teacher("partition=groups"), "teacher: partition", "takes jobs of group daemon only",
        refused="User's group not permitted",
    ),
    "the administrator's partition": Fault(
        _teacher("partition=root"), "teacher: partition", "takes jobs of the administrator only",
        refused="Access/permission denied",
    ),
    "a partition for reservations": Fault(
        _teacher("partition=reserved"), "teacher: partition", "set slurm.reservation",
        refused="Access/permission denied",
    ),
    "more nodes than a partition gives a job": Fault(
        _teacher("partition=single"), "teacher: partition", "gives a job 1 nodes at most (MaxNodes)",
        reason="PartitionNodeLimit",
    ),
    "fewer nodes than a partition gives a job": Fault(
        ("cluster.pools.1.partition=pairs",), "student: partition", "gives a job 2 nodes at least (MinNodes)",
        reason="PartitionNodeLimit",
    ),
    "an account that does not exist": Fault(
        ("cluster.account=taem",), "teacher: account", "'taem' is no account of kdbox; did you mean 'team'?",
        refused="Invalid account",
    ),
    "somebody else's account": Fault(
        ("cluster.account=other",), "student: account", "'other' is no account of kdbox", refused="Invalid account",
    ),
    "a QOS that does not exist": Fault(
        ("slurm.qos=norml",), "teacher: qos", "'norml' is no QOS here; did you mean 'normal'?", refused="Invalid qos",
    ),
    "a QOS that is not allowed": Fault(
        _teacher("qos=foreign"), "teacher: qos", "QOS foreign is not allowed to kdbox in account team",
        refused="Invalid qos",
    ),
    "more time than a partition gives": Fault(
        (*_teacher("partition=short"), "slurm.time_limit='00:20:00'"), "teacher: time limit",
        "partition short gives 00:10:00 at most (MaxTime)", reason="PartitionTimeLimit",
    ),
    "more time than a QOS gives": Fault(
        ("slurm.qos=quick",), "student: time limit", "QOS quick gives 00:05:00 at most (MaxWall)",
        refused="Job violates accounting/QOS policy",
    ),
    "more time than an account gives": Fault(
        ("cluster.account=slow",), "teacher: time limit", "kdbox in account slow gives 00:05:00 at most",
        reason="AssocMaxWallDurationPerJobLimit",
    ),
    "more GPUs than a node has": Fault(
        ("cluster.pools.1.gpus_per_node=4", "student.gpus=4"), "student: nodes",
        "1 node with 4 x gpu is asked for, but none of the 2 nodes of partition train has that: they have 2 x gpu",
        refused="Requested node configuration is not available",
    ),
    "a type of GPU that there is not": Fault(
        _teacher("gpu_directive='--gpus-per-node=h100:{n}'"), "teacher: nodes", "2 nodes with 4 x h100",
        refused="Requested node configuration is not available",
    ),
    "a type of GPU in the older words": Fault(
        _teacher("gpu_directive='--gres=gpu:h100:{n}'"), "teacher: nodes", "2 nodes with 4 x h100",
        refused="Requested node configuration is not available",
    ),
    "more CPUs than a node has": Fault(
        _teacher("cpus_per_node=64"), "teacher: nodes", "2 nodes with 64 CPUs", reason="PartitionConfig",
    ),
    "more memory than a node has": Fault(
        _teacher("mem=20G"), "teacher: nodes", "20 GiB of memory", refused="Memory specification can not be satisfied",
    ),
    "a feature that no node has": Fault(
        _teacher("constraint='a100&ibb'"), "teacher: nodes", "no node has ibb; did you mean 'ib'?",
        refused="Invalid feature specification",
    ),
    "a feature that other nodes have": Fault(
        ("cluster.pools.1.constraint=a100",), "student: nodes", "1 node with constraint a100",
        refused="Requested node configuration is not available",
    ),
    "more nodes than there are": Fault(
        ("cluster.pools.0.nodes=3", "teacher.gpus=12", "training.global_batch_size=24"), "teacher: nodes",
        "3 are asked for, but partition teach has 2 (t[1-2])", reason="PartitionConfig",
    ),
    "nodes that both components need": Fault(
        ("cluster.pools.0.partition=both", "cluster.pools.0.gpus_per_node=2", "cluster.pools.0.nodes=3",
         "teacher.gpus=6", "cluster.pools.1.partition=both", "student.gpus=4", "training.global_batch_size=24"),
        "nodes of both roles",
        "3 for the teacher and 2 for the student make 5, since components never share a node, but 4 fit either",
    ),
    "nodes that are too few for both only with their GPUs": Fault(
        ("cluster.pools.1.partition=both", "cluster.pools.1.gpus_per_node=4", "student.gpus=4"), "nodes of both roles",
        "2 for the teacher and 1 for the student make 3, since components never share a node, but 2 fit either",
    ),
    "more nodes than a QOS gives a job": Fault(
        ("slurm.qos=onenode",), "teacher: limits", "QOS onenode gives a job 1 nodes at most, this asks for 2",
        reason="QOSMaxNodePerJobLimit",
    ),
    "more nodes than the partition's QOS gives a job": Fault(
        _teacher("partition=capped"), "teacher: limits", "QOS onenode gives a job 1 nodes at most, this asks for 2",
        reason="QOSMaxNodePerJobLimit",
    ),
    "more GPUs than a QOS gives a job": Fault(
        ("slurm.qos=fewgpus",), "teacher: limits", "QOS fewgpus gives a job 4 GPUs at most, this asks for 8",
        reason="QOSMaxGRESPerJob",
    ),
    "fewer nodes than a QOS wants": Fault(
        ("slurm.qos=many",), "student: limits", "QOS many wants 2 nodes of a job at least, this asks for 1",
    ),
    "more nodes than a QOS has": Fault(
        ("slurm.qos=twonodes",), "limits",
        "QOS twonodes gives all its jobs together 2 nodes at a time, but this job asks for 3",
    ),
    "more nodes than a QOS gives a user": Fault(
        ("slurm.qos=twoeach",), "limits", "QOS twoeach gives a user 2 nodes at a time, but this job asks for 3",
    ),
    "more jobs than a QOS lets run": Fault(
        ("slurm.qos=onejob",), "limits", "but this job has 2 components, and each counts as a job",
    ),
    "more nodes than an account has": Fault(
        ("cluster.account=tiny",), "limits", "account tiny gives all its jobs together 2 nodes at a time",
    ),
    "a reservation that there is not": Fault(
        ("slurm.reservation=nope",), "sbatch --test-only", "Requested reservation is invalid",
        refused="Requested reservation is invalid",
    ),
}  # fmt: skip

"""What a test cluster is like: nodes, partitions, accounts and switches, and the text of its configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

USER, UID = "kdbox", 61234
"""The ordinary user of the jobs: known only inside the box, without an account on the machine."""


@dataclass(frozen=True)
class Nodes:
    """Equal nodes, named t1, t2, ...; the GPUs are files, which Slurm counts and nothing computes on."""

    prefix: str
    count: int
    gpus: int = 0
    cpus: int = 8
    memory_mb: int = 16000

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{i}" for i in range(1, self.count + 1))


@dataclass(frozen=True)
class Partition:
    name: str
    nodes: str
    """Slurm's list: t[1-2],s1."""
    options: str = ""


@dataclass(frozen=True)
class Setup:
    """One cluster. The defaults are made for fast tests."""

    nodes: tuple[Nodes, ...] = (Nodes("t", 2, gpus=4), Nodes("s", 2, gpus=2), Nodes("c", 4))
    partitions: tuple[Partition, ...] = (
        Partition("teach", "t[1-2]", "Default=YES"),
        Partition("train", "s[1-2]"),
        Partition("cpu", "c[1-4]"),
        Partition("wide", "t[1-2],s[1-2],c[1-4]"),
        Partition("short", "c[1-2]", "MaxTime=10 MaxNodes=1"),
        Partition("private", "c[3-4]", "AllowAccounts=other"),
    )
    hetjobs: bool = True
    """False: a scheduler that refuses heterogeneous jobs."""
    hetjob_steps: bool = True
    """False: disable_hetjob_steps, no step over several components."""
    preempt: Literal["REQUEUE", "CANCEL"] | None = None
    """Not None: a partition `urgent` over all nodes, whose jobs push out those of the other partitions."""
    grace_s: int = 0
    """Seconds that a preempted job gets after TERM."""
    job_requeue: bool = True
    """JobRequeue: whether jobs may be requeued that do not say so."""
    enforce_limits: Literal["NO", "ANY", "ALL"] = "ALL"
    """EnforcePartLimits: whether sbatch refuses what can never start in its partition."""
    kill_wait_s: int = 5
    slurmd_timeout_s: int = 15
    cred_expire_s: int | None = 5
    """A requeued job waits so long, plus one second; 5 is the least, None is Slurm's 120."""
    min_job_age_s: int = 600
    """For so long squeue and scontrol know a job that has ended."""

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(name for group in self.nodes for name in group.names)


SLURM_DEFAULTS = Setup(kill_wait_s=30, slurmd_timeout_s=300, cred_expire_s=None, min_job_age_s=300)
"""With the timeouts of a cluster whose administrator has set none."""


def two_pools(*nodes: Nodes, **changes: Any) -> Setup:
    """Partitions `teach` and `train` of nodes of their own."""
    teach, train = (f"{group.prefix}[1-{group.count}]" for group in nodes)
    return Setup(nodes, (Partition("teach", teach, "Default=YES"), Partition("train", train)), **changes)


PREEMPTING = two_pools(Nodes("t", 5), Nodes("s", 5), preempt="REQUEUE")

ACCOUNTING = (
    ("add cluster box",),
    (
        "add qos long,foreign",
        "add qos quick set maxwall=00:05:00 flags=DenyOnLimit",
        "add account team,poor,other cluster=box",
    ),
    (
        f"add user {USER} cluster=box account=team,poor defaultaccount=team qos=normal,long,quick defaultqos=normal",
        "modify account where name=poor set maxwall=00:10:00 maxjobs=2",
    ),
)
"""Accounts and limits, as rounds of sacctmgr's commands that do not depend on each other. Account `other` and QOS
`foreign` exist and are not the user's; Slurm lets root run without an account."""


@dataclass(frozen=True)
class Ports:
    """One of each daemon; `nodes` by name."""

    slurmdbd: int
    slurmctld: int
    nodes: dict[str, int]


def slurmdbd_conf(folder: Path, ports: Ports) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdPort={ports.slurmdbd}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""


def slurm_conf(folder: Path, setup: Setup, ports: Ports, host: str) -> str:
    return "\n".join([
        _daemons(folder, ports, host), *_policy(folder, setup), *_nodes(setup, ports), *_partitions(setup), "",
    ])  # fmt: skip


def _daemons(folder: Path, ports: Ports, host: str) -> str:
    return f"""\
ClusterName=box
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports.slurmctld}
AuthType=auth/munge
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagatePrioProcess=1
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
SlurmctldTimeout=20
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports.slurmdbd}
AccountingStoragePass={folder}/munge/socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
GresTypes=gpu"""


def _policy(folder: Path, setup: Setup) -> list[str]:
    scheduler = "bf_interval=1,sched_interval=1,bf_hetjob_immediate,bf_hetjob_prio=min"
    expiry = "" if setup.cred_expire_s is None else f",cred_expire={setup.cred_expire_s}"
    lines = [
        f"AuthInfo=socket={folder}/munge/socket{expiry}",
        f"SchedulerType={'sched/backfill' if setup.hetjobs else 'sched/builtin'}",
        f"SchedulerParameters={scheduler}{'' if setup.hetjob_steps else ',disable_hetjob_steps'}",
        f"JobRequeue={int(setup.job_requeue)}",
        f"EnforcePartLimits={setup.enforce_limits}",
        f"KillWait={setup.kill_wait_s}",
        f"SlurmdTimeout={setup.slurmd_timeout_s}",
        f"MinJobAge={setup.min_job_age_s}",
    ]
    preemption = [f"PreemptType=preempt/partition_prio\nPreemptMode={setup.preempt}"] if setup.preempt else []
    return lines + preemption


def _nodes(setup: Setup, ports: Ports) -> list[str]:
    return [
        f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={ports.nodes[name]} CPUs={group.cpus} "
        f"RealMemory={group.memory_mb}" + (f" Gres=gpu:{group.gpus}" if group.gpus else "")
        for group in setup.nodes
        for name in group.names
    ]


def _partitions(setup: Setup) -> list[str]:
    preempted = f"PriorityTier=1 PreemptMode={setup.preempt} GraceTime={setup.grace_s}" if setup.preempt else ""
    partitions = [Partition(p.name, p.nodes, f"{p.options} {preempted}") for p in setup.partitions]
    if setup.preempt:
        partitions.append(Partition("urgent", ",".join(setup.node_names), "PriorityTier=10 PreemptMode=OFF"))
    # An option given twice counts once, the last time.
    usual = "State=UP DefaultTime=00:30:00"
    limit = "MaxTime=1-00:00:00"
    return [
        f"PartitionName={p.name} Nodes={p.nodes} {usual} {'' if 'MaxTime' in p.options else limit} {p.options}"
        for p in partitions
    ]


def gres_files(folder: Path, setup: Setup) -> list[tuple[str, Path]]:
    """(node, file) of each GPU."""
    return [
        (name, folder / "gpu" / f"{name}-{number}")
        for group in setup.nodes
        for name in group.names
        for number in range(group.gpus)
    ]


def gres_conf(folder: Path, setup: Setup) -> str:
    return "".join(f"NodeName={node} Name=gpu File={file}\n" for node, file in gres_files(folder, setup))

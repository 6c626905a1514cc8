"""What a site has, as scontrol shows it: its partitions and its nodes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetParseError

from kd_launch.slurm.fields import count_of, mib_of, parse_records, seconds_of, words
from kd_launch.slurm.gres import Gpus, parse_gres

# Words of a node's State that keep jobs away until somebody, or a reservation's end, changes it. `node_state_string`
# and `node_state_base_string` in src/common/slurm_protocol_defs.c of Slurm 20.11 to 25.11.
OUT_OF_ORDER = frozenset(
    (
        *("DOWN", "DRAIN", "DRAINED", "DRAINING", "DRNG", "ERROR", "FAIL", "FAILING", "FUTURE", "UNKNOWN"),
        *("NO_RESPOND", "NOT_RESPONDING", "INVAL", "INVALID_REG", "PERFCTRS", "EXTERNAL"),
    )
)
SET_ASIDE = frozenset(("MAINT", "MAINTENANCE", "RESERVED"))
"""By a reservation."""


@dataclass(frozen=True)
class Partition:
    """One of Slurm's queues. None and () stand for "no limit"."""

    name: str
    state: str
    is_default: bool = False
    hidden: bool = False
    root_only: bool = False
    needs_reservation: bool = False
    max_time_s: int | None = None
    default_time_s: int | None = None
    max_nodes: int | None = None
    min_nodes: int = 0
    allow_accounts: tuple[str, ...] = ()
    deny_accounts: tuple[str, ...] = ()
    allow_qos: tuple[str, ...] = ()
    deny_qos: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] = ()
    qos: str | None = None
    """Whose limits hold for its jobs."""
    max_cpus_per_node: int | None = None
    default_memory: "Memory" = field(default_factory=lambda: Memory())
    max_memory: "Memory" = field(default_factory=lambda: Memory())
    whole_nodes: bool = False
    """OverSubscribe=EXCLUSIVE: a job gets whole nodes."""

    @property
    def is_up(self) -> bool:
        return self.state == "UP"


@dataclass(frozen=True)
class Memory:
    """MiB that a job gets or may have, of a node or for each of its CPUs; None: no limit."""

    per_node: float | None = None
    per_cpu: float | None = None

    def of(self, cpus: int) -> float | None:
        """MiB on a node where the job has `cpus`."""
        return self.per_node if self.per_cpu is None else self.per_cpu * cpus


@dataclass(frozen=True)
class Node:
    """One node, whether or not it is up."""

    name: str
    host: str
    address: str
    states: frozenset[str]
    cpus: int
    """That jobs can have."""
    memory_mib: float
    """That jobs can have."""
    gpus: tuple[Gpus, ...] = ()
    features: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    reason: str = ""
    """Why it is out of order, in the words of whoever set it so."""

    @property
    def gpu_count(self) -> int:
        return sum(gpus.number for gpus in self.gpus)

    def is_out(self, has_reservation: bool = False) -> bool:
        """Whether it takes no jobs now. Nodes that a reservation sets aside may be those of our own."""
        away = OUT_OF_ORDER if has_reservation else OUT_OF_ORDER | SET_ASIDE
        return bool(self.states & away)


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Of `scontrol show partition`."""
    return tuple(_partition(record) for record in parse_records(text, "PartitionName"))


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Of `scontrol show node`."""
    return tuple(_node(record) for record in parse_records(text, "NodeName"))


def _partition(record: Mapping[str, str]) -> Partition:
    get = record.get
    return Partition(
        name=record["PartitionName"],
        state=get("State", "UP").upper(),
        is_default=get("Default") == "YES",
        hidden=get("Hidden") == "YES",
        root_only=get("RootOnly") == "YES",
        needs_reservation=get("ReqResv") == "YES",
        max_time_s=seconds_of(get("MaxTime", "")),
        default_time_s=seconds_of(get("DefaultTime", "")),
        max_nodes=count_of(get("MaxNodes")),
        min_nodes=count_of(get("MinNodes")) or 0,
        allow_accounts=_lower(get("AllowAccounts", "")),
        deny_accounts=_lower(get("DenyAccounts", "")),
        allow_qos=_lower(get("AllowQos", get("AllowQOS", ""))),
        deny_qos=_lower(get("DenyQos", get("DenyQOS", ""))),
        allow_groups=words(get("AllowGroups", "")),
        qos=next(iter(_lower(get("QoS", ""))), None),
        max_cpus_per_node=count_of(get("MaxCPUsPerNode")),
        default_memory=memory_of(record, "Def"),
        max_memory=memory_of(record, "Max"),
        whole_nodes=get("OverSubscribe") == "EXCLUSIVE" or get("Shared") == "EXCLUSIVE",
    )


def memory_of(record: Mapping[str, str], kind: str) -> Memory:
    """DefMemPerNode and its kin, of a partition or of the whole cluster."""
    return Memory(mib_of(record.get(f"{kind}MemPerNode", "")), mib_of(record.get(f"{kind}MemPerCPU", "")))


def _node(record: Mapping[str, str]) -> Node:
    get, name = record.get, record["NodeName"]
    # CPUEfctv, without the cores that Slurm keeps, is there since 22.05.
    kept = (count_of(get("CoreSpecCount")) or 0) * (count_of(get("ThreadsPerCore")) or 1)
    cpus = count_of(get("CPUEfctv")) or (count_of(get("CPUTot")) or 1) - kept
    return Node(
        name=name,
        host=get("NodeHostName") or name,
        address=get("NodeAddr") or name,
        states=state_words(get("State", "")),
        cpus=cpus,
        memory_mib=(mib_of(get("RealMemory", "")) or 0.0) - (mib_of(get("MemSpecLimit", "")) or 0.0),
        gpus=parse_gres(get("Gres", "")),
        features=words(get("AvailableFeatures", get("Features", ""))),
        partitions=words(get("Partitions", "")),
        reason=get("Reason", ""),
    )


def state_words(text: str) -> frozenset[str]:
    """The words of a State such as `IDLE+DRAIN` or `DOWN*`, whose star says that the node does not respond.

    >>> sorted(state_words("MIXED+CLOUD*"))
    ['CLOUD', 'MIXED', 'NOT_RESPONDING']
    """
    found = {word.rstrip("*$~#!%@^-+") for word in text.upper().split("+")}
    return frozenset((found | {"NOT_RESPONDING"} if "*" in text else found) - {""})


def fold(names: Iterable[str]) -> str:
    """Node names as Slurm writes many of them.

    >>> fold(["gpu1", "gpu2", "gpu3", "login"])
    'gpu[1-3],login'
    """
    known = sorted(names)
    try:
        return str(NodeSet.fromlist(known, resolver=RESOLVER_NOGROUP))
    except NodeSetParseError:
        return ",".join(known)


def unfold(text: str) -> frozenset[str]:
    """The names of a node list; none where it cannot be read."""
    try:
        return frozenset(NodeSet(text, resolver=RESOLVER_NOGROUP))
    except NodeSetParseError:
        return frozenset()


def _lower(text: str) -> tuple[str, ...]:
    """Accounts and QOS, which Slurm keeps in lower case."""
    return tuple(word.lower() for word in words(text))

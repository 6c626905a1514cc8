"""What a site allows: asks Slurm for its configuration, partitions, nodes, and the user's accounts and limits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kd_launch.cluster import SiteFacts
from kd_launch.commands import Runner
from kd_launch.errors import SlurmRefusedError, SlurmSilentError
from kd_launch.slurm.call import ask
from kd_launch.slurm.fields import count_of, parse_columns, parse_settings
from kd_launch.slurm.inventory import Memory, Node, Partition, memory_of, parse_nodes, parse_partitions
from kd_launch.slurm.limits import (
    ASSOCIATION_COLUMNS,
    QOS_COLUMNS,
    Accounting,
    parse_associations,
    parse_qos,
)

# With --all, hidden partitions and those of other groups are shown, too, and in a node's list of partitions.
SHOW_PARTITIONS = ("scontrol", "--all", "--oneliner", "show", "partition")
SHOW_NODES = ("scontrol", "--all", "--oneliner", "show", "node")
SHOW_CONFIG = ("scontrol", "show", "config")


@dataclass(frozen=True)
class Config:
    """The settings of slurm.conf, as the controller has them."""

    settings: Mapping[str, str]

    def get(self, key: str) -> str:
        """A setting's value; "" where there is none."""
        value = self.settings.get(key, "")
        return "" if value == "(null)" else value

    @property
    def version(self) -> str:
        return self.get("SLURM_VERSION") or "of an unknown version"

    @property
    def cluster_name(self) -> str:
        return self.get("ClusterName")

    @property
    def hetjobs(self) -> bool:
        """Whether jobs of several components are taken: the backfill scheduler alone starts them."""
        return self.get("SchedulerType") != "sched/builtin"

    @property
    def hetjob_steps(self) -> bool:
        """Whether one step may span components."""
        return "disable_hetjob_steps" not in self.get("SchedulerParameters").split(",")

    @property
    def requeues(self) -> bool:
        """Whether jobs may be requeued that do not say so."""
        return self.get("JobRequeue") != "0"

    @property
    def most_requeues(self) -> int | None:
        """Requeues by one job's own failure, after which Slurm holds it; since 25.05."""
        return count_of(self.settings.get("MaxBatchRequeue"))

    @property
    def enforces_associations(self) -> bool:
        """Whether a job without a known account is refused; every kind of enforcement includes it."""
        return bool(self._enforced & {"associations", "limits", "qos", "safe", "wckeys", "all", "1", "yes"})

    @property
    def enforces_limits(self) -> bool:
        return bool(self._enforced & {"limits", "safe", "all"})

    @property
    def enforces_qos(self) -> bool:
        return bool(self._enforced & {"qos", "all"})

    @property
    def _enforced(self) -> frozenset[str]:
        return frozenset(self.get("AccountingStorageEnforce").lower().split(","))

    @property
    def memory_is_counted(self) -> bool:
        """Whether jobs on one node share its memory: then a job that does not ask gets the default."""
        return "MEMORY" in self.get("SelectTypeParameters").upper()

    @property
    def counts_gpus(self) -> bool:
        """Whether --gpus-per-node is understood: only select/cons_tres does; others know --gres alone."""
        return self.get("SelectType").endswith("cons_tres")

    @property
    def default_memory(self) -> Memory:
        return memory_of(self.settings, "Def")

    @property
    def max_memory(self) -> Memory:
        return memory_of(self.settings, "Max")

    @property
    def plugins(self) -> str:
        """Of submission, which may change a job as it comes in; "" for none."""
        return self.get("JobSubmitPlugins")


@dataclass(frozen=True)
class Site:
    """All that was asked."""

    config: Config
    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    groups: frozenset[str]
    """Of the user."""
    accounting: Accounting | None
    """None where sacctmgr gives no answer."""
    no_accounting: str = ""
    """Why."""

    def partition(self, name: str) -> Partition | None:
        return next((found for found in self.partitions if found.name == name), None)

    def nodes_of(self, partition: str | None) -> tuple[Node, ...]:
        """None: of all partitions."""
        return tuple(node for node in self.nodes if partition is None or partition in node.partitions)


def ask_site(run: Runner) -> Site:
    """Asks for everything.

    Raises:
        SlurmSilentError: the controller does not answer. A silent accounting is no error: many sites have none.
        SlurmRefusedError: it answers with an error.
    """
    config = ask_config(run)
    partitions = parse_partitions(ask(run, SHOW_PARTITIONS))
    nodes = parse_nodes(ask(run, SHOW_NODES))
    groups = frozenset(_words_of(run, ("id", "-Gnz"), "\0"))
    try:
        accounting, why = ask_accounting(run, config.cluster_name), ""
    except (SlurmSilentError, SlurmRefusedError) as error:
        accounting, why = None, str(error)
    return Site(config, partitions, nodes, groups, accounting, why)


def ask_config(run: Runner) -> Config:
    return Config(parse_settings(ask(run, SHOW_CONFIG)))


def site_facts(run: Runner) -> SiteFacts:
    """What `resolve` wants to know; where Slurm gives no answer, the facts say why and leave the rest open."""
    try:
        config = ask_config(run)
    except (SlurmSilentError, SlurmRefusedError) as error:
        return SiteFacts(no_answer=str(error))
    return SiteFacts(hetjobs=config.hetjobs, hetjob_steps=config.hetjob_steps)


def ask_accounting(run: Runner, cluster: str) -> Accounting:
    """The user's associations, the accounts above them, and all QOS.

    Raises:
        SlurmSilentError, SlurmRefusedError: there is no accounting, or sacctmgr may not be used.
    """
    user = next(iter(_words_of(run, ("id", "-un"), "\n")), "")
    where = (f"cluster={cluster}",) if cluster else ()
    show = ("sacctmgr", "--noheader", "--parsable2", "show")
    columns = f"format={','.join(ASSOCIATION_COLUMNS)}"
    own = parse_associations(ask(run, (*show, "assoc", *where, f"user={user}", columns)))
    accounts = parse_associations(ask(run, (*show, "assoc", *where, "user=", columns)))
    qos = parse_qos(ask(run, (*show, "qos", f"format={','.join(QOS_COLUMNS)}")))
    default = parse_columns(ask(run, (*show, "user", user, "format=user,defaultaccount")), ("user", "account"))
    account = next((row["account"].lower() for row in default if row["account"]), None)
    return Accounting(user, (*own, *accounts), qos, account)


def _words_of(run: Runner, argv: Iterable[str], separator: str) -> tuple[str, ...]:
    """The answer of a program that is no part of Slurm; none where it fails."""
    done = run(tuple(argv), timeout=10.0)
    return tuple(word.strip() for word in done.stdout.split(separator) if word.strip()) if done.ok else ()

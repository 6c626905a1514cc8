"""The #SBATCH lines of one job component, in sbatch's own quoting, or a refusal of what no line can hold."""

import re
from dataclasses import dataclass

from kd_launch.cluster import Cluster, Pool
from kd_launch.errors import SpecError
from kd_launch.spec import SlurmOptions

# What sbatch takes without quotes.
PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
# Up to Slurm 20.11 a directive that holds one of these words anywhere starts the next component.
SEPARATORS = ("hetjob", "packjob")


@dataclass(frozen=True)
class Allocation:
    """Equal nodes of one pool, and the ranks on them."""

    pool: Pool
    nodes: int
    ranks: int
    ranks_per_node: int
    """Of a full node; the last node may hold fewer."""

    @property
    def is_even(self) -> bool:
        """Whether every node holds the same number of ranks."""
        return self.ranks == self.nodes * self.ranks_per_node


def cores_per_rank(pool: Pool) -> int | None:
    """A GPU's share of its node's cores, which is right whether or not other jobs share the node; None: unknown."""
    if pool.cpus_per_node is None:
        return None
    return max(1, pool.cpus_per_node // pool.gpus_per_node)


def component_directives(
    allocation: Allocation, cluster: Cluster, options: SlurmOptions, job_name: str
) -> tuple[str, ...]:
    """Every directive of one component, in full: Slurm hands none of them on from component 0.

    Raises:
        SpecError: a value that no directive can hold.
    """
    pool = allocation.pool
    gpus = pool.gpu_directive if not pool.is_cpu else None
    lines = [
        option("job-name", job_name, "name"),
        *_if_set("partition", pool.partition, f"pool {pool.name}: partition"),
        f"--nodes={allocation.nodes}",
        f"--ntasks-per-node={allocation.ranks_per_node}",
        *_if_set("cpus-per-task", cores_per_rank(pool), ""),
        *([verbatim(gpus, f"pool {pool.name}: gpu_directive", allocation.ranks_per_node)] if gpus else []),
        *_if_set("mem", pool.mem, f"pool {pool.name}: mem"),
        *_if_set("time", options.time_limit or cluster.time_limit, "time_limit"),
        *_if_set("account", options.account or pool.account or cluster.account, "account"),
        *_if_set("qos", options.qos or pool.qos, "qos"),
        *_if_set("constraint", pool.constraint, f"pool {pool.name}: constraint"),
        *_if_set("reservation", options.reservation, "slurm.reservation"),
        *_if_set("dependency", options.dependency, "slurm.dependency"),
        *_if_set("comment", options.comment, "slurm.comment"),
        *_mail(options),
        "--requeue",
    ]
    return (*lines, *(verbatim(line, f"pool {pool.name}: sbatch") for line in pool.sbatch))


def batch_directives(cluster: Cluster, batch_log: str) -> tuple[str, ...]:
    """The directives of the batch script itself, which component 0 carries.

    --signal is one of them: Slurm sends it to the ranks of every component all the same.
    """
    signal = [f"--signal=USR2@{cluster.signal_before_end_s}"] if cluster.signal_before_end_s else []
    return (option("output", batch_log, "run folder"), "--open-mode=append", *signal)


def option(name: str, value: str, field: str) -> str:
    """One directive such as `--comment="two words"`; `field` is named where the value is refused."""
    _refuse_separators(value, field)
    return f"--{name}={quote_for_sbatch(value)}"


def verbatim(line: str, field: str, gpus: int | None = None) -> str:
    """A directive as the site wrote it, in sbatch's syntax, with its {n} replaced by `gpus`."""
    _refuse_separators(line, field)
    if not line.startswith("-"):
        raise SpecError(f"{field}: '{line}' is no directive; write it as sbatch's option, such as --exclusive")
    return line if gpus is None else line.replace("{n}", str(gpus))


def quote_for_sbatch(value: str) -> str:
    """Quoted as sbatch reads it, which is not as a shell does: a backslash escapes inside every kind of quotes.

    >>> print(quote_for_sbatch("gpu"), quote_for_sbatch('say "hi"'))
    gpu "say \\"hi\\""
    """
    if PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _if_set(name: str, value: str | int | None, field: str) -> list[str]:
    return [] if value is None else [option(name, str(value), field)]


def _mail(options: SlurmOptions) -> list[str]:
    user = _if_set("mail-user", options.mail_user, "slurm.mail_user")
    return [*user, "--mail-type=BEGIN,END,FAIL"] if user else []


def _refuse_separators(value: str, field: str) -> None:
    for word in SEPARATORS:
        if word in value.lower():
            raise SpecError(
                f"{field}: '{value}' holds the word {word}, which older Slurms take for the start of another "
                "component wherever it stands in a directive; use another word"
            )

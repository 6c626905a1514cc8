"""cluster.yaml as Slurm describes its site: a pool for each kind of node in each partition that this user may use."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kd_launch.catalog import gpu_ids
from kd_launch.cluster import time_limit_seconds
from kd_launch.commands import Runner
from kd_launch.errors import SlurmRefusedError
from kd_launch.init.access import Access, access_to, why_closed
from kd_launch.init.kinds import Kind, kinds_of
from kd_launch.init.pools import (
    CPU,
    UNKNOWN,
    FoundGpu,
    FoundPool,
    named_apart,
    one_line,
    plain_name,
    pool_lines,
    processes_on,
    scalar,
)
from kd_launch.slurm.fields import time_text
from kd_launch.slurm.inventory import Memory, Partition, fold
from kd_launch.slurm.site import Site, ask_site

STAND_IN = "A100-SXM-40"
"""What stands for GPUs of an unknown type where no others are known, so that there is something to plan with."""


@dataclass(frozen=True)
class Described:
    """A cluster file, and what somebody should know who has just got it."""

    text: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Offer:
    """A pool, and where it comes from."""

    pool: FoundPool
    partition: Partition
    nodes: frozenset[str]
    longest_s: int | None
    """None: no limit."""


def describe_slurm(run: Runner) -> Described:
    """Asks Slurm and writes down what it answers.

    Raises:
        SlurmSilentError: it gives no answer.
        SlurmRefusedError: it answers with an error, or has no partition for this user.
    """
    return describe(ask_site(run))


def describe(site: Site) -> Described:
    """The file's text."""
    left_out = {one.name: why for one in site.partitions if (why := why_closed(one, site))}
    offers = _offers(site, [one for one in site.partitions if one.name not in left_out])
    if not offers:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise SlurmRefusedError(f"Slurm has no partition with nodes for you ({why or 'it names none'})")
    kept, bare = _with_gpus(offers)
    offered = {one.partition.name for one in kept}
    left_out |= {one.partition.name: "has no GPUs" for one in bare if one.partition.name not in offered}
    kept = _plannable(kept)
    active = _apart(kept)
    lines = [*_head(site, active, left_out), *_gpus_there_are(kept), "pools:"]
    for one in kept:
        lines += pool_lines(_told(one, active).pool, as_comment=one not in active)
    guessed = tuple(f"pool {one.pool.name}: gpu is {_why(one.pool.gpu)}" for one in active if one.pool.gpu.is_guess)
    return Described("\n".join(lines) + "\n", guessed)


# Which pools


def _with_gpus(offers: Sequence[Offer]) -> tuple[list[Offer], list[Offer]]:
    """Pools with GPUs, where there are any, and the others."""
    gpus = [one for one in offers if one.pool.gpu is not CPU]
    return (gpus, [one for one in offers if one.pool.gpu is CPU]) if gpus else (list(offers), [])


def _plannable(offers: Sequence[Offer]) -> list[Offer]:
    """At least one pool that `plan` takes: where no GPU is known, another stands for all."""
    any_known = any(one.pool.gpu.is_known for one in offers)
    return [replace(one, pool=replace(one.pool, gpu=_told_gpu(one.pool.gpu, any_known))) for one in offers]


def _told_gpu(gpu: FoundGpu, any_known: bool) -> FoundGpu:
    """A GPU that the catalog does not know, with a note that says so."""
    if gpu.is_known:
        return gpu
    found = "names no type" if gpu.id == UNKNOWN else f"calls it {gpu.id}"
    if any_known:
        return replace(gpu, note=f"Slurm {found}; write one of those above")
    return FoundGpu(STAND_IN, f"assumed: Slurm {found}", is_guess=True)


def _why(gpu: FoundGpu) -> str:
    return f"{gpu.id}, {gpu.note}; correct it before you trust a plan"


def _gpus_there_are(offers: Sequence[Offer]) -> list[str]:
    """What may stand at gpu, where that is left to the user."""
    if all(one.pool.gpu.is_known and not one.pool.gpu.is_guess for one in offers):
        return []
    return [
        f"# gpu is one of: {', '.join(gpu for gpu in gpu_ids() if gpu != CPU.id)}; `nvidia-smi -L` on a node says which"
    ]


# What they offer


def _offers(site: Site, partitions: Iterable[Partition]) -> list[Offer]:
    found: list[Offer] = []
    for partition in partitions:
        access = access_to(partition, site)
        assert access is not None, "else it is closed"
        kinds = kinds_of(site.nodes_of(partition.name))
        several = sum(kind.gpu_type is not None for kind in kinds) > 1
        found += [_offer(kind, partition, access, site, typed=several) for kind in kinds]
    names = named_apart([one.pool for one in found])
    return [replace(one, pool=pool) for one, pool in zip(found, names, strict=True)]


def _offer(kind: Kind, partition: Partition, access: Access, site: Site, *, typed: bool) -> Offer:
    most = [limit.amount for limit in access.limits if limit.what == "node" and limit.scope != "least"]
    nodes = min([len(kind.up), partition.max_nodes or len(kind.up), *map(int, most)])
    pool = FoundPool(
        name=partition.name,
        nodes=max(1, nodes),
        gpus_per_node=kind.gpus or processes_on(kind.cpus, least=1),
        gpu=kind.gpu(partition.name),
        cpus_per_node=min(kind.cpus, partition.max_cpus_per_node or kind.cpus),
        memory_gib=max(1, int(kind.memory_mib // 1024)),
        partition=partition.name,
        gpu_directive=_directive(kind, site, typed=typed),
        mem=_mem(kind, partition, site),
        account=access.account,
        qos=access.qos,
        whole_nodes=partition.whole_nodes,
        notes=tuple(_notes(kind, partition)),
    )
    walls = [int(limit.amount) for limit in access.limits if limit[:2] == ("job", "wall")]
    limits = [limit for limit in (partition.max_time_s, *walls) if limit is not None]
    return Offer(pool, partition, frozenset(node.name for node in kind.up), min(limits, default=None))


def _directive(kind: Kind, site: Site, *, typed: bool) -> str | None:
    """None: what a cluster file has by default."""
    if kind.gpu_type is None:
        return None
    type_ = f"{kind.gpu_type}:" if typed and kind.gpu_type else ""
    if site.config.counts_gpus:
        return f"--gpus-per-node={type_}{{n}}" if type_ else None
    return f"--gres=gpu:{type_}{{n}}"


def _mem(kind: Kind, partition: Partition, site: Site) -> str | None:
    """All of a node's memory, where a job that does not ask would get a part of it."""
    default = partition.default_memory if partition.default_memory != Memory() else site.config.default_memory
    given = default.of(kind.cpus)
    return "0" if site.config.memory_is_counted and given is not None and given < kind.memory_mib else None


def _notes(kind: Kind, partition: Partition) -> Iterator[str]:
    limit = time_text(partition.max_time_s) if partition.max_time_s else "none"
    yield f"{fold(node.name for node in kind.up)}; time limit {limit}"
    if kind.features:
        yield f"features, for constraint: {', '.join(kind.features)}"
    if kind.out:
        yield f"left out, for they are out of order: {fold(node.name for node in kind.out)}"


def _apart(offers: Sequence[Offer]) -> list[Offer]:
    """Pools that share no node, for a job gets each node once: the planner counts the nodes of all pools.

    Those where jobs may run longest go first, then the largest. Of an unknown GPU there is nothing to plan.
    """
    known = [one for one in offers if one.pool.gpu.is_known]
    by_worth = sorted(known, key=lambda one: (-(one.longest_s or math.inf), -len(one.nodes)))
    kept: list[Offer] = []
    for offer in by_worth:
        if not any(offer.nodes & other.nodes for other in kept):
            kept.append(offer)
    return [one for one in offers if one in kept]


def _told(offer: Offer, active: Sequence[Offer]) -> Offer:
    """With a comment on why it is one itself."""
    pool = offer.pool
    others = [other.pool.name for other in active if other is not offer and offer.nodes & other.nodes]
    if not pool.gpu.is_known:
        note = "a comment, since plans need a GPU that is known"
    elif others:
        note = (
            f"a comment, since it has nodes of pool {', '.join(others)}, and a job gets each once: choose one of them"
        )
    else:
        return offer
    return replace(offer, pool=replace(pool, notes=(*pool.notes, note)))


# The lines above the pools


def _head(site: Site, offers: Sequence[Offer], left_out: Mapping[str, str]) -> list[str]:
    return [
        "# The partitions, as `kd-launch init` found them. Remove the pools that you do not use.",
        *(f"# Left out: partition {one_line(name)}, which {why}." for name, why in left_out.items()),
        f"name: {scalar(plain_name(site.config.cluster_name or 'cluster'))}",
        "scheduler: slurm",
        "run_root: runs                # on a file system that every node sees",
        _time_limit(offers),
        *_account(site),
        *_refused(site),
    ]


def _time_limit(offers: Sequence[Offer]) -> str:
    """The shortest of the pools': a job may use any of them."""
    limits = {one.longest_s for one in offers if one.longest_s is not None}
    if not limits:
        return '# time_limit: "08:00:00"      # of a job; the partitions have none'
    shortest = time_text(min(limits))
    assert time_limit_seconds(shortest) == min(limits)
    names = [one.pool.name for one in offers if one.longest_s == min(limits)]
    longer = f", of pool {', '.join(names)}; others allow more" if len(names) < len(offers) else ""
    return f'time_limit: "{shortest}"        # of a job; the longest that is allowed{longer}'


def _account(site: Site) -> list[str]:
    if site.accounting is None:
        return [f"# account: your-account       # not known: {one_line(site.no_accounting)}"]
    if site.accounting.default_account is None:
        return []
    others = [name for name in sorted(site.accounting.accounts) if name != site.accounting.default_account]
    more = f"                 # your default; you also have {', '.join(others)}" if others else ""
    return [f"account: {scalar(site.accounting.default_account)}{more}"]


def _refused(site: Site) -> list[str]:
    """What this Slurm's configuration rules out, and what it leaves to the script."""
    config, lines = site.config, []
    if not config.hetjobs:
        lines.append(f"hetjobs: false                # SchedulerType is {config.get('SchedulerType')}")
    if not config.hetjob_steps:
        lines.append("hetjob_steps: false           # SchedulerParameters has disable_hetjob_steps")
    if not config.requeues:
        lines.append("# JobRequeue is 0: jobs come back here only since our scripts ask for it, with --requeue")
    return lines

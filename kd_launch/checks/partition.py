"""Whether a component's partition exists, is up, and takes this user's jobs."""

import math
from collections.abc import Iterator

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, failure, fine, note, warning
from kd_launch.errors import nearest
from kd_launch.slurm.inventory import Partition, fold
from kd_launch.slurm.site import Site

# PartitionState -> what becomes of a job that is sent there.
STATES = {
    "DOWN": "is down: its jobs wait until an administrator sets it up",
    "DRAIN": "is drained and takes no new jobs",
    "INACTIVE": "is inactive and takes no jobs",
}


def check_partition(component: Component, site: Site) -> Iterator[Finding]:
    what, partition = component.what("partition"), component.partition
    if partition is None:
        yield _absent(component, site)
        return
    problem, doubt = _problem(component, partition, site), _doubt(component, partition, site)
    if problem is not None:
        yield failure(what, f"{problem}; {_way_out(component)}")
    elif doubt is not None:
        yield warning(what, doubt)
    else:
        yield fine(what, f"{partition.name}, {fold(node.name for node in component.nodes(site))}")


def _absent(component: Component, site: Site) -> Finding:
    what, name = component.what("partition"), component.partition_name
    if name is not None:
        shown = [found.name for found in site.partitions if not found.hidden]
        return failure(
            what,
            f"pool {component.pool.name}: '{name}' is no partition here{nearest(name, shown)}; "
            f"there are: {', '.join(shown)}",
        )
    if site.config.plugins:
        return note(what, f"none is asked for; the site chooses it (JobSubmitPlugins = {site.config.plugins})")
    return failure(what, f"none is asked for, and this cluster has no default; {_way_out(component)}")


def _problem(component: Component, partition: Partition, site: Site) -> str | None:
    """Why no job of this user gets in, in words."""
    name, request = partition.name, component.request
    if not partition.is_up:
        return f"{name} {STATES.get(partition.state, f'is {partition.state}')}"
    if partition.root_only:
        return f"{name} takes jobs of the administrator only (RootOnly)"
    if partition.needs_reservation and not request.get("reservation"):
        return f"{name} takes jobs in a reservation only (ReqResv); set slurm.reservation"
    if partition.allow_groups and site.groups and not site.groups & set(partition.allow_groups):
        return f"{name} takes jobs of group {', '.join(partition.allow_groups)} only (AllowGroups)"
    if request.nodes > _most_nodes(component, partition, site):
        return f"{name} gives a job {partition.max_nodes} nodes at most (MaxNodes), this asks for {request.nodes}"
    if request.nodes < partition.min_nodes:
        return f"{name} gives a job {partition.min_nodes} nodes at least (MinNodes), this asks for {request.nodes}"
    return _account_problem(component, partition, site) or _qos_problem(component, partition, site)


def _account_problem(component: Component, partition: Partition, site: Site) -> str | None:
    account, above = component.account(site), _accounts_above(component, site)
    if account is None:
        return None
    if partition.allow_accounts and not {account, *above} & set(partition.allow_accounts):
        allowed = ", ".join(partition.allow_accounts)
        return f"{partition.name} takes account {allowed} only (AllowAccounts), not {account}"
    if account in partition.deny_accounts and not partition.allow_accounts:
        return f"{partition.name} refuses account {account} (DenyAccounts)"
    return None


def _doubt(component: Component, partition: Partition, site: Site) -> str | None:
    """Newer Slurms count the accounts below one that is listed; 22.05, for one, does not."""
    account, above = component.account(site), _accounts_above(component, site)
    allow, deny = partition.allow_accounts, () if partition.allow_accounts else partition.deny_accounts
    for verb, listed in (("takes", allow), ("refuses", deny)):
        over = [name for name in above if name in listed]
        if over and account not in listed:
            return f"{partition.name} {verb} account {over[0]}; that {account} is below it counts in newer Slurms only"
    return None


def _accounts_above(component: Component, site: Site) -> list[str]:
    association = component.association(site)
    if site.accounting is None or association is None:
        return []
    return [one.account for one in site.accounting.above(association) if one.account != association.account]


def _qos_problem(component: Component, partition: Partition, site: Site) -> str | None:
    if site.accounting is None and not component.request.get("qos"):
        return None
    qos = component.qos_name(site)
    if partition.allow_qos and qos not in partition.allow_qos:
        return f"{partition.name} takes QOS {', '.join(partition.allow_qos)} only (AllowQos), not {qos}"
    if qos in partition.deny_qos and not partition.allow_qos:
        return f"{partition.name} refuses QOS {qos} (DenyQos)"
    return None


def _most_nodes(component: Component, partition: Partition, site: Site) -> float:
    qos = component.qos(site)
    is_lifted = qos is not None and "partitionmaxnodes" in qos.flags
    return math.inf if partition.max_nodes is None or is_lifted else partition.max_nodes


def _way_out(component: Component) -> str:
    return f"set another partition, account or qos in pool {component.pool.name} of the cluster file, or ask the site"

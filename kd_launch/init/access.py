"""Whether a user gets into a partition, and with which account and QOS."""

from collections.abc import Sequence
from dataclasses import dataclass

from kd_launch.slurm.inventory import Partition
from kd_launch.slurm.limits import Limit, limits_in_force
from kd_launch.slurm.site import Site


@dataclass(frozen=True)
class Access:
    """With what a user gets into a partition."""

    account: str | None
    qos: str | None
    limits: tuple[Limit, ...] = ()


def why_closed(partition: Partition, site: Site) -> str | None:
    """Why a partition is left out; None: it is offered."""
    nodes = site.nodes_of(partition.name)
    if partition.hidden:
        return "is hidden"
    if partition.root_only:
        return "takes jobs of the administrator only"
    if not partition.is_up:
        return f"is {partition.state}"
    if partition.needs_reservation:
        return "takes jobs in a reservation only"
    if partition.allow_groups and site.groups and not site.groups & set(partition.allow_groups):
        return f"takes jobs of group {', '.join(partition.allow_groups)} only"
    if not nodes:
        return "has no nodes"
    if all(node.is_out() for node in nodes):
        return "has no node that is up"
    return None if access_to(partition, site) else "takes none of your accounts and QOS"


def access_to(partition: Partition, site: Site) -> Access | None:
    """The user's own default first, then any other account and QOS that the partition takes."""
    accounting = site.accounting
    if accounting is None or not accounting.accounts:
        return Access(None, None)
    default = accounting.default_account
    for account in sorted(accounting.accounts, key=lambda name: name != default):
        association = accounting.association(account, partition.name)
        if association is None or not _takes(account, partition.allow_accounts, partition.deny_accounts):
            continue
        usual = association.default_qos or "normal"
        for name in sorted(association.qos or (usual,), key=lambda name: name != usual):
            if _takes(name, partition.allow_qos, partition.deny_qos):
                layers = [accounting.qos[one] for one in (partition.qos or "", name) if one in accounting.qos]
                limits = limits_in_force(layers, list(accounting.above(association)))
                return Access(None if account == default else account, None if name == usual else name, tuple(limits))
    return None


def _takes(name: str, allowed: Sequence[str], denied: Sequence[str]) -> bool:
    return name in allowed if allowed else name not in denied

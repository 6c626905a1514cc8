"""Whether the accounting takes a job: account, QOS, time, and the limits on what one job or all of them may hold."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, Level, failure, fine, note, warning
from kd_launch.errors import nearest
from kd_launch.slurm.fields import time_text
from kd_launch.slurm.limits import Accounting, Limit
from kd_launch.slurm.site import Site

_NAMES = {"node": "nodes", "cpu": "CPUs", "mem": "MiB of memory", "gres/gpu": "GPUs"}


def check_account(component: Component, site: Site) -> Iterator[Finding]:
    """Whether the account is one of the user's."""
    what, accounting = component.what("account"), site.accounting
    if accounting is None:
        asked = [f"{name} '{value}'" for name in ("account", "qos") if (value := component.request.get(name))]
        yield note(what, f"{site.no_accounting}; {' and '.join(asked) or 'accounts and limits'} cannot be looked at")
        return
    problem = _account_problem(component, accounting)
    yield fine(what, str(component.account(site))) if problem is None else _refused(what, problem, site)


def check_qos(component: Component, site: Site) -> Iterator[Finding]:
    """Whether the user may have the QOS with that account."""
    accounting, account = site.accounting, component.account(site)
    if accounting is None or account not in accounting.accounts:
        return
    what, problem = component.what("qos"), _qos_problem(component, site, accounting)
    yield fine(what, component.qos_name(site)) if problem is None else _refused(what, problem, site)


def _refused(what: str, problem: str, site: Site) -> Finding:
    if site.config.enforces_associations:
        return failure(what, problem)
    return warning(what, f"{problem}. Slurm does not enforce it here (AccountingStorageEnforce)")


def _account_problem(component: Component, accounting: Accounting) -> str | None:
    account = component.request.get("account").lower() or accounting.default_account
    way_out = f"set account in the cluster file, in pool {component.pool.name}, or slurm.account"
    if account is None:
        return f"{accounting.user} has no account on this cluster; ask the site for one"
    if account not in accounting.accounts:
        yours = ", ".join(accounting.accounts) or "none"
        close = nearest(account, accounting.accounts)
        return f"'{account}' is no account of {accounting.user}{close}; yours: {yours}; {way_out}"
    if accounting.association(account, component.partition_name) is None:
        found = [one.partition for one in accounting.associations if one.user and one.account == account]
        where = f"partition {', '.join(found)} only, not in {component.partition_name}"
        return f"account {account} is good in {where}; {way_out}"
    return None


def _qos_problem(component: Component, site: Site, accounting: Accounting) -> str | None:
    qos, association = component.qos_name(site), component.association(site)
    way_out = f"set qos in pool {component.pool.name} of the cluster file, or slurm.qos"
    if qos not in accounting.qos and accounting.qos:
        return f"'{qos}' is no QOS here{nearest(qos, accounting.qos)}; {way_out}"
    if association is not None and association.qos and qos not in association.qos:
        return f"QOS {qos} is not allowed to {association.words}; allowed: {', '.join(association.qos)}; {way_out}"
    return None


def check_time(component: Component, site: Site) -> Iterator[Finding]:
    """The time limit beside those of the partition, of QOS and of the association."""
    what, partition, asked = component.what("time limit"), component.partition, component.request.time_s
    if asked is None:
        yield _default_time(component)
        return
    qos = component.qos(site)
    own = partition.max_time_s if partition and not (qos and "partitiontimelimit" in qos.flags) else None
    if own is not None and asked > own:
        yield failure(
            what,
            f"{time_text(asked)} is asked for, but {component.place} gives {time_text(own)} at most (MaxTime); "
            "set time_limit in the cluster file or slurm.time_limit",
        )
        return
    wall = next((limit for limit in component.limits(site) if limit[:2] == ("job", "wall")), None)
    if wall is not None and asked > wall.amount:
        says = (
            f"{time_text(asked)} is asked for, but {wall.owner} gives {time_text(int(wall.amount))} at most (MaxWall); "
            "set time_limit in the cluster file or slurm.time_limit, or another qos"
        )
        yield Finding(_enforced(site), what, says)
        return
    yield fine(what, time_text(asked))


def _default_time(component: Component) -> Finding:
    what, partition = component.what("time limit"), component.partition
    default = partition and (partition.default_time_s or partition.max_time_s)
    if not default:
        return note(what, f"none is asked for; {component.place} has no limit of its own")
    kind = "DefaultTime" if partition and partition.default_time_s else "MaxTime"
    return warning(
        what,
        f"none is asked for, so that {component.place} ends the job after {time_text(default)} ({kind}); "
        "set time_limit in the cluster file or slurm.time_limit",
    )


def _enforced(site: Site) -> Level:
    return Level.FAIL if site.config.enforces_limits else Level.NOTE


def check_limits(components: Sequence[Component], site: Site) -> Iterator[Finding]:
    """What the components hold, each alone and all together: every component counts as a job."""
    broken = [*_alone(components, site), *_together(components, site)]
    yield from (Finding(_enforced(site), what, f"{says}; {_WAY_OUT}") for what, says in dict.fromkeys(broken))
    if not broken and site.accounting is not None:
        owners = dict.fromkeys(limit.owner for component in components for limit in component.limits(site))
        yield fine("limits", f"within those of {', '.join(owners)}" if owners else "none")


_WAY_OUT = "set another qos or account, or max_nodes in the spec"


def _alone(components: Iterable[Component], site: Site) -> Iterator[tuple[str, str]]:
    for component in components:
        asked = component.asks()
        for limit in component.limits(site):
            amount = asked.get(limit.what)
            if amount is None:
                continue
            if limit.scope == "job" and amount > limit.amount:
                yield (
                    component.what("limits"),
                    f"{limit.owner} gives a job {_amount(limit)} at most, this asks for {amount:g}",
                )
            if limit.scope == "least" and amount < limit.amount:
                yield (
                    component.what("limits"),
                    f"{limit.owner} wants {_amount(limit)} of a job at least, this asks for {amount:g}",
                )


def _together(components: Iterable[Component], site: Site) -> Iterator[tuple[str, str]]:
    """Limits of a user, an account or a group, on the sum of all components that they hold for."""
    held = [
        (limit, component.asks().get(limit.what, 1.0 if limit.what in ("jobs", "submit") else 0.0))
        for component in components
        for limit in component.limits(site)
        if limit.scope not in ("job", "least")
    ]
    for limit, group in groupby(sorted(held, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        amount = sum(asked for _, asked in group)
        if amount > limit.amount:
            yield "limits", _over(limit, amount)


def _over(limit: Limit, amount: float) -> str:
    whom = {"user": "a user", "account": "an account", "group": "all its jobs together"}[limit.scope]
    if limit.what in ("jobs", "submit"):
        kind = "running" if limit.what == "jobs" else "in the queue"
        return (
            f"{limit.owner} lets {whom} have {limit.amount:g} {kind} at a time, but this job has {amount:g} "
            "components, and each counts as a job; launch: hetstep and ranks need one"
        )
    return f"{limit.owner} gives {whom} {_amount(limit)} at a time, but this job asks for {amount:g}"


def _amount(limit: Limit) -> str:
    return f"{limit.amount:g} {_NAMES.get(limit.what, limit.what)}"

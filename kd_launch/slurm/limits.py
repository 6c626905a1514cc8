"""What the accounting lets a user do: associations with accounts, QOS and the limits of both, as sacctmgr shows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kd_launch.slurm.fields import count_of, parse_columns, seconds_of, tres_of, words

Scope = Literal["job", "least", "user", "account", "group"]
"""One job at most; one job at least; the jobs of one user, of one account, of everybody, at a time."""

# Column of sacctmgr -> whom it limits. A time is limited as "wall", numbers of jobs as "jobs" (running at a time) and
# "submit" (waiting, too), everything else by its TRES. An association is a user's, or that of an account and all below.
_TRES: Mapping[str, Scope] = {
    "maxtres": "job", "mintres": "least", "maxtrespu": "user", "maxtrespa": "account", "grptres": "group",
}  # fmt: skip
_COUNTS: Mapping[str, tuple[Scope, str]] = {
    "maxjobs": ("user", "jobs"), "maxjobspu": ("user", "jobs"), "maxjobspa": ("account", "jobs"),
    "grpjobs": ("group", "jobs"), "maxsubmit": ("user", "submit"), "maxsubmitpu": ("user", "submit"),
    "maxsubmitpa": ("account", "submit"), "grpsubmit": ("group", "submit"),
}  # fmt: skip
ASSOCIATION_COLUMNS = (
    *("account", "user", "partition", "parentname", "qos", "defaultqos", "maxwall"),
    *("maxtres", "grptres", "maxjobs", "grpjobs", "maxsubmit", "grpsubmit"),
)
QOS_COLUMNS = (
    *("name", "flags", "maxwall", "maxtres", "mintres", "maxtrespu", "maxtrespa", "grptres"),
    *("maxjobspu", "maxjobspa", "grpjobs", "maxsubmitpu", "maxsubmitpa", "grpsubmit"),
)

Limits = Mapping[tuple[Scope, str], float]
"""(whom, what) -> amount; memory in MiB, times in seconds."""


class Limit(NamedTuple):
    """One that holds for a job."""

    scope: Scope
    what: str
    amount: float
    owner: str
    """In words."""


@dataclass(frozen=True)
class Association:
    """A user in an account, or an account itself, where `user` is empty."""

    account: str
    user: str = ""
    partition: str = ""
    """Only there; empty: everywhere."""
    parent: str = ""
    qos: tuple[str, ...] = ()
    """Those that its jobs may have."""
    default_qos: str = ""
    limits: Limits = field(default_factory=dict)

    @property
    def words(self) -> str:
        return f"account {self.account}" if not self.user else f"{self.user} in account {self.account}"


@dataclass(frozen=True)
class Qos:
    """One quality of service."""

    name: str
    flags: frozenset[str] = frozenset()
    """In lower case."""
    limits: Limits = field(default_factory=dict)


@dataclass(frozen=True)
class Accounting:
    """What sacctmgr says about a user, and the QOS there are."""

    user: str
    associations: tuple[Association, ...]
    """Of the user, and of accounts."""
    qos: Mapping[str, Qos]
    default_account: str | None = None

    @property
    def accounts(self) -> tuple[str, ...]:
        """Those in which the user has an association."""
        return tuple(dict.fromkeys(found.account for found in self.associations if found.user))

    def association(self, account: str, partition: str | None) -> Association | None:
        """The one that a job in a partition belongs to: one for that partition before one for all."""
        own = [found for found in self.associations if found.user and found.account == account.lower()]
        fitting = [found for found in own if found.partition in ("", partition or "")]
        return max(fitting, key=lambda found: bool(found.partition), default=None)

    def above(self, association: Association) -> Iterator[Association]:
        """The association and the accounts over it, the nearest first."""
        accounts = {found.account: found for found in self.associations if not found.user}
        yield association
        name, seen = association.account, set[str]()
        while name in accounts and name not in seen:
            seen.add(name)
            yield accounts[name]
            name = accounts[name].parent


def limits_in_force(qos: Sequence[Qos], associations: Sequence[Association]) -> Iterator[Limit]:
    """The limits of a job: what a QOS limits, no later QOS and no association limits otherwise.

    By https://slurm.schedmd.com/resource_limits.html, "hierarchy"; of an account's limits those of a group hold for
    every account above, while the others come down to the user's association.

    Args:
        qos: the first one goes before the others.
        associations: the user's, then the accounts above.
    """
    limited: set[tuple[Scope, str]] = set()
    for level in qos:
        new = {key: amount for key, amount in level.limits.items() if key not in limited}
        limited |= new.keys()
        yield from (Limit(*key, amount, f"QOS {level.name}") for key, amount in new.items())
    # An association's count of a user's jobs gives way to a QOS' count of an account's, too.
    limited |= {("user", what) for scope, what in limited if scope == "account" and what in ("jobs", "submit")}
    for i, association in enumerate(associations):
        for key, amount in association.limits.items():
            if key not in limited and (i == 0 or key[0] == "group"):
                yield Limit(*key, amount, association.words)


def parse_associations(text: str) -> tuple[Association, ...]:
    """Of `sacctmgr -nP show assoc format=...` with ASSOCIATION_COLUMNS."""
    return tuple(_association(row) for row in parse_columns(text, ASSOCIATION_COLUMNS))


def parse_qos(text: str) -> dict[str, Qos]:
    """Of `sacctmgr -nP show qos format=...` with QOS_COLUMNS."""
    rows = parse_columns(text, QOS_COLUMNS)
    return {row["name"]: Qos(row["name"], frozenset(words(row["flags"].lower())), _limits(row)) for row in rows}


def _association(row: Mapping[str, str]) -> Association:
    return Association(
        account=row["account"].lower(),
        user=row["user"],
        partition=row["partition"],
        parent=row["parentname"].lower(),
        qos=tuple(name.lstrip("+") for name in words(row["qos"].lower()) if not name.startswith("-")),
        default_qos=row["defaultqos"].lower(),
        limits=_limits(row),
    )


def _limits(row: Mapping[str, str]) -> Limits:
    limits: dict[tuple[Scope, str], float] = {}
    wall = seconds_of(row["maxwall"])
    if wall is not None:
        limits["job", "wall"] = wall
    for column, scope in _TRES.items():
        limits |= {(scope, name): amount for name, amount in tres_of(row.get(column, "")).items()}
    for column, key in _COUNTS.items():
        count = count_of(row.get(column))
        if count is not None:
            limits[key] = count
    return limits

"""One component of the job beside the site that is to take it: what every check of the queue looks at."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from kd_launch.checks.finding import Finding
from kd_launch.cluster import Pool
from kd_launch.plan import Layout
from kd_launch.preparation import Inputs
from kd_launch.slurm.inventory import Node, Partition
from kd_launch.slurm.limits import Association, Limit, Qos, limits_in_force
from kd_launch.slurm.request import Request
from kd_launch.slurm.site import Site


@dataclass(frozen=True)
class Component:
    """What one component asks for, and of whom."""

    role: str
    """teacher or student; "job" where one component holds both."""
    pool: Pool
    request: Request
    partition: Partition | None
    """The one looked at. None: which one is not known from here."""
    partition_name: str | None
    """As it is asked for, though it may not exist."""

    def what(self, topic: str) -> str:
        return f"{self.role}: {topic}"

    @property
    def place(self) -> str:
        return f"partition {self.partition_name}" if self.partition_name else "the cluster"

    def nodes(self, site: Site) -> tuple[Node, ...]:
        """Those that may take it, as far as the partition decides."""
        nodes = site.nodes_of(self.partition.name if self.partition else None)
        return tuple(node for node in nodes if node.name not in self.request.excluded)

    def account(self, site: Site) -> str | None:
        """In lower case; None: unknown."""
        default = site.accounting.default_account if site.accounting else None
        return self.request.get("account").lower() or default

    def association(self, site: Site) -> Association | None:
        account = self.account(site)
        if site.accounting is None or account is None:
            return None
        return site.accounting.association(account, self.partition_name)

    def qos_name(self, site: Site) -> str:
        """That Slurm gives the job: the one asked for, the association's default, normal."""
        association = self.association(site)
        return self.request.get("qos").lower() or (association.default_qos if association else "") or "normal"

    def qos(self, site: Site) -> Qos | None:
        return site.accounting.qos.get(self.qos_name(site)) if site.accounting else None

    def limits(self, site: Site) -> list[Limit]:
        """Those of the partition's QOS, the job's QOS and the association, as they override each other."""
        if site.accounting is None:
            return []
        own = self.qos(site)
        partitions = site.accounting.qos.get(self.partition.qos) if self.partition and self.partition.qos else None
        layers = [partitions, own] if own is None or "overpartqos" not in own.flags else [own, partitions]
        association = self.association(site)
        above = list(site.accounting.above(association)) if association else []
        return list(limits_in_force([layer for layer in layers if layer is not None], above))

    def asks(self) -> Mapping[str, float]:
        """TRES -> the least that it takes."""
        request = self.request
        found = {"node": float(request.nodes), "cpu": float(request.nodes * request.cpus_per_node)}
        for gpus in request.gpus_per_node:
            found["gres/gpu"] = found.get("gres/gpu", 0.0) + gpus.number * request.nodes
            if gpus.type:
                found[f"gres/gpu:{gpus.type.lower()}"] = float(gpus.number * request.nodes)
        memory = request.memory.of(request.cpus_per_node) if request.memory else None
        if memory:
            found["mem"] = memory * request.nodes
        return found


def roles_of(inputs: Inputs, layout: Layout, requests: Iterable[Request]) -> Iterator[tuple[str, Pool, Request]]:
    """Whose each component is: the teacher's, then the student's, or that of both."""
    pools, requests = inputs.cluster.pool, list(requests)
    if len(requests) == 1:
        yield "job", pools(layout.student.pool), requests[0]
        return
    names = (("teacher", layout.teacher.pool), ("student", layout.student.pool))
    yield from ((role, pools(pool), request) for (role, pool), request in zip(names, requests, strict=False))


def placed(role: str, pool: Pool, request: Request, site: Site) -> list[Component]:
    """The component in each partition that may take it."""
    names: list[str | None] = [*request.partitions]
    if not names:
        # Where submission has a plugin, that may choose; else Slurm takes the partition marked as default.
        default = next((found.name for found in site.partitions if found.is_default), None)
        names = [None if site.config.plugins else default]
    return [Component(role, pool, request, site.partition(name) if name else None, name) for name in names]


Check = Callable[[Component, Site], Iterator[Finding]]


def looked_at(components: Iterable[Component], site: Site, checks: Iterable[Check]) -> tuple[Component, list[Finding]]:
    """Of several partitions the one that takes the component best, and what was found there.

    But Slurm refuses a list in which one does not exist.
    """
    found = [(one, [finding for check in checks for finding in check(one, site)]) for one in components]
    absent = [pair for pair in found if pair[0].partition is None]
    return min(absent or found, key=lambda pair: sum(not finding.ok for finding in pair[1]))

"""Whether there are nodes for a job: those that have what each component asks for, as sets that do not overlap."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, failure, fine, note, warning
from kd_launch.errors import nearest
from kd_launch.slurm.features import UnreadableConstraintError, names_in, satisfies
from kd_launch.slurm.gres import describe, has_gpus
from kd_launch.slurm.inventory import Memory, Node, fold
from kd_launch.slurm.site import Site


@dataclass(frozen=True)
class Need:
    """One thing that a node must have."""

    met: Callable[[Node], bool]
    asks: str
    has: Callable[[Sequence[Node]], str]
    """What the nodes have instead."""
    way_out: str


def check_nodes(component: Component, site: Site) -> Iterator[Finding]:
    """Whether enough nodes of the partition have what the component asks for, and are up."""
    what, request = component.what("nodes"), component.request
    if component.partition is None and component.partition_name is not None:
        return
    left = component.nodes(site)
    if len(left) < request.nodes:
        yield failure(
            what,
            f"{_asked(request.nodes)}, but {component.place} has {len(left)} ({fold(node.name for node in left)}); "
            f"set nodes of pool {component.pool.name} in the cluster file, or max_nodes",
        )
        return
    for need in _needs(component, site):
        fitting = tuple(node for node in left if need.met(node))
        if len(fitting) < request.nodes:
            yield failure(what, _short(component, need, left, fitting))
            return
        left = fitting
    yield from _unread_constraint(component)
    yield _up(component, left)


def _short(component: Component, need: Need, left: Sequence[Node], fitting: Sequence[Node]) -> str:
    asked = f"{_counted(component.request.nodes)} with {need.asks} {_are(component.request.nodes)} asked for"
    count = f"{len(fitting) or 'none'} of the {len(left)} nodes of {component.place}"
    has = "has" if len(fitting) < 2 else "have"
    return f"{asked}, but {count} {has} that: {need.has(left)}; {need.way_out}"


def _counted(nodes: int) -> str:
    """In words."""
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def _asked(nodes: int) -> str:
    return f"{nodes} {_are(nodes)} asked for"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _up(component: Component, fitting: Sequence[Node]) -> Finding:
    """Nodes that are out of order make a job wait; that is no failure."""
    what, request = component.what("nodes"), component.request
    out = [node for node in fitting if node.is_out(bool(request.get("reservation")))]
    up = len(fitting) - len(out)
    if up >= request.nodes:
        return fine(what, f"{request.nodes} of {len(fitting)} that fit ({fold(node.name for node in fitting)})")
    reasons = ", ".join(f"{node.name} {'+'.join(sorted(node.states))}{_because(node)}" for node in out[:3])
    return warning(
        what,
        f"{_asked(request.nodes)}, and {up} of the {len(fitting)} that fit {_are(up)} up: the job waits. "
        f"Out of order: {fold(node.name for node in out)} ({reasons})",
    )


def _because(node: Node) -> str:
    return f": {node.reason}" if node.reason else ""


def fitting_nodes(component: Component, site: Site) -> frozenset[str]:
    """Names of the nodes that could take the component, were they up."""
    needs = list(_needs(component, site))
    return frozenset(node.name for node in component.nodes(site) if all(need.met(node) for need in needs))


def check_disjoint(components: Sequence[Component], site: Site) -> Iterator[Finding]:
    """Whether the components can have nodes of their own, by Hall's theorem: any of them need as many as they share."""
    known = [one for one in components if one.partition is not None or one.partition_name is None]
    fitting = {one.role: fitting_nodes(one, site) for one in known}
    known = [one for one in known if one.request.nodes <= len(fitting[one.role])]  # else said for the component itself
    up = {node.name for node in site.nodes if not node.is_out()}
    for size in range(2, len(known) + 1):
        for some in combinations(known, size):
            either = frozenset[str]().union(*(fitting[one.role] for one in some))
            # Where one alone has too few that are up, that is said already.
            each_waits = any(one.request.nodes > len(fitting[one.role] & up) for one in some)
            yield _apart(some, either, either if each_waits else either & up)


def _apart(some: Sequence[Component], either: frozenset[str], up: frozenset[str]) -> Finding:
    what = "nodes of both roles"
    needed = sum(one.request.nodes for one in some)
    who = " and ".join(f"{one.request.nodes} for the {one.role}" for one in some)
    if needed > len(either):
        return failure(
            what,
            f"{who} make {needed}, since components never share a node, but {len(either)} fit either "
            f"({fold(either)}). Slurm takes such a job and never starts it; set max_nodes: {len(either)} in the spec, "
            "other pools, or launch: ranks",
        )
    if needed > len(up):
        return warning(
            what,
            f"{who} make {needed}, and {len(up)} of the {len(either)} that fit either {_are(len(up))} up: the job "
            f"waits. Out of order: {fold(either - up)}",
        )
    return fine(what, f"{who}, of {len(either)} that fit either")


# What a node must have


def _needs(component: Component, site: Site) -> Iterator[Need]:
    if component.request.gpus_per_node:
        yield _gpus(component)
    yield _cpus(component)
    memory = _memory(component, site)
    if memory is not None:
        yield memory
    if component.request.get("constraint") and not _is_unreadable(component):
        yield _features(component)


def _gpus(component: Component) -> Need:
    wanted, pool = component.request.gpus_per_node, component.pool.name
    return Need(
        met=lambda node: has_gpus(node.gpus, wanted),
        asks=describe(wanted),
        has=lambda nodes: f"they have {', '.join(sorted({describe(node.gpus) for node in nodes}))}",
        way_out=f"correct gpus_per_node, gpu_directive or partition of pool {pool} in the cluster file",
    )


def _cpus(component: Component) -> Need:
    most = component.partition.max_cpus_per_node if component.partition else None
    cpus = component.request.cpus_per_node
    return Need(
        met=lambda node: cpus <= min(node.cpus, most or node.cpus),
        asks=f"{cpus} CPUs",
        has=lambda nodes: f"the largest gives {max(min(n.cpus, most or n.cpus) for n in nodes)}",
        way_out=f"correct cpus_per_node of pool {component.pool.name} in the cluster file",
    )


def _memory(component: Component, site: Site) -> Need | None:
    asked = component.request.memory
    if asked is None:
        return None
    mib = asked.of(component.request.cpus_per_node)
    if not mib:
        return None
    most = _most_memory(component, site).of(component.request.cpus_per_node)
    return Need(
        met=lambda node: mib <= min(node.memory_mib, most or node.memory_mib),
        asks=f"{mib / 1024:.4g} GiB of memory",
        has=lambda nodes: f"the largest gives {max(min(n.memory_mib, most or n.memory_mib) for n in nodes) / 1024:.4g}",
        way_out=f"correct mem of pool {component.pool.name} in the cluster file",
    )


def _most_memory(component: Component, site: Site) -> Memory:
    """A limit per CPU is none: Slurm gives the job more CPUs instead."""
    partition = component.partition
    return Memory(per_node=partition.max_memory.per_node if partition else site.config.max_memory.per_node)


def _features(component: Component) -> Need:
    constraint, pool = component.request.get("constraint"), component.pool.name
    return Need(
        met=lambda node: satisfies(node.features, constraint),
        asks=f"constraint {constraint}",
        has=lambda nodes: _known_features(constraint, nodes),
        way_out=f"correct constraint of pool {pool} in the cluster file",
    )


def _known_features(constraint: str, nodes: Sequence[Node]) -> str:
    known = sorted({feature for node in nodes for feature in node.features})
    unknown = [name for name in names_in(constraint) if name not in known]
    words = f"features there: {', '.join(known) or 'none'}"
    return f"no node has {unknown[0]}{nearest(unknown[0], known)}; {words}" if unknown else words


def _is_unreadable(component: Component) -> bool:
    try:
        satisfies((), component.request.get("constraint"))
    except UnreadableConstraintError:
        return True
    return False


def _unread_constraint(component: Component) -> Iterator[Finding]:
    constraint = component.request.get("constraint")
    if constraint and _is_unreadable(component):
        yield note(component.what("constraint"), f"'{constraint}' is not understood here; Slurm judges it")

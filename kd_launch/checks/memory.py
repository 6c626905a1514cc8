"""Whether the memory that Slurm gives a component is enough for its ranks."""

from collections.abc import Iterator

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, fine, note, warning
from kd_launch.plan import Layout
from kd_launch.slurm.inventory import Memory
from kd_launch.slurm.site import Site

PROGRAMS_MIB = 3072
"""Of a rank on a GPU: Python, torch with its GPU libraries, pinned buffers. Assumed."""


def check_memory(component: Component, layout: Layout, site: Site) -> Iterator[Finding]:
    """The memory of a node that the job gets without asking, where memory is counted and the site has a default."""
    what, request, nodes = component.what("memory"), component.request, component.nodes(site)
    if not site.config.memory_is_counted or not nodes:
        return
    smallest = min(node.memory_mib for node in nodes)
    asked = request.memory
    given = (asked or _default(component, site)).of(_cpus(component, site))
    if not given:  # 0, or no default: all of a node's
        yield fine(what, f"all of a node's, {smallest / 1024:.4g} GiB")
        return
    needed = _needed_mib(component, layout)
    if needed > given:
        source = "mem gives" if asked else "it does not ask, and the site's default gives"
        yield warning(
            what,
            f"its ranks take about {needed / 1024:.3g} GiB of a node, but {source} {given / 1024:.3g}: they may be "
            f'killed (OUT_OF_MEMORY); set mem of pool {component.pool.name} in the cluster file, such as "0" for all',
        )
    elif asked is None:
        yield note(what, f"it does not ask, and the site's default gives {given / 1024:.3g} GiB of a node (mem)")
    else:
        yield fine(what, f"{given / 1024:.4g} GiB of a node")


def _default(component: Component, site: Site) -> Memory:
    partition = component.partition
    own = partition.default_memory if partition else Memory()
    return own if own != Memory() else site.config.default_memory


def _cpus(component: Component, site: Site) -> int:
    """That the job gets on a node."""
    if component.request.takes_whole_nodes or (component.partition is not None and component.partition.whole_nodes):
        return min(node.cpus for node in component.nodes(site))
    return component.request.cpus_per_node


def _needed_mib(component: Component, layout: Layout) -> float:
    """Of a CPU pool what the plan predicts; ranks on GPUs keep their programs and what passes through in it."""
    if not component.pool.is_cpu:
        return PROGRAMS_MIB * component.request.tasks_per_node
    both = [layout.student] if layout.colocated else [layout.teacher, layout.student]
    roles = {"teacher": [layout.teacher], "student": [layout.student]}.get(component.role, both)
    return max(role.memory_gib for role in roles) * component.request.tasks_per_node * 1024

"""All that is found out by asking Slurm, of a script that is about to be sent."""

from collections.abc import Iterator

from kd_launch.checks.accounting import check_account, check_limits, check_qos, check_time
from kd_launch.checks.component import Component, looked_at, placed, roles_of
from kd_launch.checks.finding import Finding, Level, Place, failure, fine, note
from kd_launch.checks.launch import check_launch, check_requeue
from kd_launch.checks.memory import check_memory
from kd_launch.checks.nodes import check_disjoint, check_nodes
from kd_launch.checks.partition import check_partition
from kd_launch.checks.shared import check_shared
from kd_launch.checks.timing import check_timing
from kd_launch.checks.trial import check_trial
from kd_launch.errors import SlurmRefusedError, SlurmSilentError, SpecError
from kd_launch.plan import Layout
from kd_launch.preparation import Inputs
from kd_launch.slurm.request import read_requests
from kd_launch.slurm.site import Site, ask_site

_NOT_SEEN = "partitions, accounts, limits, nodes and launch are not looked at"


def check_slurm(inputs: Inputs, layout: Layout, script: str, place: Place) -> Iterator[Finding]:
    """What would be refused, or would wait for ever; at the end, what sbatch itself says."""
    try:
        site = ask_site(place.run)
    except SlurmSilentError as error:
        yield Finding(Level.SILENT, "slurm", f"{error}; {_NOT_SEEN}")
        return
    except SlurmRefusedError as error:
        yield failure("slurm", f"{error}; {_NOT_SEEN}")
        return
    yield fine("slurm", f"{site.config.version} of cluster {site.config.cluster_name}")
    found = []
    for finding in _of_site(inputs, layout, script, site, place):
        found.append(finding)
        yield finding
    yield check_trial(script, found, place)


def _of_site(inputs: Inputs, layout: Layout, script: str, site: Site, place: Place) -> Iterator[Finding]:
    if site.config.plugins:
        yield note("submission", f"the site may change a job as it comes in (JobSubmitPlugins = {site.config.plugins})")
    try:
        requests = read_requests(script)
    except SpecError as error:
        yield failure("directives", str(error))
        return
    components: list[Component] = []
    for role, pool, request in roles_of(inputs, layout, requests):
        checks = (check_partition, check_account, check_qos, check_time, check_nodes)
        component, found = looked_at(placed(role, pool, request, site), site, checks)
        yield from found
        yield from check_memory(component, layout, site)
        components.append(component)
    yield from check_disjoint(components, site)
    yield from check_limits(components, site)
    yield from check_launch(layout, components, site)
    yield from check_requeue(components, site)
    yield from check_timing(inputs, layout, components)
    yield from check_shared(inputs, components, site, place)

"""Whether this Slurm starts the job as the plan says: het jobs, steps over components, requeues."""

from collections.abc import Iterator, Sequence

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, failure, fine, note, warning
from kd_launch.plan import Layout
from kd_launch.slurm.site import Site

HETJOBS = {"hetjob", "two_steps"}
"""Launches whose job has a component for each role."""

JOINT_STEPS = {"hetjob", "hetstep"}
"""Launches with one step of two parts, `srun A : B`."""


def check_launch(layout: Layout, components: Sequence[Component], site: Site) -> Iterator[Finding]:
    """The launch itself. Slurm says no to a step only when the job has waited and starts."""
    what, config, launch = "launch", site.config, layout.launch
    planned = 2 if launch in HETJOBS and not layout.colocated else 1
    if len(components) != planned:
        yield failure(
            what,
            f"{launch} needs {planned} components, but the template makes {len(components)}; "
            "see `template` in the cluster file",
        )
    elif planned == 2 and not config.hetjobs:
        yield failure(
            what,
            f"{launch} is a het job, which this Slurm refuses (SchedulerType = {config.get('SchedulerType')}); "
            "set hetjobs: false or auto in the cluster file, and leave launch in the spec to auto",
        )
    elif launch in JOINT_STEPS and not layout.colocated and not config.hetjob_steps:
        yield failure(
            what,
            f"{launch} starts one step over two components, which this Slurm refuses once the job runs "
            "(SchedulerParameters has disable_hetjob_steps); set hetjob_steps: false or auto in the cluster file, and "
            "leave launch in the spec to auto",
        )
    else:
        yield fine(what, f"{launch}, {'a het job' if planned == 2 else 'one allocation'}")


def check_requeue(components: Sequence[Component], site: Site) -> Iterator[Finding]:
    """Whether the job may come back after a preemption, a node failure or its time limit."""
    kept = [one.role for one in components if not _may_return(one, site)]
    if kept:
        yield warning(
            "requeue",
            f"the job does not come back after a preemption, a node failure or its time limit: {' and '.join(kept)} "
            f"{'have' if len(kept) > 1 else 'has'} no --requeue{_default(site)}; "
            "give every component of the template one, and leave --no-requeue out of sbatch",
        )
    elif not site.config.requeues:
        yield note("requeue", "JobRequeue is 0 here, but the script says --requeue, which goes before it")
    else:
        yield fine("requeue", "the job may come back")


def _may_return(component: Component, site: Site) -> bool:
    asked = component.request.requeues
    return site.config.requeues if asked is None else asked


def _default(site: Site) -> str:
    return "" if site.config.requeues else " (and JobRequeue is 0 here)"

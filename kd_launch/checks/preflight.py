"""Looks at everything that a run needs, one finding after another, so that all errors show at once."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from kd_launch.checks.data import check_data, check_sequence_length, check_tokens
from kd_launch.checks.finding import Finding, Place, failure, fine
from kd_launch.checks.models import check_models
from kd_launch.checks.place import check_interpreters, check_machine, check_run_root
from kd_launch.checks.slurm import check_slurm
from kd_launch.errors import KdLaunchError, SpecError
from kd_launch.plan import Layout, describe_role, unsupported_by_runtime
from kd_launch.preparation import Inputs
from kd_launch.submission import planned_run_dir, script_text


def check(inputs: Inputs, choose: Callable[[], Layout], place: Place) -> Iterator[Finding]:
    """What is found on this machine and, for a Slurm cluster, by asking Slurm.

    Args:
        choose: plans, and returns the chosen layout; raises what planning raises.
    """
    yield from check_models(inputs, place)
    yield from check_sequence_length(inputs)
    data = list(check_data(inputs, place))
    yield from data
    if all(finding.ok for finding in data):
        yield check_tokens(inputs)
    yield check_run_root(inputs)
    try:
        layout = choose()
    except KdLaunchError as error:
        yield failure("layout", "; ".join(str(error).splitlines()))
        return
    yield _layout(layout)
    yield from _on_cluster(inputs, layout, place)


def _on_cluster(inputs: Inputs, layout: Layout, place: Place) -> Iterator[Finding]:
    pools = [inputs.cluster.pool(name) for name in dict.fromkeys((layout.teacher.pool, layout.student.pool))]
    if inputs.cluster.scheduler == "local":
        yield check_machine(pools[0], layout, place.machine)
    run = planned_run_dir(inputs, None, place.cwd, datetime.now(UTC))
    try:
        script = script_text(inputs, layout, run)
    except SpecError as error:
        yield failure("script", str(error))
        return
    yield fine("script", f"launch {layout.launch or 'on this machine'}")
    yield from check_interpreters(inputs, pools, place)
    if inputs.cluster.scheduler == "slurm":
        yield from check_slurm(inputs, layout, script, place)


def _layout(layout: Layout) -> Finding:
    words, unable = _describe(layout), unsupported_by_runtime(layout)
    if unable is None:
        return fine("layout", words)
    return failure(
        "layout", f"{words}; this version does not run {unable} yet; set teacher.parallelism to replicas alone"
    )


def _describe(layout: Layout) -> str:
    teacher, student = layout.teacher, layout.student
    return (
        f"{layout.placement}, teacher on {teacher.gpus} of pool {teacher.pool} ({describe_role(teacher)}), "
        f"student on {student.gpus} of pool {student.pool} ({describe_role(student)})"
    )

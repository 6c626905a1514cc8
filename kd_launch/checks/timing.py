"""Whether the time before the end signal and after it is enough: for a step, a checkpoint, and the whole run."""

import re
from collections.abc import Iterator, Sequence

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, failure, fine, warning
from kd_launch.plan import Layout
from kd_launch.preparation import Inputs
from kd_launch.slurm.fields import time_text
from kd_launch.slurm.request import Request

STATE_BYTES = 12
"""Of a parameter in a checkpoint: the weight and both Adam states in float32."""

WRITTEN_BYTES_PER_S = 1e9
"""Assumed of a shared file system: what one client of a busy one still gets."""

_SIGNAL = re.compile(r"@(\d+)")
_SET = "set signal_before_end_s in the cluster file, time_limit, or slurm.time_limit"


def check_timing(inputs: Inputs, layout: Layout, components: Sequence[Component]) -> Iterator[Finding]:
    """Ranks are told to leave so many seconds before the time limit; they then save and go."""
    limit, before = _limit(components), _signal(components[0].request)
    if limit is None:
        return
    if before is None:
        yield warning("end signal", f"there is none, so that nothing is saved at the time limit; {_SET}")
        return
    around = _around_signal(inputs, layout, limit, before)
    yield around
    total = inputs.spec.training.steps * layout.step_seconds.p50
    if around.ok and total > limit - before:
        # Until there are checkpoints, a requeued run starts again.
        yield warning(
            "time limit of the run",
            f"{inputs.spec.training.steps} steps take about {time_text(round(total))}, but the time limit is "
            f"{time_text(limit)}, and this version writes no checkpoints: at the limit the run starts again, and fails "
            "the second time; raise time_limit, or take fewer steps",
        )


def _around_signal(inputs: Inputs, layout: Layout, limit: int, before: int) -> Finding:
    what, step = "end signal", layout.step_seconds
    save = inputs.student.parameters * STATE_BYTES / WRITTEN_BYTES_PER_S
    words = f"{before} s before the time limit of {time_text(limit)}"
    if before >= limit:
        return failure(what, f"{words}, that is when the job starts: it never does a step; {_SET}")
    if limit - before < step.p10:
        return failure(what, f"{words} leaves {limit - before} s, but a step takes {step.p10:.0f} s or more; {_SET}")
    if before < step.p90 + save:
        return warning(
            what,
            f"{words}, but to end a step ({step.p90:.0f} s) and save ({save:.0f} s at an assumed 1 GB/s) may take "
            f"{step.p90 + save:.0f} s: what was done since the last checkpoint would be lost; {_SET}",
        )
    return fine(what, words)


def _limit(components: Sequence[Component]) -> int | None:
    """The shortest, which ends the step everywhere."""
    found = []
    for one in components:
        partition = one.partition
        default = (partition.default_time_s or partition.max_time_s) if partition else None
        found.append(one.request.time_s or default)
    return min((limit for limit in found if limit), default=None)


def _signal(request: Request) -> int | None:
    """Seconds of --signal=USR2@120; 60 where it does not say."""
    text = request.get("signal")
    if not text:
        return None
    found = _SIGNAL.search(text)
    return int(found[1]) if found else 60

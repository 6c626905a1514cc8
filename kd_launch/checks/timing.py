"""Whether the time before the end signal and after it is enough: for a step, a checkpoint, and the whole run."""

import re
from collections.abc import Iterator, Sequence
from math import ceil

from kd_launch.checks.component import Component
from kd_launch.checks.finding import Finding, Level, failure, fine, warning
from kd_launch.plan import Layout
from kd_launch.preparation import Inputs
from kd_launch.slurm.fields import time_text
from kd_launch.slurm.request import Request

STATE_BYTES = 12
"""Of a parameter in a checkpoint: the weight and both Adam states in float32."""

WRITTEN_BYTES_PER_S = 1e9
"""Assumed of a shared file system: what one client of a busy one still gets."""

AGREE_S = 5.0
"""For every rank to hear of the signal, and for the students to agree on the last step."""

_SIGNAL = re.compile(r"@(\d+)")
_SET = "set signal_before_end_s in the cluster file, time_limit, or slurm.time_limit"


def check_timing(inputs: Inputs, layout: Layout, components: Sequence[Component]) -> Iterator[Finding]:
    """Ranks are told to leave so many seconds before the time limit; they then save the last step and go."""
    limit, before = _limit(components), _signal(components[0].request)
    if limit is None:
        return
    if before is None:
        yield warning("end signal", f"there is none, so that nothing is saved at the time limit; {_SET}")
        return
    save = AGREE_S + inputs.student.parameters * STATE_BYTES / WRITTEN_BYTES_PER_S
    around = _around_signal(layout, limit, before, save)
    yield around
    total = inputs.spec.training.steps * layout.step_seconds.p50
    if around.level is not Level.FAIL and total > limit - before:
        yield _several_jobs(inputs, layout, limit, limit - before, saves_at_signal=around.level is Level.OK)


def _around_signal(layout: Layout, limit: int, before: int, save: float) -> Finding:
    what, step = "end signal", layout.step_seconds
    words = f"{before} s before the time limit of {time_text(limit)}"
    if before >= limit:
        return failure(what, f"{words}, that is when the job starts: it never does a step; {_SET}")
    if limit - before < step.p10:
        return failure(what, f"{words} leaves {limit - before} s, but a step takes {step.p10:.0f} s or more; {_SET}")
    if before < save:
        return warning(
            what,
            f"{words}, but to agree on the last step and save it may take {save:.0f} s at an assumed 1 GB/s: what was "
            f"done since the last checkpoint would be lost; {_SET}",
        )
    return fine(what, words)


def _several_jobs(inputs: Inputs, layout: Layout, limit: int, usable: int, *, saves_at_signal: bool) -> Finding:
    """Of a run that is longer than its job."""
    what, training, every = "time limit of the run", inputs.spec.training, inputs.spec.checkpoint.every_steps
    step = layout.step_seconds.p50
    words = (
        f"{training.steps} steps take about {time_text(round(training.steps * step))}, but the time limit is "
        f"{time_text(limit)}"
    )
    if not saves_at_signal and every * step > usable:
        return failure(
            what,
            f"{words}, and a job makes about {usable / step:.0f} steps, fewer than checkpoint.every_steps {every}: "
            f"none would leave a checkpoint, and the run would not get on; lower checkpoint.every_steps, or {_SET}",
        )
    return fine(
        what, f"{words}: about {ceil(training.steps * step / usable)} jobs, each from the last one's checkpoint"
    )


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

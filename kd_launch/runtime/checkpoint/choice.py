"""Where an attempt begins: the newest checkpoint that every student rank finds sound, or the very start."""

from collections.abc import Sequence

import torch.distributed as dist

from kd_launch.run_dir import RunDir
from kd_launch.runtime.checkpoint.folders import set_aside, tidy
from kd_launch.runtime.checkpoint.manifest import UnsoundError, read_manifest, verify
from kd_launch.runtime.departure import say
from kd_launch.runtime.heartbeat import Progress


def choose(run: RunDir, attempt: int, role_rank: int, group: dist.ProcessGroup, progress: Progress) -> int:
    """The step to begin with, 0 where there is no sound checkpoint. All student ranks must call it.

    Each verifies its share of the files' contents. A damaged one is named in the log and stands aside.
    """
    is_first = role_rank == 0
    if is_first:
        tidy(run, attempt)
    listed: list[Sequence[int]] = [run.checkpoint_steps() if is_first else []]
    with progress.waiting("the first student's list of checkpoints"):
        dist.broadcast_object_list(listed, group=group, group_src=0)
    for step in reversed(listed[0]):
        problem = _problem(run, step, role_rank, group, progress)
        if problem is None:
            if is_first:
                say(f"goes on from the checkpoint of step {step}")
            return step
        if is_first:
            say(f"warning: {run.checkpoint(step)} is not sound and is left aside: {problem}")
            set_aside(run, step)
    return 0


def _problem(run: RunDir, step: int, role_rank: int, group: dist.ProcessGroup, progress: Progress) -> str | None:
    """What any of the ranks finds wrong with a checkpoint."""
    found: list[str | None] = [None] * group.size()
    mine = _own_problem(run, step, role_rank, group.size())
    progress.move()
    with progress.waiting(f"all students to verify the checkpoint of step {step}"):
        dist.all_gather_object(found, mine, group=group)
    return next((problem for problem in found if problem is not None), None)


def _own_problem(run: RunDir, step: int, role_rank: int, ranks: int) -> str | None:
    folder = run.checkpoint(step)
    try:
        sums = read_manifest(folder)
        by_size = sorted(sums, key=lambda name: (-sums[name].bytes, name))
        verify(folder, sums, by_size[role_rank::ranks])
    except UnsoundError as error:
        return str(error)
    return None

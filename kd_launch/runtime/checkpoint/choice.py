"""Where an attempt begins: the newest checkpoint that every student rank finds sound, or the very start."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from kd_launch.errors import SpecError
from kd_launch.run_dir import RunDir
from kd_launch.runtime.checkpoint.folders import set_aside, tidy
from kd_launch.runtime.checkpoint.manifest import UnreadError, UnsoundError, read_manifest, verify
from kd_launch.runtime.departure import say
from kd_launch.runtime.heartbeat import Progress


@dataclass(frozen=True)
class _Flaw:
    """Why a checkpoint is not gone on from."""

    words: str
    may_be_sound: bool


def choose(run: RunDir, attempt: int, role_rank: int, group: dist.ProcessGroup, progress: Progress) -> int:
    """The step to begin with, 0 where there is no sound checkpoint. All student ranks must call it.

    Each verifies its share of the files' contents. A damaged one is named in the log and stands aside; one that only
    cannot be read now is named and stays.

    Raises:
        SpecError: there is none but such: to begin anew would throw away what may be sound.
    """
    is_first = role_rank == 0
    if is_first:
        tidy(run, attempt)
    listed: list[Sequence[int]] = [run.checkpoint_steps() if is_first else []]
    with progress.waiting("the first student's list of checkpoints"):
        dist.broadcast_object_list(listed, group=group, group_src=0)
    unread = None
    for step in reversed(listed[0]):
        flaw = _flaw(run, step, role_rank, group, progress)
        if flaw is None:
            if is_first:
                say(f"goes on from the checkpoint of step {step}")
            return step
        if flaw.may_be_sound:
            unread = unread or flaw
        if is_first:
            _leave_out(run, step, flaw)
    if unread is not None:
        raise SpecError(
            f"{run.checkpoints}: no checkpoint can be read: {unread.words}; mend that and resume the run, or move the "
            "folder away and it begins anew"
        )
    return 0


def _leave_out(run: RunDir, step: int, flaw: _Flaw) -> None:
    what_becomes = "passed over" if flaw.may_be_sound else "left aside"
    say(f"warning: {run.checkpoint(step)} is not sound and is {what_becomes}: {flaw.words}")
    if not flaw.may_be_sound:
        set_aside(run, step)


def _flaw(run: RunDir, step: int, role_rank: int, group: dist.ProcessGroup, progress: Progress) -> _Flaw | None:
    """What any of the ranks finds wrong with a checkpoint; damage before what may pass."""
    found: list[_Flaw | None] = [None] * group.size()
    mine = _own_flaw(run, step, role_rank, group.size())
    progress.move()
    with progress.waiting(f"all students to verify the checkpoint of step {step}"):
        dist.all_gather_object(found, mine, group=group)
    flaws = [flaw for flaw in found if flaw is not None]
    return min(flaws, key=lambda flaw: flaw.may_be_sound, default=None)


def _own_flaw(run: RunDir, step: int, role_rank: int, ranks: int) -> _Flaw | None:
    folder = run.checkpoint(step)
    try:
        sums = read_manifest(folder)
        by_size = sorted(sums, key=lambda name: (-sums[name].bytes, name))
        verify(folder, sums, by_size[role_rank::ranks])
    except UnsoundError as error:
        return _Flaw(str(error), isinstance(error, UnreadError))
    return None

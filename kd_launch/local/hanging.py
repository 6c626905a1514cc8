"""Ranks on this machine that neither advance nor die: known by their signs of life, as beside a job on Slurm."""

import socket
import time

from kd_launch.attempt.evidence import heartbeats_of
from kd_launch.attempt.failures import FailureRecord, write_failure
from kd_launch.attempt.verdicts import Verdict, Watched, anew, judge, limits_of, observe
from kd_launch.attempt.watch import LOOK_S, can_write
from kd_launch.errors import SpecError
from kd_launch.plan import RunPlan
from kd_launch.run_dir import RunDir


class Hanging:
    """Looks at the ranks of one attempt now and then."""

    def __init__(self, run: RunDir, attempt: int, plan: RunPlan, now: float) -> None:
        self._run, self._attempt, self._layout = run, attempt, plan.layout
        self._limits = limits_of(plan.cluster, plan.layout)
        self._watched, self._looked = Watched(), now

    def __call__(self, now: float) -> str | None:
        """Why the attempt must be ended, which its failure record then says too; None: let it run.

        Args:
            now: of a clock that stands still while the machine sleeps.
        """
        if now - self._looked < LOOK_S:
            return None
        seconds = self._watched.seconds + min(now - self._looked, 3 * LOOK_S)
        self._looked = now
        try:
            beats, trains = heartbeats_of(self._run, self._attempt), self._run.start_record(self._attempt).exists()
        except OSError:
            return None  # a file system that fails for a moment
        self._watched = observe(self._watched, beats, trains, seconds)
        verdict = judge(self._watched, self._limits, self._layout.world_size)
        if verdict is None:
            return None
        if not can_write(self._run, self._attempt):
            self._watched = anew(self._watched)
            return None
        return self._record(verdict)

    def _record(self, verdict: Verdict) -> str:
        record = FailureRecord(
            attempt=self._attempt, kind=verdict.kind, role=str(self._layout.role_of(verdict.rank)), rank=verdict.rank,
            host=socket.gethostname(), error=verdict.error, time=time.time(),
        )  # fmt: skip
        words = f"{record.role} rank {record.rank} ({record.kind}): {record.error}"
        try:
            write_failure(self._run, record)
        except (OSError, SpecError) as error:
            return f"{words}; the failure record cannot be written: {error}"
        return words

"""Reads what an attempt has left: heartbeats, srun's words, the failure record; and whether it still has a say."""

from collections import deque
from collections.abc import Iterable

from kd_launch.attempt.endings import Evidence
from kd_launch.attempt.failures import read_failure
from kd_launch.attempt.place import Seats
from kd_launch.attempt.srun_log import SrunLog, read_srun_log
from kd_launch.errors import SpecError
from kd_launch.run_dir import RunDir, read_json
from kd_launch.runs.records import Heartbeat, read_heartbeats

# Of a rank's last words; a traceback's last line fits.
_LONGEST = 300


def gather(run: RunDir, attempt: int, seats: Seats, srun_status: int | None, now: float) -> Evidence:
    """All that the run folder says of an attempt.

    Args:
        srun_status: None while srun runs.
    """
    return Evidence(
        attempt=attempt,
        srun_status=srun_status,
        srun_log=srun_words(run, attempt),
        heartbeats={beat.rank: beat for beat in heartbeats_of(run, attempt)},
        record=read_failure(run, attempt),
        seats=seats,
        last_words=lambda rank: last_words(run, attempt, str(seats.role_of(rank)), rank),
        now=now,
    )


def heartbeats_of(run: RunDir, attempt: int) -> Iterable[Heartbeat]:
    """Of this attempt, surely: one that names none is another launcher's."""
    return [beat for beat in read_heartbeats(run, attempt) if beat.attempt == attempt]


def srun_words(run: RunDir, attempt: int) -> SrunLog:
    try:
        return read_srun_log(run.srun_log(attempt).read_text(errors="replace"))
    except OSError:
        return SrunLog()


def last_words(run: RunDir, attempt: int, role: str, rank: int) -> str:
    """The last line that a rank has written; "" where there is none."""
    try:
        with run.role_log(attempt, role).open(errors="replace") as log:
            mine = (line.partition(":")[2].strip() for line in log if line.partition(":")[0].strip() == str(rank))
            said = deque((line for line in mine if line and not line.startswith("slurmstepd")), maxlen=1)
    except OSError:
        return ""
    return said[0][:_LONGEST] if said else ""


def is_cancelled(run: RunDir, job_id: str) -> bool:
    """Whether `cancel` was asked to end this job, or whichever it was whose number it did not know."""
    try:
        record = read_json(run.cancel_record)
    except SpecError:
        return False  # half of it, or a file system that fails for a moment
    return record is not None and record.get("job_id") in (job_id, None)


def is_superseded(run: RunDir, attempt: int) -> bool:
    """Whether a later attempt has begun: Slurm has started the job again while this batch script went on."""
    return max(run.attempt_numbers(), default=attempt) > attempt

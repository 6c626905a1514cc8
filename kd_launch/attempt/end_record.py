"""end.json of an attempt on Slurm: what followed it, and why, as its batch script found it."""

from kd_launch.attempt.decision import Decision
from kd_launch.attempt.say import say
from kd_launch.run_dir import RunDir, write_json


def write_end(run: RunDir, attempt: int, srun_status: int | None, decision: Decision, now: float) -> None:
    """A record that cannot be written is no reason to lose the decision."""
    value = {"srun_status": srun_status, "next": decision.next, "outcome": decision.outcome, "why": decision.why}
    try:
        write_json(run.end_record(attempt), {**value, "time": now})
    except OSError as error:
        say(f"the end record cannot be written: {error}")

"""What Slurm does with the job by itself while its batch script still runs, and the patience that this asks for."""

from contextlib import suppress
from dataclasses import dataclass

from kd_launch.attempt.evidence import is_superseded
from kd_launch.attempt.outside import Outside
from kd_launch.attempt.place import Place
from kd_launch.attempt.say import say
from kd_launch.errors import SlurmSilentError
from kd_launch.run_dir import RunDir
from kd_launch.slurm.jobs import JobAnswer, ask_jobs

# A controller that restarts, or is overloaded, gets so long to answer.
SILENCE_S = 300.0
ASK_AGAIN_S = 10.0


@dataclass(frozen=True)
class Acts:
    """What Slurm does by itself."""

    words: str | None = None
    """None: it lets the job run, every component of it, in this very start."""
    known: bool = True
    """False: it gives no answer."""
    ends_us: bool = False
    """It ends or requeues the first component, and with it the batch script."""


def ask_slurm(place: Place, outside: Outside, patience: float = SILENCE_S) -> Acts:
    """Asks again for so long when Slurm gives no answer."""
    deadline = outside.clock() + patience
    while True:
        try:
            return read_acts(ask_jobs(outside.run, [place.job_id]).get(place.job_id), place)
        except SlurmSilentError as error:
            if outside.clock() >= deadline:
                return Acts(f"it has given no answer for {patience:.0f} s ({error})", known=False)
            say(f"asks Slurm again: {error}")
            outside.sleep(ASK_AGAIN_S)


def read_acts(answer: JobAnswer | None, place: Place) -> Acts:
    """What an answer amounts to."""
    if answer is None:
        return Acts(f"it does not know job {place.job_id}", ends_us=True)
    leader, *_ = answer.components
    others = [f"{part.job_id} is {part.slurm_state}" for part in answer.components if part.slurm_state != "RUNNING"]
    missing = len(place.components) - len(answer.components)
    if missing > 0:
        others.append(f"{missing} of {len(place.components)} components are gone")
    started_again = leader.restarts is not None and leader.restarts != place.restarts
    if started_again:
        others.append(f"it has started the job {leader.restarts} times again, and this is a start before")
    return Acts(", ".join(others) or None, ends_us=started_again or leader.slurm_state != "RUNNING")


def wait_to_be_ended(run: RunDir, attempt: int, place: Place, outside: Outside) -> None:
    """While Slurm ends or requeues the job, its batch script must not end by itself.

    Seen on Slurm 22.05, where the slurmd of the batch script's node was dead, so that nothing ended the script: with it
    the other components count as ended, and the requeued job pends for ever.
    """
    while not is_superseded(run, attempt):
        with suppress(SlurmSilentError):
            answer = ask_jobs(outside.run, [place.job_id]).get(place.job_id)
            if answer is None or not answer.held:
                return
        outside.sleep(ASK_AGAIN_S)

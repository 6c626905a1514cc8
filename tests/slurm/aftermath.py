"""What is left of a run to which things have happened: is it whole, was all of it told, how much was made again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kd_launch.attempt.history import AttemptRecord, read_attempts
from tests.runtime.harness import Ranks
from tests.slurm.checkpointed import Training, largest_difference

TOLERANCE = 1e-5
KINDS = {"kill": "killed", "stop": "silent", "slurmstepd": "orphaned"}
"""How the attempt's failure record calls it; a dead node may be Slurm's to notice."""
OUTCOMES = {"preempt teacher": "preempted", "preempt student": "preempted", "end signal": "time_limit"}


@dataclass(frozen=True)
class Struck:
    """What happened to a run."""

    fault: str
    rank: int
    attempt: int
    ends: bool
    """The attempt."""
    unnamed: int | None = None
    """The step of a checkpoint that was being written when the attempt ended."""


@dataclass(frozen=True)
class Lost:
    """Work that the end of an attempt has cost."""

    fault: str
    attempt: int
    steps: int
    """Made again by the next one."""
    writing: int
    """So many of them were made while a checkpoint was being written, which would have kept those before it."""

    def __str__(self) -> str:
        more = f", {self.writing} of them made while a checkpoint was being written" if self.writing else ""
        return f"attempt {self.attempt} ({self.fault}): {self.steps} steps were made again{more}"


def lost_by(training: Training, told: Sequence[Struck]) -> list[Lost]:
    """By the end of each attempt but the last, of those that came to train."""
    by_attempt = {one.attempt: one for one in told if one.ends}
    numbers = [one.number for one in read_attempts(training.run) if training.run.start_record(one.number).exists()]
    return [_lost(training, before, after, by_attempt.get(before)) for before, after in pairwise(numbers)]


def _lost(training: Training, before: int, after: int, struck: Struck | None) -> Lost:
    made, begin = training.steps_of(before), training.begin_of(after)
    last = made[-1] if made else training.begin_of(before)
    unnamed = struck.unnamed if struck else None
    writing = last - unnamed if unnamed is not None and unnamed > begin else 0
    return Lost(struck.fault if struck else "nothing that was done to it", before, last - begin, writing)


def wrong(training: Training, calm: Ranks, told: Sequence[Struck], every: int) -> Iterator[str]:
    """Everything that is not as it should be; `every`: so many steps from checkpoint to checkpoint."""
    status = training.status()
    if status["state"] != "COMPLETED":
        yield f"is {status['state']}, not COMPLETED\n{training.said()}"
        return
    yield from _learnt_otherwise(training, calm)
    for one in lost_by(training, told):
        # A write that is not done before the next is due would be a fault of its own.
        if one.steps - one.writing > every or one.writing >= every:
            yield str(one)
    attempts = {one.number: one for one in read_attempts(training.run)}
    for struck in told:
        yield from _told_otherwise(attempts[struck.attempt], struck)
    ended = {one.attempt for one in told if one.ends}
    for number in [number for number in attempts if number not in ended][:-1]:
        yield f"attempt {number} has ended, and nothing was done to it: {attempts[number]}"


def _learnt_otherwise(training: Training, calm: Ranks) -> Iterator[str]:
    ours, theirs = training.curve(), {step: loss for step, (loss, _) in calm.losses().items()}
    if missing := sorted(theirs.keys() - ours.keys()):
        yield f"no line of the steps {missing}"
    apart = max(abs(ours[step] - loss) for step, loss in theirs.items() if step in ours)
    if apart > TOLERANCE:
        yield f"the losses differ by {apart:.2g} from those of the undisturbed run"
    difference = largest_difference(training.run, calm.run_dir)
    if difference > TOLERANCE:
        yield f"the weights differ by {difference:.2g} from those of the undisturbed run"


def _told_otherwise(attempt: AttemptRecord, struck: Struck) -> Iterator[str]:
    """Whether the run's own records say what happened, and to whom."""
    kind, outcome = KINDS.get(struck.fault), OUTCOMES.get(struck.fault)
    if kind is not None:
        failure = attempt.failure
        if failure is None or failure.kind != kind or (kind != "orphaned" and failure.rank != struck.rank):
            yield f"{struck.fault} of rank {struck.rank} is told as {failure}"
    if outcome is not None and (attempt.outcome, attempt.failure) != (outcome, None):
        yield f"{struck.fault} is told as {attempt.outcome}, {attempt.failure}"

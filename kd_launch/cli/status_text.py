"""What people are told about a run, in lines of text."""

from datetime import datetime

from kd_launch.runs.facts import Facts, Failure
from kd_launch.runs.role_progress import role_progress
from kd_launch.runs.status import AttemptSummary, Status, StepProgress
from kd_launch.slurm.reasons import in_words

# Of more attempts the first ones are only counted.
SHOWN_ATTEMPTS = 3
_DAY_S = 86400
# Of a rank before it trains, in order.
_PHASES = {"starting": "ranks start", "joining": "ranks meet", "loading": "models are loaded"}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725), duration(59.6)
    ('1:02:05', '0:01:00')
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def progress_words(progress: StepProgress | None) -> str:
    """Step, loss, speed and what is left, in one line."""
    if progress is None:
        return "no step yet"
    left = f", about {duration(progress.eta_seconds)} left" if progress.eta_seconds else ""
    speed = f"{progress.tokens_per_second:,.0f} tokens/s"
    return f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}, {speed}{left}"


def step_time_line(status: Status) -> str | None:
    """What a step takes against what the plan said; None before the first one, and while the run waits."""
    time = status.step_seconds
    if time is None or waits(status):
        return None
    planned, outside = time.predicted, ""
    if not planned.p10 <= time.measured <= planned.p90:
        outside = f", outside its {planned.p10:.3g} to {planned.p90:.3g} s"
    measured = f"step time {time.measured:.3g} s, predicted {planned.p50:.3g} s"
    return f"{measured}: {time.ratio:.2f} times as long{outside}"


def failure_words(failure: Failure) -> str:
    """The first failure, in one line."""
    how = f"attempt {failure.attempt}" + (f", {failure.kind}" if failure.kind else "")
    return f"{failure.role} rank {failure.rank} on {failure.host} ({how}): {failure.error}"


def waits(status: Status) -> bool:
    """Whether the run waits for Slurm to start it."""
    return status.state in ("PENDING", "REQUEUED") and not status.ended


def waiting_words(status: Status, now: float) -> list[str]:
    """Why a run waits and when it starts; nothing where it does not wait."""
    if not waits(status):
        return []
    reasons = dict.fromkeys(component.reason for component in status.components if component.reason)
    words = [f"waits: {'; '.join(in_words(reason) for reason in reasons if reason != status.reason)}"]
    if status.start_estimate:
        words.append(f"starts {_moment(status.start_estimate, now)}")
    return [word for word in words if word != "waits: "]


def _moment(estimate: str, now: float) -> str:
    """A moment in local time, and how far away it is."""
    try:
        then = datetime.fromisoformat(estimate)
    except ValueError:
        return estimate
    left = then.timestamp() - now
    is_today = then.date() == datetime.fromtimestamp(now).date()
    shown = f"{then:%H:%M}" if is_today or abs(left) < _DAY_S / 2 else f"{then:%a %d %b %H:%M}"
    return f"about {shown}, in {duration(left)}" if left > 0 else f"about {shown}: as soon as Slurm looks"


def headlines(facts: Facts, status: Status) -> list[str]:
    """The lines that say most: why a run waits, or how far it is."""
    progress = status.progress
    if waits(status):
        reached = [f"attempt {status.attempt} reached step {progress.step} of {progress.steps}"] if progress else []
        return [*waiting_words(status, facts.now), *reached]
    if progress is not None:
        return [progress_words(progress)]
    return [] if status.ended else [f"{progress_words(None)}{_before_the_first_step(facts)}"]


def _before_the_first_step(facts: Facts) -> str:
    """What the slowest rank is at."""
    if not facts.heartbeats:
        return ""
    missing = facts.plan.layout.world_size - len(facts.heartbeats)
    if missing > 0:
        return f": {len(facts.heartbeats)} of {facts.plan.layout.world_size} ranks have started"
    slowest = min((beat.phase for beat in facts.heartbeats), key=_order)
    return f": {_PHASES[slowest]}" if slowest in _PHASES else ""


def _order(phase: str) -> int:
    return list(_PHASES).index(phase) if phase in _PHASES else len(_PHASES)


def role_notes(facts: Facts, status: Status) -> list[str]:
    """What one role waits for, or Slurm says of its component alone; not what is said for the whole run."""
    if status.ended or waits(status):
        return []
    notes = []
    for component in status.components:
        seen = role_progress(component.role, facts.heartbeats)
        if component.reason is not None and component.reason != status.reason:
            notes.append(f"{component.role}: {in_words(component.reason)}")
        elif component.state == "RUNNING" and seen is not None and seen.waiting_for:
            notes.append(f"{component.role} waits for {seen.waiting_for}")
    return notes


def attempt_lines(status: Status) -> list[str]:
    """What became of the attempts before the present one, the latest last."""
    before = [one for one in status.attempts or () if one.why and (one.attempt < status.attempt or not status.ended)]
    shown = [f"attempt {one.attempt}{_lasted(one)}: {one.why}" for one in before[-SHOWN_ATTEMPTS:]]
    hidden = len(before) - len(shown)
    return [f"{hidden} earlier {'attempt' if hidden == 1 else 'attempts'}", *shown] if hidden else shown


def _lasted(attempt: AttemptSummary) -> str:
    if attempt.began is None or attempt.ended is None:
        return ""
    return f", {duration(attempt.ended - attempt.began)}"


def failure_line(status: Status) -> str | None:
    """The latest failure, unless an attempt's line tells it."""
    failure = status.failure
    if failure is None:
        return None
    told = any(line.startswith(f"attempt {failure.attempt}") for line in attempt_lines(status))
    return None if told else f"first failure: {failure_words(failure)}"


def reason_line(status: Status) -> str | None:
    """Why the run is in its state, unless the line of its failure says it."""
    failure, reason = status.failure, status.reason
    if failure is not None and failure.attempt == status.attempt and reason is not None:
        return None if failure.error.partition("\n")[0] in reason and status.ended else reason
    return reason


def in_short(status: Status, now: float) -> str:
    """The reason of a state, or of waiting, in a list of runs."""
    if waits(status):
        codes = [component.reason for component in status.components if component.reason]
        start = [f"starts {_moment(status.start_estimate, now)}"] if status.start_estimate else []
        return "; ".join([*start, *dict.fromkeys(codes)])
    if status.failure is not None and (status.ended or status.failure.attempt == status.attempt):
        return failure_words(status.failure).splitlines()[0]
    worst_first = sorted(status.components, key=lambda component: component.state != status.state)
    reasons = [status.reason, *(component.reason for component in worst_first)]
    return next((reason for reason in reasons if reason), "")

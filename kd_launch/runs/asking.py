"""Looks at runs: at their folders, and asks Slurm about their jobs. Once, all together, or again and again but seldom.

A run's files are read after Slurm has answered: what a run wrote before Slurm called it ended is then seen.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence

from kd_launch.commands import Runner
from kd_launch.errors import SlurmSilentError, SpecError, UnknownNameError
from kd_launch.run_dir import RunDir
from kd_launch.runs.facts import Facts, gather
from kd_launch.runs.lost_job import with_job_id
from kd_launch.runs.slurm_status import Asked, ended_by_records
from kd_launch.runs.status import Status, build, unreadable
from kd_launch.slurm.jobs import LookUp, look_up

SELDOM_S = 10.0
OFTEN_S = 2.0
NEWS_S = 30.0
"""After a submission, or a change, a run is asked about often for so long."""
SILENCE_S = 600.0
"""A controller may be restarted, or moved, while somebody waits for a run."""
FIRST_ANSWER_S = 5.0
"""A table that is shown again and again does not wait longer for its first look."""
_NOT_YET = Asked(silent="it has been asked, and has not answered yet")

Clock = Callable[[], float]


def look_once(run: RunDir, runner: Runner, clock: Clock = time.time) -> tuple[Facts, Status, str | None]:
    """One run as it is now; and why that is not sure, where Slurm does not answer.

    Raises:
        SpecError: a file of the run folder cannot be read.
    """
    facts = _gather(run, clock)
    if not needs_slurm(facts):
        return facts, build(facts), None
    asked = ask_about(facts, runner)
    facts = _gather(run, clock)
    status = build(facts, asked)
    return facts, status, None if status.ended else asked.silent


def look_at_all(runs: Sequence[RunDir], runner: Runner, clock: Clock = time.time) -> tuple[list[Status], str | None]:
    """All runs, with one question to Slurm; and why some are not sure, where Slurm does not answer.

    What cannot be read is UNKNOWN, with the reason.
    """
    first = [_gather_or_status(run, clock) for run in runs]
    open_ = [one for one in first if isinstance(one, Facts) and needs_slurm(one) and ended_by_records(one) is None]
    asked = _ask_about_all(open_, runner)
    statuses = []
    for one in first:
        found = asked.get(one.run.path) if isinstance(one, Facts) else None
        again = _gather_or_status(one.run, clock) if isinstance(one, Facts) and found is not None else one
        statuses.append(build(again, found or Asked()) if isinstance(again, Facts) else again)
    silent = next((found.silent for found in asked.values() if found.silent is not None), None)
    return statuses, silent


def needs_slurm(facts: Facts) -> bool:
    """Whether Slurm has a word to say: not about a run that was never sent, nor about one that is done."""
    done = facts.done and facts.end is not None and facts.end.get("next") == "done"
    return facts.on_slurm and facts.state is not None and not done


def ask_about(facts: Facts, runner: Runner) -> Asked:
    """What Slurm says of one run's job; the accounting is asked only where the run's records leave its end open."""
    assert facts.state is not None
    try:
        job_id = with_job_id(facts.run, facts.state, runner).job_id
    except SlurmSilentError as error:
        return Asked(silent=str(error))
    if job_id is None:
        return Asked()
    found = look_up(runner, [job_id], [] if ended_by_records(facts) else [job_id])
    return _about(job_id, found)


def _about(job_id: str, found: LookUp) -> Asked:
    answer = found.jobs.get(job_id)
    return Asked(job_id, answer, found.silent if answer is None else None)


def _ask_about_all(open_: Sequence[Facts], runner: Runner) -> dict[object, Asked]:
    """By run folder. A job whose number was lost is looked for by its name, one after the other: there are few."""
    lost = [facts for facts in open_ if facts.job_id is None]
    asked: dict[object, Asked] = {facts.run.path: ask_about(facts, runner) for facts in lost}
    numbers = [facts.job_id for facts in open_ if facts.job_id is not None]
    found = look_up(runner, numbers, numbers)
    for facts in open_:
        if facts.job_id is not None:
            asked[facts.run.path] = _about(facts.job_id, found)
    return asked


def _gather(run: RunDir, clock: Clock) -> Facts:
    if not run.path.exists():
        raise UnknownNameError(f"{run.path}: was removed")
    return gather(run, clock())


def _gather_or_status(run: RunDir, clock: Clock) -> Facts | Status:
    try:
        return gather(run, clock(), in_full=False)
    except SpecError as error:
        return unreadable(run, error)


def _counts(asked: Asked, facts: Facts) -> Asked:
    """The last answer, as far as it says anything about what the files have become since."""
    if not needs_slurm(facts):
        return Asked()
    was_resumed = facts.job_id not in (None, asked.job_id)
    return _NOT_YET if was_resumed else asked


def in_background(work: Callable[[], None]) -> None:
    """In a thread that nobody has to wait for: a Slurm that hangs must stop neither the table nor Ctrl-C."""
    threading.Thread(target=work, daemon=True).start()


class Look:
    """Looks at one run again and again: at its folder each time, at Slurm in the background and seldom."""

    def __init__(
        self,
        run: RunDir,
        runner: Runner,
        clock: Clock = time.time,
        background: Callable[[Callable[[], None]], None] = in_background,
    ) -> None:
        self._run, self._runner, self._clock, self._background = run, runner, clock, background
        self._asked, self._busy, self._answered = _NOT_YET, False, threading.Event()
        self._asked_at: float | None = None
        self._answered_at = self._news_at = clock()
        self._news: Hashable = None

    def __call__(self) -> tuple[Facts, Status]:
        """The run as it is now.

        Raises:
            SpecError: a file of the run folder cannot be read.
            SlurmSilentError: Slurm has not answered for long, and no rank gives a sign of life.
        """
        if self._asked_at is None:
            self._ask_if_due(_gather(self._run, self._clock))
        asked = self._asked  # before the files are read
        facts = _gather(self._run, self._clock)
        status = build(facts, _counts(asked, facts))
        self._note_news(facts, status)
        self._ask_if_due(facts)
        self._give_up(facts, status)
        return facts, status

    def _note_news(self, facts: Facts, status: Status) -> None:
        news = (status.state, facts.job_id, facts.attempt, facts.end is None, facts.done, facts.cancelled)
        if news != self._news:
            self._news, self._news_at = news, facts.now

    def _ask_if_due(self, facts: Facts) -> None:
        """The first answer is waited for a while, so that the first look is a true one."""
        if self._busy or not needs_slurm(facts):
            return
        pause = OFTEN_S if facts.now - self._news_at <= NEWS_S else SELDOM_S
        is_first = self._asked_at is None
        if self._asked_at is None or facts.now - self._asked_at >= pause:
            self._asked_at, self._busy = facts.now, True
            self._background(lambda: self._ask(facts))
            if is_first:
                self._answered.wait(FIRST_ANSWER_S)

    def _ask(self, facts: Facts) -> None:
        asked = ask_about(facts, self._runner)
        if asked.silent is None:
            self._answered_at = self._clock()
        self._asked, self._busy = asked, False
        self._answered.set()

    def _give_up(self, facts: Facts, status: Status) -> None:
        is_silent = self._asked.silent is not None and facts.now - self._answered_at > SILENCE_S
        if is_silent and status.state == "UNKNOWN" and not status.ended:
            words = f"{self._run.name}: Slurm has not answered for {SILENCE_S / 60:.0f} minutes"
            raise SlurmSilentError(f"{self._asked.silent}\n{words}")

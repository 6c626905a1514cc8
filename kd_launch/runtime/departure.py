"""Ends this process, whatever its main thread waits for: told by a signal, left by the others, or orphaned.

A handler of Python's own runs only when the main thread is back from C++, which a rank that waits for another may never
be. So the signal's number goes through a pipe to a thread, which acts. A rank that is told to leave while it trains
first takes part in a last checkpoint, as long as there is time: see `parting`.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn, Protocol

from kd_launch.errors import SpecError
from kd_launch.plan import Role
from kd_launch.run_dir import RunDir, read_json, write_first_json
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.failures import Failure, record
from kd_launch.runtime.heartbeat import Heartbeat, LastWord
from kd_launch.runtime.lineage import is_below

REASONS: dict[LastWord, str] = {"USR2": "time_limit", "TERM": "terminated", "INT": "interrupted"}
"""Slurm sends USR2 before the time limit; TERM at a preemption, a cancel, and when another rank has died. A terminal
sends INT."""
_WORDS: dict[int, LastWord] = {signal.SIGUSR2: "USR2", signal.SIGTERM: "TERM", signal.SIGINT: "INT"}
LOOK_SECONDS = 0.2
GONE_SECONDS = 300.0
"""A run folder that was removed stays away; one whose disk was only taken away for a while comes back."""
LOCAL_GRACE_SECONDS = 8.0
"""On a machine of one's own KILL follows TERM after 10 s."""


class Parting(Protocol):
    """What ranks do together before they leave."""

    def part(self, word: str, seconds: float) -> None:
        """Tells the others, and makes the last checkpoint; returns in about so many seconds, but may hang in torch."""


def grace_seconds(launcher: str, signal_before_end_s: int) -> float:
    """For the last checkpoint, from the signal on. Slurm's KILL may come earlier: then what is half written stays so,
    and has no checkpoint's name."""
    if launcher != "slurm":
        return LOCAL_GRACE_SECONDS
    return signal_before_end_s - min(10.0, 0.2 * signal_before_end_s)


class Departure:
    """How this process ends before its main thread has come to the end."""

    def __init__(
        self, run_dir: RunDir, place: Environment, role: Role, heartbeat: Heartbeat, launcher: int | None
    ) -> None:
        """
        Args:
            launcher: the process whose end this rank must not outlive; None: nobody's.
        """
        self._run_dir, self._place, self._role, self._heartbeat = run_dir, place, role, heartbeat
        self._launcher = launcher
        self._leave_record = run_dir.leave_record(place.attempt)
        self._ending = threading.Lock()
        self._leaving = threading.Lock()
        self._told = False
        self._missed_since: float | None = None
        """Since when the run folder has not been there, by the monotonic clock."""
        self._parting: Parting | None = None
        self._grace = 0.0

    def part_by(self, parting: Parting, seconds: float) -> None:
        """From now on a rank that leaves first does this, for so many seconds at most."""
        self._grace, self._parting = seconds, parting

    def heed_signals(self) -> None:
        """From now on TERM, USR2 and INT are seen at once. Only the main thread may call this."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for word in REASONS:
            number = signal.Signals[f"SIG{word}"]
            signal.signal(number, self._note)
            signal.siginterrupt(number, False)  # what C++ waits in shall not fail before the thread has acted
        self.start("signals", lambda: self._obey(reading))

    def start(self, name: str, work: Callable[[], None]) -> None:
        """A thread whose error ends this rank."""
        threading.Thread(target=self.guarded(work), name=name, daemon=True).start()

    def guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        """Work of a thread whose error must not pass unseen: the rank would go on half alive."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                words = f"{type(error).__name__}: {error} (in thread {threading.current_thread().name})"
                self.fail(Failure("raised", self._place.rank, self._role, self._place.host, words), "raised")

        return run

    def look_around(self) -> None:
        """Ends this rank if it is an orphan, or its run was removed, or if the others leave. Cheap; called with every
        heartbeat."""
        if self._launcher is not None and not is_below(self._launcher):
            self._end_orphaned()
        self._end_without_folder(time.monotonic())
        self.follow_others()

    def follow_others(self) -> None:
        """Leaves if another rank was told to: the signal need not have come here."""
        left = None
        with suppress(SpecError):  # a file system that fails for a moment is no reason to end
            left = read_json(self._leave_record)
        if left is not None:
            self.follow(str(left.get("signal")))

    def follow(self, signal_name: str) -> None:
        """Leaves as another rank was told to, in a thread of its own: signs of life go on meanwhile."""
        word: LastWord = next((word for word in REASONS if word == signal_name), "TERM")
        self._told = True
        self.start("leaving", lambda: self._leave(word))

    def give_way(self) -> None:
        """For a main thread that has come to an error: waits for a signal that is being obeyed to end the process."""
        while self._told and not self._may_finish():
            time.sleep(LOOK_SECONDS)

    def fail(self, failure: Failure, word: LastWord) -> NoReturn:
        """Records a failure that another thread than the main one has found, and ends."""
        with suppress(OSError, SpecError):
            record(self._run_dir, self._place.attempt, failure)
        say(f"error: {failure.error}")
        self._end(word, 1)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        self._told = True

    def _obey(self, reading: int) -> None:
        word: LastWord | None = None
        while word is None:  # other handled signals come here too
            word = _WORDS.get(os.read(reading, 1)[0])
        self._told = True
        if self._may_finish():
            say(f"{word} after the training: this rank finishes first")
            # Until the main thread has ended the process, or the others leave, or one has failed.
            ends = (self._run_dir.failure(self._place.attempt), self._leave_record)
            while not any(path.exists() for path in ends):
                time.sleep(LOOK_SECONDS)
        self._leave(word)

    def _may_finish(self) -> bool:
        """Whether so little is left that ending now would only throw the training away. Slurm's own patience ends it
        if need be; on a machine of one's own TERM means cancel, at once."""
        return self._place.launcher == "slurm" and self._heartbeat.progress.phase == "finishing"

    def _leave(self, word: LastWord) -> None:
        """Says so, takes part in the last checkpoint, and ends this process. Whoever comes second leaves it to the
        first."""
        if not self._leaving.acquire(blocking=False):
            return
        ends = (self._run_dir.failure(self._place.attempt), self._run_dir.done_record(self._place.attempt))
        if not any(path.exists() for path in ends):  # else TERM only clears up
            told = self._write_leave_record(word)
            self._part(word)
            if not told:  # srun's word on this exit code tells the job's script what no record can
                self._end(word, _shell_code(word))
        self._end(word, self._exit_code(word))

    def _write_leave_record(self, word: LastWord) -> bool:
        """Whether there is one now."""
        said = {"signal": word, "reason": REASONS[word], "rank": self._place.rank, "role": str(self._role)}
        try:
            write_first_json(self._leave_record, {**said, "time": time.time()})
        except OSError as error:
            say(f"warning: {self._leave_record}: {error.strerror or error}")
            return False
        return True

    def _part(self, word: LastWord) -> None:
        """In a thread that is not waited for longer than there is time: torch may never return from it."""
        parting = self._parting
        # Of a later attempt's life this one must not take anything; and what does not train yet has nothing to save.
        superseded = self._run_dir.attempt(self._place.attempt + 1).exists()
        began = self._run_dir.start_record(self._place.attempt).exists()
        phases = ("training", "finishing") if self._role is Role.TEACHER else ("training",)
        if parting is None or superseded or not began or self._heartbeat.progress.phase not in phases:
            return

        def work() -> None:
            try:
                parting.part(word, self._grace)
            except Exception as error:  # whatever it is, this rank leaves
                say(f"leaves without a checkpoint of the last step: {type(error).__name__}: {error}")

        thread = threading.Thread(target=work, name="parting", daemon=True)
        thread.start()
        thread.join(self._grace)
        if thread.is_alive() and self._role is not Role.TEACHER:
            say(f"leaves without a checkpoint of the last step: it was not written within {self._grace:.0f} s")

    def _exit_code(self, word: LastWord) -> int:
        """Under Slurm 0, for the job's script looks at the records; elsewhere what a shell says of the signal."""
        return 0 if self._place.launcher == "slurm" else _shell_code(word)

    def _end_orphaned(self) -> NoReturn:
        """An orphan would hold GPUs that nobody counts any more."""
        if self._place.launcher == "slurm":
            words = f"its launcher (process {self._launcher}) is gone: the rank has ended itself"
            self.fail(Failure("orphaned", self._place.rank, self._role, self._place.host, words), "orphaned")
        self._end("orphaned", 1)

    def _end_without_folder(self, now: float) -> None:
        """Nobody sees such a run, or can cancel it, and it would hold its GPUs to the last step for nothing."""
        path = self._run_dir.path
        try:
            path.stat()
        except FileNotFoundError:
            self._missed_since = self._missed_since or now
        except OSError:
            return  # a file system that fails
        else:
            self._missed_since = None
        if self._missed_since is not None and now - self._missed_since > GONE_SECONDS:
            words = f"{path}: has not been there for {GONE_SECONDS:.0f} s: nothing of the run could be kept"
            self.fail(Failure("raised", self._place.rank, self._role, self._place.host, words), "raised")

    def _end(self, word: LastWord, code: int) -> NoReturn:
        self._ending.acquire()  # never released: the first reason is the one that counts
        try:
            self._heartbeat.end(word)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _shell_code(word: LastWord) -> int:
    return 128 + signal.Signals[f"SIG{word}"]


def say(words: str) -> None:
    """A line for the rank's log, if anybody still reads it: with its launcher the pipe is gone."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{words}\n")
        sys.stderr.flush()

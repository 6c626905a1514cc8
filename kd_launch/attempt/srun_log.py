"""What srun says about the end of its tasks, in srun.log of an attempt, becomes values.

The words are those of src/api/step_launch.c and src/srun/libsrun/launch.c, the same from 20.11 to 25.11. Tasks are
numbered within their component, and one line may name several of them: `srun: error: n1: tasks 0-1: Killed`.
"""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from kd_launch.slurm.nodes import expand

_TASKS = re.compile(r"srun: error: (?P<hosts>\S+): tasks? (?P<tasks>[\d,-]+): (?P<how>.+)")
_EXITED = re.compile(r"Exited with exit code (?P<code>\d+)")
_NODES_LOST = (
    re.compile(r"srun: error: Node failure on (?P<hosts>\S+)"),
    re.compile(r"srun: error: Task launch for \S+ failed on node (?P<hosts>[^\s:]+): (?P<why>.+)"),
)
# From such a line on srun itself ends the tasks: what dies later did not die first.
_SRUN_ENDS = ("srun: forcing job termination", "srun: First task exited", "srun: Job step aborted")
_MESSAGE = re.compile(r"srun: (?:error|fatal): (?P<words>.+)")
# strsignal's words, which srun prints for a task that a signal ended; a core dump is said after them.
_BY_WORDS = {signal.strsignal(number): number for number in signal.valid_signals()}


@dataclass(frozen=True)
class Death:
    """Tasks of one part that ended in the same way, and not with 0."""

    host: str
    tasks: tuple[int, ...]
    signal: int | None
    """That ended them."""
    exit_code: int | None
    words: str
    """srun's."""
    by_srun: bool
    """srun was ending the step already."""


@dataclass(frozen=True)
class LostNode:
    """A node that srun lost, or never reached."""

    host: str
    words: str


@dataclass(frozen=True)
class SrunLog:
    """One attempt's, in srun's order."""

    deaths: tuple[Death, ...] = ()
    lost_nodes: tuple[LostNode, ...] = ()
    errors: tuple[str, ...] = ()
    """Every message of an error."""

    @property
    def first_death(self) -> Death | None:
        """The one that made srun end the step; None where nothing died before srun ended it."""
        return self.deaths[0] if self.deaths and not self.deaths[0].by_srun else None


def read_srun_log(text: str) -> SrunLog:
    """Lines that say something else are passed over."""
    deaths: list[Death] = []
    lost: list[LostNode] = []
    errors: list[str] = []
    ending = False
    for line in text.splitlines():
        ending = ending or line.startswith(_SRUN_ENDS)
        deaths += _deaths(line, ending)
        lost += _lost_nodes(line)
        if message := _MESSAGE.fullmatch(line):
            errors.append(message["words"])
    return SrunLog(tuple(deaths), tuple(lost), tuple(errors))


def _deaths(line: str, ending: bool) -> Iterator[Death]:
    match = _TASKS.fullmatch(line)
    if match is None:
        return
    exited = _EXITED.fullmatch(match["how"])
    code = int(exited["code"]) if exited else None
    number = None if exited else _BY_WORDS.get(match["how"].removesuffix(" (core dumped)"))
    for host in expand(match["hosts"]) or (match["hosts"],):
        yield Death(host, _numbers(match["tasks"]), number, code, match["how"], ending)


def _numbers(tasks: str) -> tuple[int, ...]:
    """Of `0`, `0-2` and `0-1,4`."""
    spans = [part.partition("-") for part in tasks.split(",") if part]
    return tuple(task for first, _, last in spans for task in range(int(first), int(last or first) + 1))


def _lost_nodes(line: str) -> Iterator[LostNode]:
    for pattern in _NODES_LOST:
        if match := pattern.fullmatch(line):
            for host in expand(match["hosts"]):
                yield LostNode(host, line.removeprefix("srun: error: "))

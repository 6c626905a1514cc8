"""What a dead node needs of the batch script: patience before a requeue, and a clean start after one.

Seen on Slurm 22.05: a het job that is requeued before Slurm has noticed that a node of its second component is dead
pends for ever, tied to that node; a requeue of Slurm's own, when it notices, does not. And where the batch script's
own node dies, Slurm requeues the first component alone: the other one goes on, with its ranks and their step.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from kd_launch.attempt.decision import Decision
from kd_launch.attempt.end_record import write_end
from kd_launch.attempt.evidence import is_cancelled
from kd_launch.attempt.outside import Outside
from kd_launch.attempt.place import Place
from kd_launch.attempt.say import say
from kd_launch.attempt.slurm_acts import Acts
from kd_launch.errors import SlurmRefusedError, SlurmSilentError
from kd_launch.run_dir import RunDir, read_json, write_first_json, write_json
from kd_launch.slurm.call import ask

# Slurm marks a node that does not answer it, here because it was told to end the node's ranks.
NOTICE_S = 20.0
# Then it takes SlurmdTimeout, 300 s unless the site sets another, until it gives the node up.
GIVEN_UP_S = 900.0
CLEARED_S = 120.0
ASK_S = 5.0

Word = Literal["go", "done", "fail"]


def wait_for_slurm(hosts: Sequence[str], ask_what: Callable[[], Acts], outside: Outside) -> Acts:
    """Before a requeue: where one of the nodes does not answer Slurm, leaves the requeue to Slurm.

    Args:
        hosts: nodes of whose ranks nobody has seen the end.
        ask_what: what Slurm does with the job by itself.

    Returns:
        What Slurm does: nothing where the requeue is ours, for the nodes answer, or Slurm never gives them up.
    """
    silent: list[str] = []

    def noticed() -> bool:
        silent[:] = _not_answering(hosts, outside)
        return bool(silent)

    if not hosts or not _within(NOTICE_S, noticed, outside):
        return Acts()
    say(f"leaves the requeue to Slurm, to which {', '.join(silent)} does not answer")
    acts = [Acts()]

    def settled() -> bool:
        acts[0] = ask_what()
        return acts[0].words is not None or not _not_answering(hosts, outside)

    _within(GIVEN_UP_S, settled, outside)
    return acts[0]


def begin_again(run: RunDir, attempt: int, place: Place, outside: Outside) -> Word:
    """After a requeue: whether the attempt has anything to do. Then it finds nothing of an earlier start running."""
    decision = _nothing_to_do(run, attempt, place)
    if decision is not None:
        write_end(run, attempt, None, decision, outside.now())
        return "done" if decision.next == "done" else "fail"
    before = read_json(run.end_record(attempt - 1))
    if before is None or before.get("outcome") == "taken":  # else its ranks have been seen to end
        _tell_to_leave(run, attempt - 1, outside.now())
    _end_steps(place.components, outside)
    return "go"


def _nothing_to_do(run: RunDir, attempt: int, place: Place) -> Decision | None:
    for number in range(1, attempt):
        if (done := read_json(run.done_record(number))) is not None:
            write_json(run.done_record(attempt), done)
            return Decision("done", "done", f"attempt {number} had done the run when Slurm started the job again")
    if is_cancelled(run, place.job_id):
        return Decision("fail", "cancelled", "the run was cancelled when Slurm started the job again")
    return None


def _end_steps(components: Sequence[str], outside: Outside) -> None:
    """Of an earlier start of the job."""
    left = _steps(components, outside)
    if not left:
        return
    say(f"ends steps of an earlier start: {', '.join(left)}")
    for step in left:
        ask(outside.run, ["scancel", step])
    if not _within(CLEARED_S, lambda: not _steps(components, outside), outside):
        say(f"Slurm has not ended them within {CLEARED_S:.0f} s")


def _tell_to_leave(run: RunDir, attempt: int, now: float) -> None:
    """Ranks look for this record. Nothing else reaches those whose slurmd is gone, and who would go on for ever,
    writing their signs of life over those of a later attempt."""
    record = {"signal": "TERM", "reason": "terminated", "rank": None, "role": None, "time": now}
    with suppress(OSError):  # there may be no such attempt
        write_first_json(run.leave_record(attempt), record)


def _within(seconds: float, there: Callable[[], bool], outside: Outside) -> bool:
    deadline = outside.clock() + seconds
    while not there():
        if outside.clock() >= deadline:
            return False
        outside.sleep(ASK_S)
    return True


def _not_answering(hosts: Sequence[str], outside: Outside) -> list[str]:
    """Nodes that Slurm gets no answer from: it writes a * behind their state. An answer that fails names none."""
    try:
        lines = ask(outside.run, ["sinfo", "-h", "-a", "-N", "-n", ",".join(hosts), "-o", "%N %T"]).splitlines()
    except (SlurmRefusedError, SlurmSilentError):
        return []
    found = dict(line.split(maxsplit=1) for line in lines if " " in line.strip())  # once for each partition
    return [host for host, state in found.items() if "*" in state or state.startswith("down")]


def _steps(components: Sequence[str], outside: Outside) -> list[str]:
    """The job steps of the components that ranks may be in."""
    told = ask(outside.run, ["squeue", "-h", "-s", "-j", ",".join(components), "-o", "%i"]).split()
    return [step for step in told if step.rpartition(".")[2].isdecimal()]

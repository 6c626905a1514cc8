"""The caretaker that a job's script starts beside the ranks, on the first node; needs no torch.

python -m kd_launch.attempt again RUN_DIR ATTEMPT
    after a requeue: ends what an earlier start of the job has left running. Prints whether there is anything to do: go,
    or done, or fail where the run was cancelled.
python -m kd_launch.attempt watch RUN_DIR ATTEMPT SRUN_PID...
    returns when srun has ended; ends it when a rank is silent, stuck or absent.
python -m kd_launch.attempt decide RUN_DIR ATTEMPT SRUN_STATUS
    prints what the script does now: done, requeue or fail. Why is said on stderr.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kd_launch.attempt.conclude import conclude
from kd_launch.attempt.dead_nodes import begin_again
from kd_launch.attempt.outside import Outside
from kd_launch.attempt.place import Place, Seats, read_place
from kd_launch.attempt.say import say
from kd_launch.attempt.verdicts import limits_of
from kd_launch.attempt.watch import subject_of, watch, write_job_record
from kd_launch.commands import run as run_program
from kd_launch.errors import KdLaunchError
from kd_launch.plan import RunPlan, read_run_plan
from kd_launch.run_dir import RunDir


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; an error is one line in the batch log."""
    arguments = _parser().parse_args(argv)
    try:
        _act(arguments, read_place(os.environ, socket.gethostname()))
    except (KdLaunchError, OSError) as error:
        say(f"cannot {arguments.verb}: {error}")
        return 1
    return 0


def _act(arguments: argparse.Namespace, place: Place) -> None:
    outside = Outside(run_program, time.time, time.monotonic, time.sleep)
    run = RunDir(arguments.run_dir)
    if arguments.verb == "again":
        print(begin_again(run, arguments.attempt, place, outside))  # noqa: T201 - the answer
        return
    plan = read_run_plan(run.plan)
    if arguments.verb == "watch":
        _watch(run, plan, arguments.attempt, place, arguments.srun_pids)
        return
    decision = conclude(run, plan, arguments.attempt, place, arguments.srun_status, outside)
    say(f"attempt {arguments.attempt}: {decision.why}")
    print(decision.next)  # noqa: T201 - the answer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd_launch.attempt", description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("again", "watch", "decide"):
        command = verbs.add_parser(verb)
        command.add_argument("run_dir", type=Path)
        command.add_argument("attempt", type=int)
        if verb == "watch":
            command.add_argument("srun_pids", type=int, nargs="+")
        elif verb == "decide":
            command.add_argument("srun_status", type=int)
    return parser


def _watch(run: RunDir, plan: RunPlan, attempt: int, place: Place, pids: Sequence[int]) -> None:
    seats = Seats(plan.layout, place)
    subject = subject_of(run, attempt, seats, limits_of(plan.cluster, plan.layout), pids)
    try:
        write_job_record(run, attempt, seats, time.time())
    except OSError as error:  # a full disk: all the more reason to watch
        say(f"which job attempt {attempt} is cannot be written: {error}")
    watch(subject)


if __name__ == "__main__":
    code = main()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # Python itself would make 120 of it where a full disk has taken no last words

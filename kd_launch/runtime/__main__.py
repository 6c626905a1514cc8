"""One rank: environment -> place -> signs of life -> its part of the run; and how it ends.

python -m kd_launch.runtime RUN_DIR --role teacher|student|both
"""

import argparse
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kd_launch.errors import KdLaunchError, SpecError
from kd_launch.plan import Role, RunPlan, read_run_plan
from kd_launch.run_dir import RunDir
from kd_launch.runtime.departure import Departure, say
from kd_launch.runtime.environment import Environment, guess_environment, read_environment
from kd_launch.runtime.failures import lost_a_peer, record_error
from kd_launch.runtime.heartbeat import Heartbeat, Progress
from kd_launch.runtime.lineage import launcher_above
from kd_launch.runtime.place import take_place
from kd_launch.secret_names import without_secrets

if TYPE_CHECKING:
    from kd_launch.runtime.optimizer import MakeOptimizer


def main(argv: list[str] | None = None, make_optimizer: "MakeOptimizer | None" = None) -> int:
    """Runs one rank and returns its exit code; a failure is recorded in the run folder and printed."""
    parser = argparse.ArgumentParser(prog="kd_launch.runtime", description="One rank of a kd-launch run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--role", type=Role, choices=list(Role), required=True)
    arguments = parser.parse_args(argv)
    run_dir, role = RunDir(arguments.run_dir), arguments.role
    try:
        environment = read_environment(os.environ)
        run = read_run_plan(run_dir.plan)
        place = take_place(environment, run.layout, role)
    except KdLaunchError as error:
        guess = guess_environment(os.environ, max(run_dir.attempt_numbers(), default=1))
        return _report(error, run_dir, guess, role)[0]
    return _live(run_dir, run, place, role, make_optimizer)


def _live(
    run_dir: RunDir, run: RunPlan, place: Environment, role: Role, make_optimizer: "MakeOptimizer | None"
) -> int:  # fmt: skip
    progress = Progress(unit="micro-batches" if role is Role.TEACHER else "steps")
    heartbeat = Heartbeat(run_dir, place, role, progress)
    launcher = launcher_above() if place.launcher == "slurm" else place.launcher_pid
    departure = Departure(run_dir, place, role, heartbeat, launcher)
    departure.heed_signals()
    departure.start("heartbeat", lambda: heartbeat.keep_beating(departure.look_around))
    try:
        from kd_launch.runtime.rank import Task, run_rank  # not above: torch takes its time, and we live already

        run_rank(Task(run_dir, run, place, role, progress, departure), make_optimizer)
    except Exception as error:  # whatever it is, the run folder must say so
        departure.give_way()
        code, kind = _report(error, run_dir, place, role)
        if kind == "lost_peer":
            departure.follow_others()
            departure.give_way()
        heartbeat.end(kind)
        return code
    heartbeat.end("done")
    return 0


def _report(
    error: Exception, run_dir: RunDir, place: Environment, role: Role
) -> tuple[int, Literal["raised", "lost_peer"]]:
    """Records and prints an error. Its exit code, and whether it only says that another rank is gone."""
    words = _words(error) or "".join(traceback.format_exception(error)).rstrip()
    say(without_secrets(words, os.environ))
    try:
        record_error(run_dir, place, role, error)
    except (OSError, SpecError) as unwritable:
        say(f"error: the failure record cannot be written: {unwritable}")
    code = error.exit_code if isinstance(error, KdLaunchError) else 1
    return code, "lost_peer" if lost_a_peer(error) else "raised"


def _words(error: Exception) -> str | None:
    """In one line; None of what is a bug of ours, until somebody has looked."""
    if isinstance(error, KdLaunchError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.filename and error.strerror:  # the failure record has the traceback
        return f"error: {error.filename}: {error.strerror}; mend that, then `kd-launch resume` goes on"
    return None


if __name__ == "__main__":
    code = main()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Torch's destructors may wait for ranks that a failure has left hanging, and its threads for a store that is gone.
    os._exit(code)

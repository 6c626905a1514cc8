"""What the commands about one run share: find it, look at it, name it, leave it alone."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kd_launch.cli.app import current_folder, say
from kd_launch.errors import RunFailedError

if TYPE_CHECKING:
    from kd_launch.run_dir import RunDir
    from kd_launch.runs.asking import Look
    from kd_launch.runs.facts import Facts
    from kd_launch.runs.status import Status


def find(text: str, run_root: Path | None) -> "RunDir":
    from kd_launch.runs import lookup as runs

    cwd = current_folder()
    return runs.find_run(text, runs.run_root(run_root, os.environ, cwd), cwd)


def look(run: "RunDir") -> "tuple[Facts, Status]":
    """The run as it is now, as far as Slurm answers."""
    from kd_launch.commands import run as start
    from kd_launch.runs.asking import look_once

    facts, latest, _ = look_once(run, start)
    return facts, latest


def looking_at(run: "RunDir") -> "Look":
    """Looks at a run as often as it is called, and asks Slurm as seldom as is polite."""
    from kd_launch.commands import run as start
    from kd_launch.runs.asking import Look

    return Look(run, start)


def spoken(run: "RunDir") -> str:
    """How the next command names a run: by its name where that is found without --run-root."""
    from kd_launch.runs.lookup import run_root

    is_found = not run.name.startswith("-") and run.path.parent == run_root(None, os.environ, current_folder())
    return shlex.quote(run.name if is_found else str(run.path))


@contextmanager
def left_alone(run: "RunDir") -> Iterator[None]:
    """Ctrl-C ends the looking, not the run, and says how to end that."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"{run.name} is left as it is; to end it: kd-launch cancel {spoken(run)}")
        raise


def raise_unless_completed(run: "RunDir", latest: "Status") -> None:
    from kd_launch.cli.status_text import failure_words

    if latest.state == "COMPLETED":
        return
    failure = latest.failure if latest.failure and latest.failure.attempt == latest.attempt else None
    reason = failure_words(failure) if failure else latest.reason or latest.state.lower()
    log = run.role_log(failure.attempt, failure.role) if failure else run.batch_log
    if run.srun_log(latest.attempt).exists() and not (log.exists() and log.stat().st_size):
        log = run.srun_log(latest.attempt)  # the rank never wrote a line
    raise RunFailedError(f"{run.name} {latest.state}: {reason}; see {log}")

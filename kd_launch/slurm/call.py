"""Asks one of Slurm's programs: its answer, or an error that says whether Slurm refused or did not answer."""

import os
from collections.abc import Sequence

from kd_launch.commands import Completed, Runner
from kd_launch.errors import SlurmRefusedError, SlurmSilentError
from kd_launch.slurm.environ import for_questions

ANSWER_S = 30.0
# What the programs say when no controller or database answers them; their exit code is 1 either way.
_SILENT = (
    "unable to contact slurm controller",
    "connection refused",
    "socket timed out",
    "zero bytes were transmitted",
    "connection timed out",
    "no route to host",
    "sending persistconninit msg",
    "slurm_persist_conn_open",
    "unable to process configuration file",
    "could not establish a configuration source",
)


def ask(run: Runner, argv: Sequence[str], timeout: float = ANSWER_S) -> str:
    """What the program writes to stdout.

    Raises:
        SlurmSilentError: it cannot be started, or Slurm gives no answer in time.
        SlurmRefusedError: it ended with an error; its words are in the message.
    """
    done = run(argv, timeout=timeout, env=for_questions(os.environ))
    if done.returncode is None:
        raise SlurmSilentError(f"{done.why()}; is this machine part of a Slurm cluster, and does `sinfo` answer?")
    if done.ok:
        return done.stdout
    words = f"{argv[0]}: {done.why().removeprefix(f'{argv[0]}: ')}"
    if is_silent(done):
        raise SlurmSilentError(f"{words}; try again when `sinfo` answers")
    raise SlurmRefusedError(words)


def is_silent(done: Completed) -> bool:
    """Whether a program failed because no controller or database answered it."""
    return any(sign in done.stderr.lower() for sign in _SILENT)

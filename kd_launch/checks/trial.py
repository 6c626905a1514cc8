"""Slurm's own word: `sbatch --test-only` of the very script."""

import re
from collections.abc import Sequence

from kd_launch.checks.finding import Finding, Level, Place, failure, fine, warning
from kd_launch.slurm.call import ANSWER_S, is_silent
from kd_launch.slurm.environ import for_submission

WHAT = "sbatch --test-only"


def check_trial(script: str, found: Sequence[Finding], place: Place) -> Finding:
    """What sbatch says to the script. Its yes is no proof; its no is one, unless nodes are out of order.

    It looks at each component alone, at no limit of a QOS, and at the nodes as they are now: it refuses a job that
    waits for a node to be repaired, which sbatch itself takes.

    Args:
        found: what was found before.
    """
    done = place.run(["sbatch", "--test-only"], timeout=ANSWER_S, stdin=script, env=for_submission(place.environ))
    if done.returncode is None or is_silent(done):
        return Finding(Level.SILENT, WHAT, f"{done.why()}; try again when `sinfo` answers")
    words = "; ".join(_words(done.stderr)) or done.why()
    if done.ok:
        return fine(WHAT, f"{words}. That is no proof that the job starts")
    if _waits(found):
        return warning(WHAT, f"Slurm says of the nodes as they are now: {words}")
    return failure(WHAT, f"Slurm refuses the job: {words}")


def _words(stderr: str) -> list[str]:
    lines = (re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in stderr.splitlines())
    return [line for line in lines if line]


def _waits(found: Sequence[Finding]) -> bool:
    """Whether nodes that are out of order are all that is wrong."""
    short = any(one.level is Level.WARNING and "nodes" in one.what for one in found)
    return short and all(one.ok for one in found)

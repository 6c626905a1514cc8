"""Slurm's job states as a table: its words, long and compact, become our STATE and say whether Slurm holds the job.

Words: `job_state_string` and `job_state_string_compact` in src/common/slurm_protocol_defs.c, branches slurm-20.11 to
slurm-25.11, and `job_state_string_complete`, which adds flags after commas ("COMPLETED,COMPLETING"); their meaning:
https://slurm.schedmd.com/job_state_codes.html. squeue and sacct show one word, a flag before the base state.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal[
    "PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT",
    "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "REQUEUED", "UNKNOWN",
]  # fmt: skip

# From the best to the worst. Of two components that ended, the worse is the one that explains the other: a component
# that was cancelled, or ran into its time limit, makes the step and with it the batch script fail.
SEVERITY: tuple[State, ...] = (
    "COMPLETED", "RUNNING", "REQUEUED", "PENDING", "UNKNOWN", "FAILED",
    "CANCELLED", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL",
)  # fmt: skip


@dataclass(frozen=True)
class SlurmState:
    """What one of Slurm's words means."""

    word: str
    state: State
    holds: bool
    """Whether Slurm has not let go of the job: it waits, runs, or is being ended or requeued."""
    known: bool = True


# Long word, compact word, ours, held. Flags first, in the order in which Slurm's own function looks at them.
_TABLE: tuple[tuple[str, str, State, bool], ...] = (
    ("COMPLETING", "CG", "RUNNING", True),  # of its processes some may be left
    ("STAGE_OUT", "SO", "RUNNING", True),  # a burst buffer is emptied
    ("CONFIGURING", "CF", "PENDING", True),  # its nodes boot
    ("EXPEDITING", "", "REQUEUED", True),  # since 25.11: requeued at once, before all others
    ("RESIZING", "RS", "RUNNING", True),
    ("REQUEUED", "RQ", "REQUEUED", True),
    ("REQUEUED_CRON", "RC", "REQUEUED", True),  # 20.11 only
    ("REQUEUE_FED", "RF", "REQUEUED", True),
    ("REQUEUE_HOLD", "RH", "REQUEUED", True),  # until it is released
    ("SPECIAL_EXIT", "SE", "REQUEUED", True),  # likewise
    ("STOPPED", "ST", "PENDING", True),  # by SIGSTOP; its nodes stay its own
    ("REVOKED", "RV", "CANCELLED", False),  # another cluster of a federation took it
    ("RESV_DEL_HOLD", "RD", "PENDING", True),  # its reservation was deleted
    ("SIGNALING", "SI", "RUNNING", True),
    # Flags that only the complete form shows, beside a base state.
    ("POWER_UP_NODE", "", "PENDING", True),
    ("RECONFIG_FAIL", "", "NODE_FAIL", False),
    # Base states.
    ("PENDING", "PD", "PENDING", True),
    ("RUNNING", "R", "RUNNING", True),
    ("SUSPENDED", "S", "PENDING", True),  # nothing of it runs, and it may go on
    ("COMPLETED", "CD", "COMPLETED", False),
    ("CANCELLED", "CA", "CANCELLED", False),
    ("FAILED", "F", "FAILED", False),
    ("TIMEOUT", "TO", "TIMEOUT", False),
    ("NODE_FAIL", "NF", "NODE_FAIL", False),
    ("PREEMPTED", "PR", "PREEMPTED", False),
    ("BOOT_FAIL", "BF", "NODE_FAIL", False),
    ("DEADLINE", "DL", "TIMEOUT", False),
    ("OUT_OF_MEMORY", "OOM", "OUT_OF_MEMORY", False),
    # A failure to launch says less than the base state beside it: last.
    ("LAUNCH_FAILED", "", "FAILED", False),
)
_MEANINGS = tuple(SlurmState(long, state, holds) for long, _, state, holds in _TABLE)
_BY_WORD = {word: meaning for row, meaning in zip(_TABLE, _MEANINGS, strict=True) for word in row[:2] if word}


def read_state_word(text: str) -> SlurmState:
    """The meaning of what squeue or sacct shows as a state.

    A word that no version until 25.11 has is UNKNOWN, and no proof that the job has ended.

    >>> read_state_word("CANCELLED by 1000").state, read_state_word("CG").word
    ('CANCELLED', 'COMPLETING')
    """
    shown = text.strip().upper()
    words = [part.split()[0] for part in shown.split(",") if part.strip()]
    found = [_BY_WORD[word] for word in words if word in _BY_WORD]
    if not found:
        return SlurmState(shown, "UNKNOWN", holds=True, known=False)
    return min(found, key=_MEANINGS.index)


def worst(states: Iterable[State]) -> State:
    """The worst of some states; UNKNOWN of none."""
    return max(states, key=SEVERITY.index, default="UNKNOWN")

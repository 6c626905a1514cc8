"""Why Slurm lets a job wait, or has ended it, in plain words: a table of its reason codes.

Codes: `job_reason_string` in src/common/slurm_protocol_defs.c (slurm-20.11 to 24.05) and src/common/job_state_reason.c
(until slurm-25.11); their meaning: https://slurm.schedmd.com/job_reason_codes.html. A code that is not here is shown as
it is. What follows a comma or a colon names nodes: "ReqNodeNotAvail, UnavailableNodes:n[1-2]".
"""

_WORDS = {
    "Resources": "its nodes are busy",
    "Priority": "other jobs come first",
    "BeginTime": "its time has not come; a requeued job has to wait a while",
    "Dependency": "the job it depends on has not ended",
    "DependencyNeverSatisfied": "the job it depends on ended otherwise: it never starts",
    "JobHeldUser": "held by its owner",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held: requeued too often",
    "ReqNodeNotAvail": "nodes it needs are down, drained or reserved",
    "NodeDown": "a node it needs is down",
    "PartitionDown": "its partition starts no jobs now",
    "PartitionInactive": "its partition is closed",
    "PartitionNodeLimit": "its partition never gives so many nodes: it never starts",
    "PartitionTimeLimit": "its time limit is above the partition's: it never starts",
    "PartitionConfig": "its partition does not allow it: it never starts",
    "BadConstraints": "no node has what it asks for: it never starts",
    "InvalidAccount": "its account does not exist: it never starts",
    "InvalidQOS": "its QOS does not exist: it never starts",
    "AccountNotAllowed": "its account may not use the partition: it never starts",
    "QOSNotAllowed": "its QOS may not use the partition: it never starts",
    "Reservation": "its reservation has not begun",
    "ReservationDeleted": "its reservation was deleted: it never starts",
    "Licenses": "licenses are in use",
    "Cleaning": "it is being requeued",
    # Why it ended.
    "TimeLimit": "its time limit is reached",
    "NonZeroExitCode": "its script failed",
    "OutOfMemory": "it took more memory than it had asked for",
    "JobLaunchFailure": "its nodes could not start it",
    "SystemFailure": "Slurm or a node failed",
    # States for which there is no reason.
    "SUSPENDED": "suspended",
    "STOPPED": "stopped",
    "CONFIGURING": "its nodes boot",
    "COMPLETING": "Slurm ends it",
    "STAGE_OUT": "its data are moved",
    "REQUEUE_HOLD": "requeued, and held",
    "SPECIAL_EXIT": "requeued, and held",
}
# Accounting limits have a code for each kind of limit; they all begin so.
_LIMITS = ("QOS", "Assoc", "Max", "AccountingPolicy")


def in_words(reason: str) -> str:
    """A reason with its meaning; as it is where it is unknown, or words already.

    >>> in_words("Resources"), in_words("job requeued in held state")
    ('its nodes are busy (Resources)', 'job requeued in held state')
    """
    code = reason.partition(",")[0].strip()
    words = _WORDS.get(code)
    if words is None and " " not in code and code.startswith(_LIMITS):
        words = "a limit of the account or QOS is reached"
    return f"{words} ({reason})" if words else reason

"""Where a run on Slurm stands: what squeue or sacct says of its job, else what the run says itself. Asks nobody."""

import re
from dataclasses import dataclass

from kd_launch.plan import Role
from kd_launch.runs.facts import Facts
from kd_launch.runs.lost_job import is_ours
from kd_launch.runs.role_nodes import is_het_job, nodes_of
from kd_launch.runs.standing import SUBMITTING_S, Component, Standing, Verdict, never_started, roles_of
from kd_launch.slurm.job_text import ComponentAnswer, JobAnswer
from kd_launch.slurm.nodes import expand
from kd_launch.slurm.states import State, read_state_word, worst

# sacct knows within seconds how a job ended, unless its database is down; then it may say RUNNING for ever.
LAG_S = 300.0
# Kinds of failure that a dead node brings about, and for what a job waits that may wait for it.
_OF_DEAD_NODES = ("silent", "absent")
_FOR_NODES = ("Resources", "Priority", "ReqNodeNotAvail", "Nodes required")
_UNAVAILABLE = re.compile(r"UnavailableNodes:(\S+)")


@dataclass(frozen=True)
class Asked:
    """What came of asking Slurm about a run's job."""

    job_id: str | None = None
    """The leader's digits, as far as they are known."""
    answer: JobAnswer | None = None
    """None: it does not know the job, has not been asked, or does not answer."""
    silent: str | None = None
    """Why there is no answer."""


def slurm_standing(facts: Facts, asked: Asked) -> Standing:
    """The worst component in Slurm's words while Slurm holds the job; after that, what it came to."""
    known = asked.answer is not None and (facts.state is None or is_ours(facts.state, asked.answer))
    answer = asked.answer if known else None
    verdict = _verdict(facts, answer, asked)
    components = tuple(_component(role, facts, answer, verdict) for role in roles_of(facts.plan.layout))
    estimates = [component.start_estimate for component in components if component.start_estimate]
    return Standing(verdict, components, max(estimates, default=None), _way_on(facts, answer))


def ended_by_records(facts: Facts) -> Verdict | None:
    """The end of a run whose own records show that no attempt follows; None: Slurm has to be asked.

    A job that Slurm itself is ending or requeueing, outcome "taken", may come back.
    """
    if not facts.attempt_is_of_this_job:
        return None
    end = facts.end or {}
    if facts.done:
        return Verdict("COMPLETED", ended=True)
    if end.get("next") != "fail" or end.get("outcome") == "taken":
        return None
    if facts.cancelled or end.get("outcome") == "cancelled":
        return Verdict("CANCELLED", ended=True)
    state: State = "TIMEOUT" if end.get("outcome") == "time_limit" else "FAILED"
    return Verdict(state, ended=True, reason=_why(facts))


def _verdict(facts: Facts, answer: JobAnswer | None, asked: Asked) -> Verdict:
    if answer is None:
        return _without_answer(facts, asked)
    if answer.held:
        return _held(facts, answer)
    return _accounting_lags(facts, answer) if _is_behind(facts, answer) else _let_go(facts, answer)


# Slurm knows the job


def _held(facts: Facts, answer: JobAnswer) -> Verdict:
    reason = "it is being cancelled" if facts.cancelled else None
    return Verdict(_worst(answer), ended=False, reason=reason)


def _let_go(facts: Facts, answer: JobAnswer) -> Verdict:
    """Slurm has ended the job for good."""
    by_records = ended_by_records(facts)
    if by_records is not None and by_records.state != "FAILED":
        return by_records
    if facts.cancelled:
        return Verdict("CANCELLED", ended=True)
    why, state = _why(facts), _worst(answer)
    if why is not None and facts.end is not None and facts.end.get("next") == "requeue":
        why = f"{why}; it was to be requeued, but Slurm has ended it"
    if state == "COMPLETED":
        words = "Slurm says COMPLETED, but the run left no record of a finished student"
        return Verdict("FAILED", ended=True, reason=why or words)
    return Verdict(state, ended=True, reason=why)


def _is_behind(facts: Facts, answer: JobAnswer) -> bool:
    """Whether sacct does not know the end yet of a job that squeue has let go of, or not of every component."""
    missing = len(roles_of(facts.plan.layout)) if is_het_job(facts.plan.layout) else 1
    return len(answer.components) < missing or any(
        read_state_word(component.slurm_state).holds for component in answer.components
    )


def _accounting_lags(facts: Facts, answer: JobAnswer) -> Verdict:
    """squeue has forgotten the job, and what sacct says is of before."""
    words = f"squeue no longer knows job {answer.leader}, and sacct still says {_words(answer)}"
    if (by_records := ended_by_records(facts)) is not None:
        return by_records
    if facts.now - _last_sign(facts) <= LAG_S:
        return Verdict("UNKNOWN", ended=False, reason=f"{words}: it lags behind")
    return _forgotten(facts, words)


def _worst(answer: JobAnswer) -> State:
    return worst(component.state for component in answer.components)


def _words(answer: JobAnswer) -> str:
    return ", ".join(dict.fromkeys(component.slurm_state for component in answer.components))


# Slurm says nothing of the job


def _without_answer(facts: Facts, asked: Asked) -> Verdict:
    if facts.state is None:
        return never_started(facts.now - facts.made)
    if (by_records := ended_by_records(facts)) is not None:
        return by_records
    alive = facts.attempt_is_of_this_job and facts.lives(facts.plan.cluster.heartbeat_timeout_s)
    if asked.silent is not None:
        words = f"Slurm does not answer: {asked.silent}"
        return Verdict("RUNNING" if alive else "UNKNOWN", ended=False, reason=words)
    return _unknown_to_slurm(facts, asked, alive)


def _unknown_to_slurm(facts: Facts, asked: Asked, alive: bool) -> Verdict:
    age = facts.now - _sent(facts)
    if asked.answer is not None:
        theirs = asked.answer.components[0].name
        return _forgotten(facts, f"job {facts.job_id} is another run's by now, {theirs}")
    if age <= SUBMITTING_S and not facts.attempt_is_of_this_job:
        return Verdict(
            "PENDING", ended=False, reason=f"submitted {max(0.0, age):.0f} s ago; Slurm does not list it yet"
        )
    if facts.job_id is None:
        words = "Slurm has no job of it: its submission was cut off; `kd-launch resume` sends it again"
        return Verdict("CANCELLED" if facts.cancelled else "FAILED", ended=True, reason=words)
    words = f"Slurm does not know job {facts.job_id}"
    if alive:
        return Verdict("UNKNOWN", ended=False, reason=f"{words}, but its ranks live; is this the cluster it runs on?")
    return _forgotten(facts, words)


def _forgotten(facts: Facts, words: str) -> Verdict:
    """Slurm no longer knows how the job ended: the run's own last record does, or nobody."""
    if facts.cancelled:
        return Verdict("CANCELLED", ended=True)
    if not facts.attempt_is_of_this_job:
        return Verdict("UNKNOWN", ended=True, reason=f"{words}, and it has begun no attempt")
    if facts.failure is not None and facts.failure.attempt == facts.attempt:
        return Verdict("FAILED", ended=True, reason=_why(facts) or words)
    return Verdict("UNKNOWN", ended=True, reason=f"{words}, and {_last_word(facts)}")


def _last_word(facts: Facts) -> str:
    if facts.end is not None:
        return f"the last it said was: {_why(facts)}"
    if facts.leave is not None:
        return f"its ranks were last told to leave, by {facts.leave.get('signal')}"
    return "the run left no word of its end"


def _sent(facts: Facts) -> float:
    assert facts.state is not None
    return facts.state.token.since if facts.state.token else facts.state.created


def _last_sign(facts: Facts) -> float:
    """Unix time of the last thing that the run is known to have done."""
    beats = [beat.time for beat in facts.heartbeats]
    return max([*beats, facts.begun or 0.0, _sent(facts) if facts.state else 0.0])


def _why(facts: Facts) -> str | None:
    """The words in which the present job's last attempt ended."""
    if not facts.attempt_is_of_this_job or facts.end is None:
        return None
    return str(facts.end["why"]) if facts.end.get("why") else None


# What is shown of it


def _component(role: Role, facts: Facts, answer: JobAnswer | None, verdict: Verdict) -> Component:
    is_het = is_het_job(facts.plan.layout)
    offset = 0 if role is not Role.STUDENT or not is_het else 1
    found = next((part for part in answer.components if part.offset == offset), None) if answer else None
    fallback = facts.job_id or ""
    if is_het and fallback:
        fallback = f"{fallback}+{offset}"
    return Component(
        role=role,
        het_group=offset if is_het else None,
        job_id=found.job_id if found else fallback,
        state=found.state if found and verdict.state != "COMPLETED" else verdict.state,
        nodes=nodes_of(role, facts, answer),
        reason=_reason(found) if found and not verdict.ended else verdict.reason,
        start_estimate=found.start_estimate if found else None,
    )


def _reason(part: ComponentAnswer) -> str | None:
    """Slurm's reason, or its word for the state where ours says less."""
    return part.reason or (None if part.slurm_state == part.state else part.slurm_state)


def _way_on(facts: Facts, answer: JobAnswer | None) -> str | None:
    """The command that lets a job start for which Slurm waits in vain."""
    if (
        answer is None
        or not answer.held
        or any(part.state not in ("PENDING", "REQUEUED") for part in answer.components)
    ):
        return None
    reasons = " ".join(part.reason or "" for part in answer.components)
    if "held" in reasons.lower():
        return f"scontrol release {answer.leader}"
    return _free_of_dead_node(facts, answer, reasons)


def _free_of_dead_node(facts: Facts, answer: JobAnswer, reasons: str) -> str | None:
    """After a node's death the requeued job may wait for that node beside idle ones."""
    failure = facts.failure
    if failure is None or failure.attempt != facts.attempt or not facts.attempt_is_of_this_job:
        return None
    node = failure.host.partition(".")[0]
    is_named = any(node in expand(nodes) for nodes in _UNAVAILABLE.findall(reasons))
    may_be = failure.kind in _OF_DEAD_NODES and any(reason in reasons for reason in _FOR_NODES)
    if not (is_named or may_be):
        return None
    offset = 1 if is_het_job(facts.plan.layout) and failure.role == Role.STUDENT else 0
    component = next((part for part in answer.components if part.offset == offset), answer.components[0])
    return f"scontrol update JobId={component.job_id} ExcNodeList={node}"

"""Where a local run stands: controller and records decide."""

from kd_launch.runs.facts import Facts
from kd_launch.runs.standing import Component, Standing, Verdict, never_started, roles_of
from kd_launch.slurm.states import State


def local_standing(facts: Facts) -> Standing:
    """A local run's state is that of all its ranks, and they are all here."""
    verdict = local_verdict(facts)
    controller = facts.state.controller if facts.state else None
    components = tuple(
        Component(
            role=role,
            het_group=None,
            job_id=facts.job_id or "",
            state=verdict.state,
            nodes=[controller.host] if controller else [],
            reason=verdict.reason,
            start_estimate=None,
        )
        for role in roles_of(facts.plan.layout)
    )
    return Standing(verdict, components)


def local_verdict(facts: Facts) -> Verdict:
    """The state of a local run and, where the records do not say it, the reason."""
    if facts.done and (facts.end is not None or not facts.controller_lives):
        return _final("COMPLETED")
    if facts.end is not None:
        return _ended(facts)
    if facts.state is None or facts.state.controller is None:
        return never_started(facts.now - facts.made)
    if facts.controller_lives:
        return Verdict("RUNNING", ended=False)
    if facts.controller_lives is None:
        return _elsewhere(facts)
    return _final("FAILED", f"its controller (process {facts.state.controller.pid}) is gone and left no end record")


def _final(state: State, reason: str | None = None) -> Verdict:
    return Verdict(state, ended=True, reason=reason)


def _ended(facts: Facts) -> Verdict:
    assert facts.end is not None
    if facts.end.get("cancelled"):
        return _final("CANCELLED")
    if facts.end.get("timed_out"):
        return _final("TIMEOUT", "its time limit was reached")
    if facts.failure is not None and facts.failure.attempt == facts.attempt:
        return _final("FAILED")
    first = facts.end.get("first")
    if not first:
        return _final("FAILED", "every rank ended with 0, but without a finished student")
    how = f"with exit code {first['exit_code']}" if "exit_code" in first else f"killed by signal {first['signal']}"
    return _final("FAILED", f"{first['role']} rank {first['rank']} ended first, {how}")


def _elsewhere(facts: Facts) -> Verdict:
    """The run is on another machine, whose processes cannot be seen from here: signs of life must do."""
    assert facts.state is not None
    assert facts.state.controller is not None
    host, limit = facts.state.controller.host, facts.plan.cluster.heartbeat_timeout_s
    newest = max((beat.time for beat in facts.heartbeats), default=facts.state.created)
    if facts.now - newest <= limit:
        return Verdict("RUNNING", ended=False)
    words = f"no sign of life for {facts.now - newest:.0f} s; ask on its machine, {host}"
    return Verdict("UNKNOWN", ended=False, reason=words)

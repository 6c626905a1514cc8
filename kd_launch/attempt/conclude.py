"""The end of an attempt: its first failure is recorded, Slurm is asked, and what follows is decided and written."""

from kd_launch.attempt.dead_nodes import wait_for_slurm
from kd_launch.attempt.decision import Decision, Ended, Policy, decide
from kd_launch.attempt.end_record import write_end
from kd_launch.attempt.endings import Evidence, first_failure, told_to_leave, unheard_hosts
from kd_launch.attempt.evidence import gather, is_cancelled, is_superseded
from kd_launch.attempt.failures import read_failure, write_failure
from kd_launch.attempt.history import AttemptRecord, furthest_steps, newest_checkpoint, read_attempts, read_leave
from kd_launch.attempt.outside import Outside
from kd_launch.attempt.place import Place, Seats
from kd_launch.attempt.say import say
from kd_launch.attempt.slurm_acts import SILENCE_S, Acts, ask_slurm, wait_to_be_ended
from kd_launch.errors import SpecError
from kd_launch.plan import RunPlan
from kd_launch.run_dir import RunDir


def conclude(run: RunDir, plan: RunPlan, attempt: int, place: Place, srun_status: int, outside: Outside) -> Decision:
    """Decides what follows an attempt whose srun has ended, and writes its failure and its end record."""
    done = run.done_record(attempt).exists()
    acts = ask_slurm(place, outside, patience=0 if done else SILENCE_S)
    evidence = gather(run, attempt, Seats(plan.layout, place), srun_status, outside.now())
    # After Slurm's answer: a cancel that Slurm does not know of yet is written down already.
    cancelled = is_cancelled(run, place.job_id)
    if not (done or cancelled or (acts.known and acts.words)):  # else the ranks ended because they were ended
        _record_failure(run, evidence)
    decision = _decide(plan, _ended(run, place, evidence, acts, done=done, cancelled=cancelled))
    write_end(run, attempt, srun_status, decision, outside.now())
    if decision.next == "requeue":
        acts = wait_for_slurm(unheard_hosts(evidence), lambda: ask_slurm(place, outside), outside)
        if acts.words is not None:
            decision = Decision("fail", "taken", f"{decision.why} by Slurm: {acts.words}")
        elif is_cancelled(run, place.job_id):
            decision = Decision("fail", "cancelled", "the run was cancelled")
    if acts.ends_us:
        wait_to_be_ended(run, attempt, place, outside)
    return decision


def _ended(run: RunDir, place: Place, evidence: Evidence, acts: Acts, *, done: bool, cancelled: bool) -> Ended:
    earlier = [record for record in read_attempts(run) if record.number < evidence.attempt]
    told = told_to_leave(evidence)
    return Ended(
        number=evidence.attempt,
        srun_status=evidence.srun_status,
        done=done,
        cancelled=cancelled,
        superseded=is_superseded(run, evidence.attempt),
        taken=acts.words,
        leave=read_leave(run, evidence.attempt),
        told_to_leave=None if told is None else told.name.removeprefix("SIG"),
        failure=read_failure(run, evidence.attempt),
        step=furthest_steps(run).get(evidence.attempt, 0),
        saved=newest_checkpoint(run),
        earlier=[record for record in earlier if _is_of_job(record, place)],
    )


def _decide(plan: RunPlan, ended: Ended) -> Decision:
    cluster = plan.cluster
    return decide(ended, Policy(cluster.max_requeues, cluster.max_failures_without_progress))


def _record_failure(run: RunDir, evidence: Evidence) -> None:
    """A record that cannot be written is no reason to lose the decision."""
    failure = first_failure(evidence)
    if failure is None:
        return
    try:
        write_failure(run, failure)
    except (OSError, SpecError) as error:
        say(f"the failure record cannot be written: {error}")


def _is_of_job(record: AttemptRecord, place: Place) -> bool:
    """An attempt that had no time to write its job's number may be of this one."""
    return record.job_id in (place.job_id, None)

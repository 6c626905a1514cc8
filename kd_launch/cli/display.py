"""What people see of runs: the table of one run or of all, and the bars of a run that is waited for."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from kd_launch.plan import Role
from kd_launch.runs.role_progress import RoleProgress, role_progress
from kd_launch.runs.status import Facts, Failure, Status, StepProgress

POLL_S = 0.5
PLAIN_S = 5.0
STYLES = {"RUNNING": "cyan", "PENDING": "yellow", "COMPLETED": "green", "CANCELLED": "yellow", "UNKNOWN": "magenta"}


def console(*, stderr: bool = False) -> Console:
    """Takes text as it is; away from a terminal, tables may be wide, since nobody's window cuts them."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725), duration(59.6)
    ('1:02:05', '0:01:00')
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def progress_words(progress: StepProgress | None) -> str:
    """Step, loss, speed and what is left, in one line."""
    if progress is None:
        return "no step yet"
    left = f", about {duration(progress.eta_seconds)} left" if progress.eta_seconds else ""
    speed = f"{progress.tokens_per_second:,.0f} tokens/s"
    return f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}, {speed}{left}"


def failure_words(failure: Failure) -> str:
    """The first failure, in one line."""
    return f"{failure.role} rank {failure.rank} on {failure.host} (attempt {failure.attempt}): {failure.error}"


def _state(state: str) -> Text:
    return Text(state, style=STYLES.get(state, "red"))


# One run


def status_view(facts: Facts, status: Status) -> RenderableType:
    """A head line, a table of the roles, and what went wrong."""
    head = Text.assemble(status.run, "  ", _state(status.state), f"  attempt {status.attempt}")
    lines: list[RenderableType] = [head, Text(progress_words(status.progress)), _role_table(facts, status)]
    if status.failure is not None:
        lines.append(Text(f"first failure: {failure_words(status.failure)}", style="red"))
    return Group(*lines, Text(f"folder: {status.run_dir}"))


def _role_table(facts: Facts, status: Status) -> Table:
    table = Table("role", "state", "nodes", "done", "sign of life", "reason", box=None, pad_edge=False)
    for component in status.components:
        seen = role_progress(component.role, facts.heartbeats)
        doing = seen.waiting_for if seen and not status.ended else None
        reason = component.reason or (f"waits for {doing}" if doing else "")
        nodes, alive = ",".join(component.nodes), _alive(seen, facts, status.ended)
        table.add_row(component.role, _state(component.state), nodes, _done(seen), alive, reason)
    return table


def _done(seen: RoleProgress | None) -> str:
    return f"{seen.done} of {seen.total} {seen.unit}" if seen and seen.total else ""


def _alive(seen: RoleProgress | None, facts: Facts, ended: bool) -> str:
    if seen is None or ended:
        return ""
    return f"{max(0.0, facts.now - seen.oldest):.0f} s ago, {seen.ranks} ranks"


# All runs


def runs_table(statuses: Sequence[Status]) -> Table:
    """One line for each run."""
    names = ("run", "state", "job", "step", "loss", "left", "failure")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=None, pad_edge=False)
    for status in statuses:
        progress = status.progress
        step = f"{progress.step}/{progress.steps}" if progress else ""
        loss = f"{progress.loss:.4f}" if progress else ""
        left = duration(progress.eta_seconds) if progress and not status.ended else ""
        table.add_row(status.run, _state(status.state), status.job_id or "", step, loss, left, _why(status))
    return table


def _why(status: Status) -> str:
    if status.failure is not None:
        return failure_words(status.failure).splitlines()[0]
    return next((component.reason for component in status.components if component.reason), "")


# A run that is waited for


Look = Callable[[], tuple[Facts, Status]]


def watch(look: Look, out: Console, sleep: Callable[[float], None] = time.sleep) -> Status:
    """The table of a run, redrawn until the run has ended; away from a terminal, again whenever it has changed."""
    with ExitStack() as stack:
        live = stack.enter_context(Live(console=out, auto_refresh=False)) if out.is_terminal else None
        shown = None
        while True:
            facts, status = look()
            if live is not None:
                live.update(status_view(facts, status), refresh=True)
            elif status != shown:
                out.print(status_view(facts, status))
            if status.ended:
                return status
            shown = status
            sleep(POLL_S)


def follow(look: Look, out: Console, sleep: Callable[[float], None] = time.sleep) -> Status:
    """A bar for each role until the run has ended; away from a terminal, a line every few seconds."""
    return _follow_bars(look, out, sleep) if out.is_terminal else _follow_lines(look, out, sleep)


def _follow_lines(look: Look, out: Console, sleep: Callable[[float], None]) -> Status:
    said, last = "", -PLAIN_S
    while True:
        facts, status = look()
        words = "; ".join((progress_words(status.progress), *_each_role(facts, status)))
        if words != said and (status.ended or time.monotonic() - last >= PLAIN_S):
            out.print(words)
            said, last = words, time.monotonic()
        if status.ended:
            return status
        sleep(POLL_S)


def _each_role(facts: Facts, status: Status) -> Iterable[str]:
    for component in status.components:
        done = _done(role_progress(component.role, facts.heartbeats))
        if done:
            yield f"{component.role} {done}"


def _follow_bars(look: Look, out: Console, sleep: Callable[[float], None]) -> Status:
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]:28}", markup=False),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=out, auto_refresh=False) as bars:
        tasks: dict[Role, TaskID] = {}
        while True:
            facts, status = look()
            for component in status.components:
                if component.role not in tasks:
                    tasks[component.role] = bars.add_task(component.role, total=None, count="", words="")
                bars.update(tasks[component.role], **_bar(component.role, facts, status))  # type: ignore[arg-type]
            bars.refresh()
            if status.ended:
                return status
            sleep(POLL_S)


def _bar(role: Role, facts: Facts, status: Status) -> dict[str, object]:
    """One role's bar. Metrics are ahead of heartbeats, which come every two seconds only."""
    seen = role_progress(role, facts.heartbeats)
    if seen is None:
        return {"total": None, "words": "starts"}
    done, total, progress = seen.done, seen.total, status.progress
    words = f"waits for {seen.waiting_for}" if seen.waiting_for and not status.ended else ""
    if role is not Role.TEACHER and progress is not None:
        done, total, words = max(done, progress.step), progress.steps, progress_words(progress).partition(", ")[2]
    count = f"{done} of {total} {seen.unit}" if total else ""
    return {"completed": done, "total": total or None, "count": count, "words": words}

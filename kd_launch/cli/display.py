"""What people see of runs: the table of one run or of all, and the bars of a run that is waited for."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from kd_launch.cli.status_text import (
    attempt_lines,
    duration,
    failure_line,
    headlines,
    in_short,
    reason_line,
    role_notes,
    step_time_line,
    waits,
)
from kd_launch.plan import Role
from kd_launch.runs.facts import Facts
from kd_launch.runs.role_progress import RoleProgress, ranks_of, role_progress
from kd_launch.runs.standing import Component
from kd_launch.runs.status import Status
from kd_launch.slurm.nodes import fold

POLL_S = 0.5
PLAIN_S = 5.0
GAP = "  "
WIDE = 100
"""Columns of a window in which all figures of a list of runs have room."""
STYLES = {
    "RUNNING": "cyan", "PENDING": "yellow", "REQUEUED": "yellow", "COMPLETED": "green", "CANCELLED": "yellow",
    "UNKNOWN": "magenta",
}  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """Takes text as it is; away from a terminal, tables may be wide, since nobody's window cuts them."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def _state(state: str) -> Text:
    return Text(state, style=STYLES.get(state, "red"))


# One run


def status_view(facts: Facts, status: Status) -> RenderableType:
    """What the run is, how far, a table of its roles, what went wrong, and what can be done."""
    head = Text.assemble(status.run, "  ", _state(status.state), *_numbers(facts, status))
    lines: list[RenderableType] = [head, *(Text(line) for line in headlines(facts, status))]
    if reason := reason_line(status):
        lines.append(Text(reason, style="yellow"))
    if step_time := step_time_line(status):
        lines.append(Text(step_time))
    lines.append(_role_table(facts, status))
    lines += [Text(line) for line in (*role_notes(facts, status), *attempt_lines(status))]
    if failed := failure_line(status):
        lines.append(Text(failed, style="red"))
    if status.way_on is not None:
        lines.append(Text.assemble("to let it start: ", (status.way_on, "bold")))
    return Group(*lines, Text(f"folder: {status.run_dir}"))


def _numbers(facts: Facts, status: Status) -> list[str]:
    job = [f"  job {status.job_id}"] if facts.on_slurm and status.job_id else []
    return [*job, f"  attempt {status.attempt}" if status.attempt else "  no attempt yet"]


def _role_table(facts: Facts, status: Status) -> Table:
    """A row for each role; columns in which nothing stands are left out."""
    names = ("role", "job", "state", "nodes", "done", "sign of life")
    rows = [_role_cells(component, facts, status) for component in status.components]
    used = [i for i in range(len(names)) if names[i] in ("role", "state") or any(row[i] for row in rows)]
    columns = [Column(names[i], no_wrap=names[i] != "nodes", overflow="fold") for i in used]
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(row[i] for i in used))
    return table


def _role_cells(component: Component, facts: Facts, status: Status) -> list[RenderableType]:
    seen = None if waits(status) else role_progress(component.role, facts.heartbeats)  # of an attempt that is over
    job = component.job_id if component.het_group is not None else ""
    nodes = fold(component.nodes) if component.nodes else ""
    alive = _alive(component.role, seen, facts, status.ended)
    return [component.role, job, _state(component.state), nodes, _done(seen), alive]


def _done(seen: RoleProgress | None) -> str:
    return f"{seen.done} of {seen.total} {seen.unit}" if seen and seen.total else ""


def _alive(role: Role, seen: RoleProgress | None, facts: Facts, ended: bool) -> Text | str:
    """How long ago the rank spoke that has been silent longest, and how many have spoken at all."""
    if seen is None or ended:
        return ""
    planned = ranks_of(role, facts.plan.layout)
    ranks = f"{seen.ranks} ranks" if seen.ranks == planned else f"{seen.ranks} of {planned} ranks"
    silent = max(0.0, facts.now - seen.oldest)
    age = f"{silent:.0f} s ago" if silent < 120 else f"{duration(silent)} ago"
    return Text(f"{age}, {ranks}", style="red" if silent > facts.plan.cluster.heartbeat_timeout_s else "")


# All runs


def runs_table(statuses: Sequence[Status], now: float, width: int) -> Table:
    """One line for each run; in a narrow window without figures that `status RUN` shows."""
    names = ("run", "state", "job", "step", *(("loss", "left") if width >= WIDE else ()), "why")
    rows = [_run_cells(status, now) for status in statuses]
    used = [name for name in names if name in ("run", "state") or any(row[name] for row in rows)]
    longest = {name: max(len(name), *(len(row[name]) for row in rows)) for name in used}
    left = width - sum(longest[name] + len(GAP) for name in used if name != "why")
    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0))
    for name in used:
        # Of its own accord rich would take the room for a long reason from the state.
        table.add_column(name, no_wrap=True, width=max(10, min(left, longest[name])) if name == "why" else None)
    for row in rows:
        table.add_row(*(row[name] for name in used))
    return table


def _run_cells(status: Status, now: float) -> dict[str, Text]:
    progress = status.progress
    left = duration(progress.eta_seconds) if progress and not status.ended and not waits(status) else ""
    cells = {
        "run": status.run,
        "job": status.job_id or "",
        "step": f"{progress.step}/{progress.steps}" if progress else "",
        "loss": f"{progress.loss:.4f}" if progress else "",
        "left": left,
        "why": in_short(status, now),
    }
    return {"state": _state(status.state), **{name: Text(text) for name, text in cells.items()}}


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
        words = "; ".join((*headlines(facts, status), *_each_role(facts, status)))
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
    with Live(console=out, auto_refresh=False) as live:
        while True:
            facts, status = look()
            live.update(_bars_view(facts, status), refresh=True)
            if status.ended:
                return status
            sleep(POLL_S)


def _bars_view(facts: Facts, status: Status) -> RenderableType:
    """A bar for each role, and the lines that say how far the run is, or why it waits."""
    words = [*headlines(facts, status), *role_notes(facts, status)]
    if reason := reason_line(status):
        words.append(reason)
    lines = [Text(line) for line in words]
    if waits(status):
        return Group(*lines)
    bars = Progress(TextColumn("{task.description:8}"), BarColumn(bar_width=30), TextColumn("{task.fields[count]}"))
    for component in status.components:
        bars.add_task(component.role, **_bar(component.role, facts, status))  # type: ignore[arg-type]
    return Group(bars, *lines)


def _bar(role: Role, facts: Facts, status: Status) -> dict[str, object]:
    """One role's bar. Metrics are ahead of heartbeats, which come every two seconds only."""
    seen, progress = role_progress(role, facts.heartbeats), status.progress
    if seen is None:
        return {"total": None, "count": ""}
    done, total = seen.done, seen.total
    if role is not Role.TEACHER and progress is not None:
        done, total = max(done, progress.step), progress.steps
    return {"completed": done, "total": total or None, "count": f"{done} of {total} {seen.unit}" if total else ""}

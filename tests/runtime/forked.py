"""Ranks that are forked from a process with torch in it: importing it is nine tenths of what a tiny rank costs.

A forked rank runs its module as the main program, with the arguments, variables and output that a launcher gives; only
the interpreter's own start and the imports are shared. Tests of those start a process (see `harness.start_rank`).
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOAD = ["kd_launch.runtime.rank", "pytest", "transformers.models.auto.modeling_auto"]
# Read where torch and the hub's client are imported, which is in the process that is forked.
AT_IMPORT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class ForkedRank:
    """As much of subprocess.Popen as a test needs of a rank."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid: int = process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("forked rank", timeout or 0)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork_rank(program: tuple[str, ...], arguments: list[str], variables: dict[str, str], output: Path) -> ForkedRank:
    """Starts `program` ("-m" and a module, or a script and its arguments) in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    _start_server(context)
    process = context.Process(target=_run, args=(program, arguments, variables, output, sys.path[0]))
    process.start()
    return ForkedRank(process)


def _start_server(context: multiprocessing.context.ForkServerContext) -> None:
    """Once in a session; later calls find it running."""
    context.set_forkserver_preload(PRELOAD)
    before = {name: os.environ.get(name) for name in AT_IMPORT}
    os.environ.update(AT_IMPORT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _run(program: tuple[str, ...], arguments: list[str], variables: dict[str, str], output: Path, first: str) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[0] = first
    match program:
        case ("-m", module, *words):
            sys.argv = [module, *words, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case (script, *words):
            sys.path[0] = str(Path(script).parent)
            sys.argv = [script, *words, *arguments]
            runpy.run_path(script, run_name="__main__")

"""Ranks that start in no time: one process imports torch and the runtime once, and each rank is a fork of it.

A rank is what a launcher would have started but for that: a process of its own with its own variables and output.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_launch.plan import Layout
from kd_launch.run_dir import RunDir

CHECKOUT = Path(__file__).parents[2]


class Zygote:
    """The process that ranks are forks of."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=CHECKOUT,
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, run_dir: RunDir, layout: Layout, attempt: int = 1, defect: str | None = None) -> "Forks":
        """Starts every rank of an attempt as srun would."""
        run_dir.attempt(attempt).mkdir(parents=True, exist_ok=True)
        forks = Forks(self, run_dir, attempt)
        for rank in range(layout.world_size):
            variables = {
                "SLURM_PROCID": rank, "SLURM_NTASKS": layout.world_size, "SLURM_LOCALID": rank,
                "SLURM_STEP_TASKS_PER_NODE": layout.world_size, "KD_LAUNCH_ATTEMPT": attempt,
            }  # fmt: skip
            argv = [str(run_dir.path), "--role", layout.role_of(rank)]
            output = str(forks.output_file(rank))
            forks.pids.append(self.ask(argv=argv, variables=variables, output=output, defect=defect))
        return forks

    def run(self, run_dir: RunDir, layout: Layout, attempt: int = 1, timeout: float = 200) -> "Forks":
        """Starts every rank, and expects success."""
        forks = self.start(run_dir, layout, attempt)
        codes = forks.wait(timeout)
        assert not any(codes), f"exit codes {codes}\n{forks.outputs()}"
        return forks

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Forks:
    """The ranks of one attempt."""

    zygote: Zygote
    run_dir: RunDir
    attempt: int
    pids: list[int] = field(default_factory=list)

    def output_file(self, rank: int) -> Path:
        return self.run_dir.path / f"attempt-{self.attempt}-rank-{rank}.txt"

    def outputs(self) -> str:
        return "\n".join(f"--- rank {rank}\n{self.output_file(rank).read_text()}" for rank in range(len(self.pids)))

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit codes, negative for signals; kills what is left after `timeout` seconds."""
        codes: list[int] = self.zygote.ask(wait=self.pids, timeout=timeout)
        return codes

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pids[rank], number)

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run_dir.metrics.read_text().splitlines()]

    def losses(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm by step; the last line of a step counts."""
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in self.metrics() if "loss" in line}

    def has_done(self, step: int) -> bool:
        with suppress(OSError, ValueError):
            return max(self.losses(), default=0) >= step
        return False


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update({name: str(value) for name, value in request["variables"].items()})
    sys.argv = ["worker.py", request["defect"] or "none", *request["argv"]]
    try:
        from tests.runtime import worker

        code = worker.main()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(pids: list[int], timeout: float) -> list[int]:
    deadline, codes = time.monotonic() + timeout, {}
    while len(codes) < len(pids):
        for pid in [pid for pid in pids if pid not in codes]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def _serve() -> None:
    from kd_launch.runtime import rank  # noqa: F401 - what takes its time

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        answer = _wait(request["wait"], request["timeout"]) if "wait" in request else _fork(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()

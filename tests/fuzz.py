"""Spoilt spec and cluster files through the command line, in this process: exit 0, 2 or 3, and nothing else happens.

    python -m tests.fuzz --cases 20000 --seed 1

No case may end in a traceback or take longer than `SLOW_S` of processor time; each script that comes out is read by
`bash -n` and run beside programs that only pretend, where no string of a file may become a command.
"""

import argparse
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_files import CANARY, CONFIG, PRODUCT, Case, case_of
from typer.main import get_command

from kd_launch.cli.__main__ import app
from kd_launch.errors import KdLaunchError
from kd_launch.reading.spec_file import load

COMMANDS = get_command(app)
SLOW_S = 3.0
"""Of processor time: the machine may be busy with other things."""
STOP_S = 20.0
SOUND = json.dumps(CONFIG).encode()
MOST_RANKS = 16
"""A local script with more is not run."""

# Every part of an srun line once, in a shell of its own where the line has one.
SRUN = """#!/bin/bash
part=()
for word in "$@" :; do
  if [[ $word == : ]]; then
    while [[ ${part[0]} == --* ]]; do part=("${part[@]:1}"); done
    SLURM_PROCID=0 "${part[@]}" || true
    part=()
  else
    part+=("$word")
  fi
done
"""
NOTHING = "#!/bin/bash\nexit 0\n"
PROGRAMS = {"srun": SRUN, **dict.fromkeys(("python", "apptainer", "module", "scontrol", "sleep", "cd"), NOTHING)}


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    exit_code: int | None
    wrong: str | None
    """What must not happen, in words."""
    stdout: str
    stderr: str
    ran: bool = False
    """Whether a script came out and was run."""


class TooSlowError(Exception):
    """A case was ended."""


class Bench:
    """A folder with two models, in which the files of one case after another lie, and pretended programs."""

    def __init__(self, root: Path) -> None:
        self.work, self.programs, self.sandbox = root / "work", root / "programs", root / "sandbox"
        for role in ("teacher", "student"):
            (self.work / role).mkdir(parents=True)
            (self.work / role / "config.json").write_bytes(SOUND)
        self.programs.mkdir()
        for name, text in PROGRAMS.items():
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)
        for name in ("bash", "mkdir", "touch", "xargs", "rm"):
            found = shutil.which(name)
            assert found is not None, name
            (self.programs / name).symlink_to(found)

    def judge(self, case: Case) -> Outcome:
        """Runs a case and says what is wrong with what became of it."""
        (self.work / "distill.yaml").write_bytes(case.spec)
        (self.work / "cluster.yaml").write_bytes(case.cluster)
        (self.work / "teacher" / "config.json").write_bytes(SOUND if case.model is None else case.model)
        before = set(self.work.iterdir())
        with self._surroundings(case):
            outcome = self._call(case)
            if new := set(self.work.iterdir()) - before:
                outcome = replace(outcome, wrong=f"left behind: {sorted(map(str, new))}")
            if outcome.wrong is None and case.arguments[0] == "render" and outcome.exit_code == 0:
                outcome = self._try_script(case, outcome)
        return outcome

    @contextmanager
    def _surroundings(self, case: Case) -> Iterator[None]:
        kept, folder, python = dict(os.environ), Path.cwd(), sys.executable
        os.environ.update({"KD_FUZZ": case.variable, "HF_HUB_OFFLINE": "1", "PATH": str(self.programs)})
        os.chdir(self.work)
        sys.executable = str(self.programs / "python")
        try:
            yield
        finally:
            sys.executable = python
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(kept)

    def _call(self, case: Case) -> Outcome:
        # Strict, as a terminal's: what cannot be encoded must be said, not raised.
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", newline="")
        err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", newline="")
        code: int | None = None
        wrong: str | None = None
        started, stdout_descriptor = time.process_time(), os.dup(1)
        with redirect_stdout(out), redirect_stderr(err), _ended_after(STOP_S):
            try:
                COMMANDS.main(list(case.arguments), prog_name="kd-launch")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:  # whatever a case raises is what is looked for
                wrong = traceback.format_exc()
        took = time.process_time() - started
        os.dup2(stdout_descriptor, 1)  # the command line turns it away where an answer cannot be written
        os.close(stdout_descriptor)
        stdout, stderr = (_written(stream) for stream in (out, err))
        wrong = wrong or _wrong_answer(code, took, stdout, stderr)
        return Outcome(code, wrong, stdout, stderr)

    def _try_script(self, case: Case, outcome: Outcome) -> Outcome:
        """Reads the script, and runs it where its programs only pretend."""
        text = outcome.stdout.encode()
        checked = _bash(["-n"], text, Path("/"), dict(os.environ))
        if checked.returncode or checked.stderr:
            return replace(outcome, wrong=f"bash -n: {checked.stderr.decode(errors='replace')}")
        run_dir = self._run_dir(case)
        if run_dir is None or _ranks(outcome.stdout) > MOST_RANKS:
            return outcome
        try:
            return replace(outcome, wrong=self.sings(case, text), ran=True)
        finally:
            shutil.rmtree(run_dir, ignore_errors=True)

    def _run_dir(self, case: Case) -> Path | None:
        """The folder that the script will make, where that is one of ours: a script is run nowhere else."""
        if "--run-dir" not in case.arguments:
            return None
        found = Path(os.path.normpath(self.work / case.arguments[case.arguments.index("--run-dir") + 1]))
        return found if found.parent == self.work and not os.path.lexists(found) else None

    def sings(self, case: Case, text: bytes) -> str | None:
        """What a string of a file made a shell do; None: nothing."""
        shutil.rmtree(self.sandbox, ignore_errors=True)
        self.sandbox.mkdir()
        done = _bash([], text, self.sandbox, {"PATH": str(self.programs), "HOME": "/nowhere"})
        sung = any(self.sandbox.iterdir())
        if sung and not _is_code(case):
            return f"a string was run; the script ended with {done.returncode}: {done.stderr.decode(errors='replace')}"
        return None


def _bash(options: list[str], text: bytes, cwd: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    bash = shutil.which("bash", path="/bin:/usr/bin")
    assert bash is not None
    with tempfile.NamedTemporaryFile() as script:
        script.write(text)
        script.flush()
        process = subprocess.Popen(
            [bash, *options, script.name], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            out, err = b"", b"still runs after 60 s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _ranks(script: str) -> int:
    """Of a local script; a pretended srun starts each part once."""
    for line in script.splitlines():
        if line.startswith("export WORLD_SIZE="):
            return int(line.split("=")[1].split()[0])
    return 0


def _is_code(case: Case) -> bool:
    """Whether a canary came to stand in a setup or names a template: code by its meaning."""
    settings = [a.removeprefix("--set=") for a in case.arguments if a.startswith("--set=")]
    with suppress(KdLaunchError):
        cluster = load(Path("distill.yaml"), settings, environ=os.environ, cwd=Path.cwd()).cluster
        setups = [cluster.setup, *(pool.setup or "" for pool in cluster.pools)]
        return cluster.template is not None or any(CANARY in setup for setup in setups)
    return False


def _wrong_answer(code: int | None, took: float, stdout: str, stderr: str) -> str | None:
    if code not in (0, 2, 3):
        return f"exit code {code}"
    if "Traceback" in stderr:
        return "a traceback on stderr"
    if took > SLOW_S:
        return f"took {took:.1f} s of processor time"
    if code and stdout:
        return "an answer on stdout beside an error"
    if code and not stderr.strip():
        return "an error without a word"
    if PRODUCT[1] in stdout:
        return "Jinja2 read a string as a template"
    if any(ord(c) < 32 and c not in "\n\t\r" for c in stderr):
        return "a control character on stderr"
    if any(len(line) > 5000 for line in stderr.splitlines()):
        return "a line of more than 5000 characters on stderr"
    return None


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlowError(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _written(stream: io.TextIOWrapper) -> str:
    with suppress(ValueError):  # what the case left in the buffer cannot be encoded
        stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "replace")


def main() -> int:
    """Runs the cases; says how many ended how, and keeps those that ended as none may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--most", type=int, default=20, help="ends after so many findings")
    parser.add_argument("--show", action="store_true", help="shows the files of each finding")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    codes: Counter[str] = Counter()
    findings = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for number in range(given.first, given.first + given.cases):
            case = case_of(given.seed, number)
            outcome = bench.judge(case)
            codes[f"exit {outcome.exit_code}"] += 1
            codes["scripts run"] += outcome.ran
            if outcome.wrong is not None:
                findings += 1
                print(f"--- case {number}: {case.arguments}\n{outcome.wrong}\n{outcome.stderr[:1000]}", flush=True)
                if given.show:
                    print(f"{case.spec!r}\n{case.cluster!r}\n{case.variable!r}\n{outcome.stdout}", flush=True)
            if findings >= given.most:
                break
            if (number + 1) % 1000 == 0:
                print(f"{number + 1}: {dict(codes)}, {findings} findings", flush=True)
    print(f"{findings} findings in {sum(codes[k] for k in codes if k != 'scripts run')} cases of seed {given.seed}, ")
    print(f"{time.monotonic() - started:.0f} s: {dict(codes)}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

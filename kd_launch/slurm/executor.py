"""submitit's Slurm executor, for a script of several components that is made already: how a run is sent to Slurm.

submitit 1.5.4 has no heterogeneous jobs. It writes a script of its own beside the job, takes the first number after
"job" in whatever sbatch prints for the id, waits for sbatch for ever, removes SLURM_CONF where it cleans the
environment, and looks up job 28 where sacct says 28+0. All of that is answered here, on private names of submitit's,
which is why pyproject.toml pins its version and tests/test_executor.py compares what is built on.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit.core.utils import CommandFunction, DelayedSubmission, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from kd_launch.commands import Completed, Runner
from kd_launch.errors import MaybeSentError, SlurmRefusedError, SlurmSilentError
from kd_launch.run_dir import RunDir
from kd_launch.slurm.call import is_silent
from kd_launch.slurm.environ import dropped_options, for_submission
from kd_launch.slurm.job_text import read_job_id
from kd_launch.slurm.states import read_state_word, worst

# sbatch itself gives up after two minutes of "temporarily unable to accept job, sleeping and retrying".
SBATCH_S = 150.0
MOST_WORDS = 20
"""Lines of a refusal that are shown: a site's own checks may explain themselves at length."""
# Ends of sbatch after which no job can have come about, whatever else is not known.
_NOT_SENT = ("connect failure", "connection refused", "unable to process configuration file", "configuration source")


class HetSlurmWatcher(SlurmInfoWatcher):  # type: ignore[misc]
    """sacct's answer by leader: one job for submitit, of the worst state of its components and with all their nodes."""

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        heading, *lines = _text(string).splitlines() or [""]
        jobs: dict[str, list[dict[str, str]]] = {}
        for line in lines:
            row = dict(zip(heading.split("|"), line.split("|"), strict=False))
            # "28" until the first component has started, then "28+0" and "28+1"; steps ("28.0+1") are no jobs.
            number = read_job_id(row.get("JobID", ""))
            if number is not None and number.step is None and "State" in row:
                jobs.setdefault(number.leader, []).append(row)
        return {leader: _joined(leader, rows) for leader, rows in jobs.items()}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether no component is left: the worst state may be that of one that ended before the others."""
        done: bool = super().is_done(job_id, mode)
        return done and not self.get_info(job_id, mode="cache").get("Held")


def _joined(leader: str, rows: list[dict[str, str]]) -> dict[str, str]:
    meanings = [read_state_word(row["State"]) for row in rows]
    nodes = [row["NodeList"] for row in rows if row.get("NodeList") not in (None, "", "None assigned")]
    held = "yes" if any(meaning.holds for meaning in meanings) else ""
    return {
        "JobID": leader,
        "State": worst(meaning.state for meaning in meanings),
        "NodeList": ",".join(nodes),
        "Held": held,
    }


def _text(string: bytes | str) -> str:
    return string if isinstance(string, str) else string.decode(errors="replace")


class HetSlurmJob(SlurmJob):  # type: ignore[misc]
    """A heterogeneous job as one: its id is the leader's, which cancels every component."""

    watcher = HetSlurmWatcher(delay_s=600)


class HetSlurmExecutor(SlurmExecutor):  # type: ignore[misc]
    """Sends a run's own script, job.sbatch, as it stands in the run folder."""

    job_class = HetSlurmJob

    def __init__(self, run: RunDir, world_size: int, environ: Mapping[str, str], runner: Runner) -> None:
        """Raises SlurmSilentError where this machine has no sbatch."""
        self._run, self._world_size, self._environ, self._runner = run, world_size, environ, runner
        if shutil.which("sbatch", path=environ.get("PATH")) is None:
            raise SlurmSilentError(
                "sbatch is not found: is this machine part of a Slurm cluster? "
                "`kd-launch submit --dry-run` shows the script without one"
            )
        super().__init__(run.path)

    @classmethod
    def affinity(cls) -> int:
        """The highest. submitit asks for srun here, which only the job needs; the constructor asks for sbatch."""
        return 2

    def send(self) -> HetSlurmJob:
        """Submits the script; the job in submitit's terms.

        Raises:
            SlurmRefusedError: sbatch said no; its words are in the message.
            SlurmSilentError: nobody answered it. A MaybeSentError where the job may be queued all the same.
        """
        job: HetSlurmJob = self.submit(CommandFunction(["bash", str(self._run.script)]))
        return job

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[Any]:
        # No pickle: the ranks read plan.json. No array: submitit makes those with its own SlurmExecutor, not with this.
        if len(delayed_submissions) != 1:
            raise NotImplementedError("a run is one job: heterogeneous jobs cannot be arrays")
        return [self._submit_command(self._submitit_command_str)]

    @property
    def _submitit_command_str(self) -> str:
        return f"bash {self._run.script}"

    def _make_submission_file_text(self, command: str, uid: str) -> str:  # noqa: ARG002 - submitit's signature
        return self._run.script.read_bytes().decode()

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["sbatch", str(submission_file_path)]

    def _num_tasks(self) -> int:
        return self._world_size

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        """The leader's digits, from among what a site's wrapper or banner prints around them."""
        text = _text(string)
        ids = re.findall(r"Submitted batch job (\d+)", text)
        # What --parsable prints, which a wrapper may add: the id alone, or with its cluster.
        ids = ids or [line.split(";")[0] for line in text.split() if re.fullmatch(r"\d+(;[\w.-]+)?", line)]
        if len(set(ids)) != 1:
            raise FailedSubmissionError(f"no job id in {text!r}")
        return str(ids[0])

    def _submit_command(self, command: str) -> Any:  # noqa: ARG002 - submitit's signature
        """As submitit's, but it sends the run's script itself, and gives up on a Slurm that does not answer."""
        argv = self._make_submission_command(self._run.script)
        done = self._runner(argv, timeout=SBATCH_S, env=for_submission(self._environ))
        if not done.ok:
            raise _failure(done, self._environ)
        try:
            job_id = self._get_job_id_from_submission_command(done.stdout)
        except FailedSubmissionError as error:
            raise MaybeSentError(f"sbatch named no job; it said: {_words(done)}") from error
        return self.job_class(folder=self.folder, job_id=job_id, tasks=list(range(self._num_tasks())))


def send(run: RunDir, world_size: int, environ: Mapping[str, str], runner: Runner) -> str:
    """Sends a run's job.sbatch; the leader's job id. Raises as `HetSlurmExecutor.send` does."""
    return str(HetSlurmExecutor(run, world_size, environ, runner).send().job_id)


def _failure(done: Completed, environ: Mapping[str, str]) -> SlurmRefusedError | SlurmSilentError:
    """What an sbatch without success means."""
    words = _words(done)
    if done.returncode is not None and any(sign in done.stderr.lower() for sign in _NOT_SENT):
        return SlurmSilentError(f"{words}\ntry again when `sinfo` answers")
    if done.returncode is None or done.returncode < 0 or is_silent(done):
        return MaybeSentError(words)
    ignored = dropped_options(environ)
    hint = f"\n{', '.join(ignored)} of your environment is not used: the script says everything" if ignored else ""
    return SlurmRefusedError(words + hint)


def _words(done: Completed) -> str:
    """All that sbatch said, in its own lines."""
    said = [line.rstrip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return "\n".join(said[-MOST_WORDS:]) or done.why()

"""Which run is meant: a folder, a name or the beginning of one, a job id (123, or 123+1), or `latest`."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kd_launch.errors import SpecError, UnknownNameError, nearest
from kd_launch.reading.spec_file import expand
from kd_launch.run_dir import RunDir
from kd_launch.runs.state import read_state
from kd_launch.slurm.job_text import read_job_id

ROOT_VARIABLE = "KD_LAUNCH_RUNS"


def run_root(option: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """The folder of all runs: --run-root, else $KD_LAUNCH_RUNS, else ./runs. Absolute."""
    return cwd / expand(str(option or environ.get(ROOT_VARIABLE) or "runs"), environ)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's: others, such as that of the tokens, lie beside them."""
    return (path / "plan.json").is_file() or (path / "state.json").is_file()


def list_runs(root: Path) -> list[RunDir]:
    """All runs below a run root, the newest first; none where it does not exist."""
    try:
        runs = [RunDir(path) for path in root.iterdir() if path.is_dir() and is_run(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpecError(f"{root}: {error.strerror}; name the folder of the runs with --run-root") from error
    return sorted(runs, key=lambda run: (_created(run), run.name), reverse=True)


def find_run(text: str, root: Path, cwd: Path) -> RunDir:
    """The run that `text` names.

    Raises:
        UnknownNameError: none, or several.
    """
    folder = (cwd / text).resolve()
    if is_run(folder):
        return RunDir(folder)
    if "/" in text or text in (".", ".."):
        problem = "no run: it has no plan.json" if folder.is_dir() else "no such folder"
        raise UnknownNameError(f"{folder}: {problem}")
    runs = list_runs(root)
    if not runs:
        raise UnknownNameError(
            f"{text}: no such run: there is none in {root}; name their folder with --run-root or ${ROOT_VARIABLE}"
        )
    if text == "latest":
        return runs[0]
    return _one_of(text, _matching(text, runs), runs, root)


def _matching(text: str, runs: list[RunDir]) -> list[RunDir]:
    """The runs that answer to a name, else to a job id, else to the beginning of a name."""
    named = [run for run in runs if run.name == text]
    job = read_job_id(text)
    is_job = job is not None and job.task is None and job.step is None
    submitted = [run for run in runs if job is not None and job.leader in _job_ids(run)] if is_job else []
    return named or submitted or [run for run in runs if text and run.name.startswith(text)]


def _one_of(text: str, matches: list[RunDir], runs: list[RunDir], root: Path) -> RunDir:
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(run.name for run in (matches or runs)[:5])
    if matches:
        more = f" and {len(matches) - 5} more" if len(matches) > 5 else ""
        raise UnknownNameError(f"{text}: {len(matches)} runs match: {names}{more}; write more of the name")
    suggestion = nearest(text, [run.name for run in runs])
    raise UnknownNameError(f"{text}: no such run in {root}{suggestion}; the newest: {names}")


def _created(run: RunDir) -> float:
    with suppress(SpecError):
        state = read_state(run)
        if state is not None:
            return state.created
    with suppress(OSError):
        return run.path.stat().st_mtime
    return 0.0


def _job_ids(run: RunDir) -> tuple[str, ...]:
    """The jobs that the run is and was; of local runs their controllers' process."""
    with suppress(SpecError):
        state = read_state(run)
        if state is not None:
            return (*state.earlier_jobs, *([state.job_id] if state.job_id else []))
    return ()

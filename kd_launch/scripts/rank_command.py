"""What one rank starts on its pool: the pool's settings over the cluster's, in its container, as words."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kd_launch.catalog import find_gpu
from kd_launch.cluster import Cluster, Container, Pool
from kd_launch.errors import SpecError, printable
from kd_launch.scripts.directives import cores_per_rank
from kd_launch.secret_names import is_secret, secret_in, shape_of_secret

# Variables of the scripts, of the ranks, of Slurm, by which a script finds its own job, and those that bash lets nobody
# set.
TAKEN_NAMES = re.compile(
    r"attempt|caretaker|left|lines?|logs|next|rank|run_dir|sruns?|status|writers"
    r"|KD_LAUNCH_(ATTEMPT|RUN_DIR)|LOCAL_RANK|LOCAL_WORLD_SIZE|RANK|WORLD_SIZE|SUBMITIT_.*"
    r"|SLURMD_NODENAME|SLURM_(JOB_?ID|JOB_NODELIST|RESTART_COUNT|PROCID|LOCALID|NODEID|NTASKS|NPROCS|GTIDS|STEP_.*|HET_.*"
    r"|TASKS_PER_NODE|NTASKS_PER_NODE|.*_HET_GROUP_.*)"
    r"|BASHOPTS|BASH_VERSINFO|EUID|PPID|SHELLOPTS|UID"
)

# What makes the GPUs of a vendor usable inside an Apptainer container.
GPU_OPTIONS = {"nvidia": "--nv", "amd": "--rocm"}


@dataclass(frozen=True)
class Site:
    """What the ranks of one role find where they run."""

    pool: Pool
    python: str
    setup: str
    environment: Mapping[str, str]
    container: Container | None


@dataclass(frozen=True)
class Shared:
    """What is the same for every role, so that the script does it once, before the ranks start."""

    environment: Mapping[str, str]
    setup: str
    """ "" where the setups differ, and each rank runs its own."""


def site_of(cluster: Cluster, pool: Pool, default_python: str) -> Site:
    """The pool's settings over the cluster's.

    Raises:
        SpecError: a setting that no script can hold.
    """
    defaults = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if pool.is_cpu:
        defaults["OMP_NUM_THREADS"] = str(cores_per_rank(pool) or 1)
    site = Site(
        pool=pool,
        python=pool.python or cluster.python or default_python,
        setup=(cluster.setup if pool.setup is None else pool.setup).strip("\n"),
        environment={**defaults, **cluster.environment, **pool.environment},
        container=pool.container or cluster.container,
    )
    _check(site)
    return site


def shared_by(sites: Sequence[Site]) -> Shared:
    """The variables that have the same value in every role, and the setup if it is the same."""
    first, *others = (site.environment for site in sites)
    environment = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    setups = {site.setup for site in sites}
    return Shared(environment, setups.pop() if len(setups) == 1 else "")


def rank_command(site: Site, shared: Shared, run_dir: str) -> tuple[str, ...]:
    """The words that start one rank, without --role: what its pool alone asks for, its container, the runtime."""
    command = [site.python, "-m", "kd_launch.runtime", run_dir]
    if site.container is not None and not site.container.is_srun_option:
        command = [*_apptainer(site.container, site.pool), *command]
    own = {name: value for name, value in site.environment.items() if name not in shared.environment}
    own_setup = "" if site.setup == shared.setup else site.setup
    if not own and not own_setup:
        return tuple(command)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in own.items()]
    lines = ["set -e", *exports, *([own_setup] if own_setup else []), 'exec "$@"']
    return ("bash", "-c", "\n".join(lines), site.pool.name, *command)


def caretaker_command(sites: Sequence[Site], shared: Shared, default_python: str) -> tuple[str, ...]:
    """The words that start the caretaker of an attempt, on the batch script's node, which is the teacher's.

    The teacher's interpreter, where the script itself finds what that needs: no container, and the same setup.
    """
    teacher = sites[0]
    as_the_teacher = teacher.container is None and teacher.setup == shared.setup
    return (teacher.python if as_the_teacher else default_python, "-m", "kd_launch.attempt")


def container_options(container: Container | None) -> tuple[str, ...]:
    """srun's options for a container that srun starts; none for anything else."""
    if container is None or not container.is_srun_option:
        return ()
    if container.runtime == "container_engine":
        return (f"--environment={container.image}",)
    mounts = [f"--container-mounts={_mounts(container)}"] if container.mounts else []
    return (f"--container-image={container.image}", *mounts)


def check_line(field: str, value: str, forbidden: str = "") -> None:
    """One line of text, without the `forbidden` characters, which Slurm expands in a path.

    Raises:
        SpecError: names the field, the value and what is wrong with it.
    """
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise SpecError(f"{field}: {value!r} holds a control character, such as a newline; use a name without")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise SpecError(f"{field}: {value!r} holds bytes that are no UTF-8; use a name without")
    for character in forbidden:
        if character in value:
            raise SpecError(f"{field}: '{value}' holds {character}, which Slurm expands in a log's path; use another")


def check_length(field: str, path: Path) -> None:
    """Room for a file of the run below it: Linux knows names of 255 bytes and paths of 4095.

    Raises:
        SpecError: names the field and the path.
    """
    if any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(path)) > 3800:
        raise SpecError(f"{field}: '{printable(str(path), 300)}' is too long for the files in it; use a shorter one")


def _apptainer(container: Container, pool: Pool) -> list[str]:
    """Apptainer's words, which Singularity, its elder, takes as well."""
    gpus = [] if pool.is_cpu else [GPU_OPTIONS[find_gpu(pool.gpu).vendor]]
    binds = [f"--bind={_mounts(container)}"] if container.mounts else []
    return [container.runtime, "exec", *gpus, *binds, container.image]


def _mounts(container: Container) -> str:
    """source:target pairs, as both runtimes take them."""
    for mount in container.mounts:
        if "," in mount:
            raise SpecError(f"container.mounts: '{mount}' holds a comma, which separates mounts; use a path without")
    return ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts)


def _check(site: Site) -> None:
    for name in filter(TAKEN_NAMES.fullmatch, sorted(site.environment)):
        raise SpecError(
            f"environment: {name} is a variable of the script, of a rank, of Slurm or of bash itself; leave it out"
        )
    _refuse_secrets(site)
    for field, text in {"setup": site.setup, **{f"environment: {k}": v for k, v in site.environment.items()}}.items():
        if "\r" in text:  # sbatch refuses a script with one: "contains DOS line breaks"
            raise SpecError(f"{field}: {text!r} holds a carriage return (\\r), which sbatch refuses; leave it out")
    if any(line.lstrip().startswith("#SBATCH") for line in site.setup.splitlines()):
        raise SpecError("setup: holds an #SBATCH line, which nothing reads there; put directives into a pool's sbatch")
    _check_word("python", site.python)
    if site.container is not None:
        _check_word("container.image", site.container.image)


def _refuse_secrets(site: Site) -> None:
    for name, value in site.environment.items():
        if is_secret(name, value) or shape_of_secret(value):
            _refuse_secret("environment", name)
    words = {"setup": (site.setup,), f"pool {site.pool.name}: sbatch": site.pool.sbatch,
             f"pool {site.pool.name}: srun": site.pool.srun}  # fmt: skip
    for field, texts in words.items():
        for found in filter(None, map(secret_in, texts)):
            _refuse_secret(field, found)


def _refuse_secret(field: str, what: str) -> NoReturn:
    name = what if what.isidentifier() else "NAME"
    raise SpecError(
        f"{field}: {what} looks like a secret, which the job's script and plan.json would show to all who may read "
        f"them; export it where you submit, which passes it on, or let setup read it: export {name}=$(< ~/.secret)"
    )


def _check_word(field: str, value: str) -> None:
    """A word of a command line that must not be taken for an option, or for srun's separator of parts."""
    check_line(field, value)
    if value.startswith("-") or value == ":":
        raise SpecError(f"{field}: '{value}' would be taken for an option of the command before it; write a path")

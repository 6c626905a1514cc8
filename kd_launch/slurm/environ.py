"""The environment of Slurm's programs: what says where Slurm is stays, what would change their answers goes."""

import re
from collections.abc import Mapping

from kd_launch.local.surroundings import without_launchers

# Where the cluster is, and by what it knows us. submitit's clean_env removes these too, and sbatch then finds none.
WHERE = frozenset(
    (
        *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"),
        *("SLURM_SACK_JWKS", "SLURM_SACK_KEY", "SLURM_SACK_SOCKET"),
    )
)
# Options in disguise: what a job around us was given, and what a user has set for a program's use by hand, such as
# SLURM_TIME_FORMAT, SQUEUE_STATES or SCANCEL_INTERACTIVE.
_OPTIONS = re.compile(
    r"_?(SLURM|SLURMD|SPANK|SALLOC|SATTACH|SBATCH|SBCAST|SRUN|SACCT|SACCTMGR|SCANCEL|SCONTROL|SINFO|SPRIO|SQUEUE|SSTAT)_.*"
)
# What another launcher, or a job around us, said to its ranks; the GPUs of this machine are not the job's.
_RANKS = re.compile(
    r"(PMI\d?|PMIX|PALS|OMPI_COMM_WORLD|OMPI_UNIVERSE)_.*|MPI_LOCAL(RANKID|NRANKS)"
    r"|((CUDA|HIP|ROCR)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ZE_AFFINITY_MASK)"
)


def for_questions(environ: Mapping[str, str]) -> dict[str, str]:
    """For squeue, scancel and the like: they ask what their command line says, and print it as it says."""
    return {name: value for name, value in environ.items() if name in WHERE or not _OPTIONS.fullmatch(name)}


def for_submission(environ: Mapping[str, str]) -> dict[str, str]:
    """For sbatch, which hands its environment to the job: the script says everything, and no rank finds a stranger."""
    kept = without_launchers(for_questions(environ))
    return {name: value for name, value in kept.items() if not _RANKS.fullmatch(name)}


def dropped_options(environ: Mapping[str, str]) -> list[str]:
    """The sbatch options that the caller has in the environment, which no script of ours obeys."""
    return sorted(name for name in environ if name.startswith("SBATCH_"))

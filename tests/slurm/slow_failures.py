"""Dead nodes under the timeouts that Slurm has where its administrator sets none: it takes ten minutes."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from tests.slurm.box import Box
from tests.slurm.setup import Nodes, Partition, Setup
from tests.slurm.trials import Sent, Trial, run_wave

SETUP = Setup(
    # Room for each run to come back without the nodes of the others, which Slurm plans ahead for them.
    nodes=(Nodes("t", 6), Nodes("s", 6)),
    partitions=(Partition("teach", "t[1-6]", "Default=YES"), Partition("train", "s[1-6]")),
    kill_wait_s=30, slurmd_timeout_s=300, cred_expire_s=None, min_job_age_s=300,
)  # fmt: skip
_ALONE = ({"sbatch": ["--exclusive"]}, {"sbatch": ["--exclusive"]})
_PATIENT = {"heartbeat_timeout_s": 60.0, "stall_timeout_s": "auto"}
_HELD = {"1": {"0": ["wait", 900]}}
TRIALS: dict[str, Trial] = {
    "node of the student": Trial(
        _HELD, lambda s: s.box.kill_node(s.host(4)), teacher_nodes=1, pools=_ALONE, cluster=_PATIENT, time_limit="60"
    ),
    "slurmd of the student": Trial(
        _HELD, lambda s: s.box.kill_slurmd(s.host(4)), teacher_nodes=1, pools=_ALONE, cluster=_PATIENT, time_limit="60"
    ),
    "node of the batch script": Trial(
        _HELD, lambda s: s.box.kill_node(s.host(0)), teacher_nodes=1, pools=_ALONE, cluster=_PATIENT, time_limit="60"
    ),
}


def start(box: Box) -> "Future[Mapping[str, Sent]]":
    """Lets it happen beside everything else; the result is there when Slurm has let go of every job."""
    pool = ThreadPoolExecutor(1)
    future: Future[Mapping[str, Sent]] = pool.submit(run_wave, box, TRIALS, 1100)
    pool.shutdown(wait=False)
    return future

"""cluster.yaml of this machine: its GPUs, where it has any, else processes on its cores."""

from kd_launch.init.pools import CPU, FoundPool, catalog_gpu, plain_name, pool_lines, processes_on, scalar
from kd_launch.local.machine import Machine


def local_cluster(machine: Machine, host: str) -> str:
    """The text. A GPU that the catalog does not know is written all the same: there is no other pool."""
    cores, memory = machine.cores, max(1, int(machine.memory_gib))
    if machine.gpus:
        gpu = catalog_gpu(machine.gpus[0])
        pool = FoundPool("gpu", 1, len(machine.gpus), gpu, cores, memory)
    else:
        # Two at least, so that teacher and student can be processes of their own.
        pool = FoundPool("cpu", 1, processes_on(cores, least=2), CPU, cores, memory)
    head = ["# This machine, as `kd-launch init` found it.", f"name: {scalar(plain_name(host))}", "scheduler: local"]
    return "\n".join([*head, "pools:", *pool_lines(pool)]) + "\n"

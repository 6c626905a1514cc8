"""This machine: the run root, what the ranks find here, and the interpreter that is to run them."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kd_launch.checks.finding import Finding, Place, failure, fine
from kd_launch.cluster import Pool
from kd_launch.local.machine import GIB, Machine
from kd_launch.plan import Layout
from kd_launch.preparation import Inputs, interpreter_problem

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def check_run_root(inputs: Inputs) -> Finding:
    root = Path(inputs.cluster.run_root)
    there = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".kd-launch-check-", dir=there) as trial:
            (Path(trial) / "file").write_bytes(b"x" * 4096)
        free = shutil.disk_usage(there).free / GIB
    except OSError as error:
        problem = f"{there}: {error.strerror}" if there.is_dir() else f"{there}: is not a folder"
        return failure("run_root", f"{problem}; set run_root in the cluster file to a folder you may write")
    needed = inputs.student.parameters * DTYPE_BYTES[inputs.spec.student.dtype] / GIB
    if free < needed:
        return failure(
            "run_root",
            f"{there}: {_size(free)} are free, but the student alone takes {_size(needed)}; "
            "free space there, or set run_root in the cluster file to another disk",
        )
    return fine("run_root", str(root))


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"


def check_machine(pool: Pool, layout: Layout, machine: Machine) -> Finding:
    """Whether this machine is what the local pool says, as far as the layout uses it."""
    what, roles = f"pool {pool.name}", (layout.student,) if layout.colocated else (layout.teacher, layout.student)
    if not pool.is_cpu and len(machine.gpus) < layout.gpus:
        return failure(what, f"the layout takes {layout.gpus} GPUs but this machine shows {len(machine.gpus)}")
    needed = sum(role.memory_gib * role.gpus for role in roles) if pool.is_cpu else 0.0
    if needed > machine.memory_gib:
        return failure(
            what, f"the layout takes {needed:.1f} GiB but this machine has {machine.memory_gib:.1f}; "
            "correct memory_gib in the cluster file"
        )  # fmt: skip
    return fine(what, f"{machine.cores} cores, {machine.memory_gib:.1f} GiB, {len(machine.gpus)} GPUs here")


def check_interpreters(inputs: Inputs, pools: Sequence[Pool], place: Place) -> Iterator[Finding]:
    """One finding for each interpreter, and what else a pool puts around it."""
    seen: set[str] = set()
    for pool in pools:
        problem = interpreter_problem(inputs.cluster, pool, place.run, place.environ, _model_types(inputs))
        python = python_of(inputs, pool)
        says = problem or (f"{python} of pool {pool.name}" if len(pools) == 1 else python)
        if says not in seen:
            seen.add(says)
            yield fine("python", says) if problem is None else failure("python", says)


def _model_types(inputs: Inputs) -> list[str]:
    """Those that transformers itself must know."""
    roles = ((inputs.spec.teacher, inputs.teacher), (inputs.spec.student, inputs.student))
    return sorted({shape.model_type for role, shape in roles if shape.model_type and not role.trust_remote_code})


def python_of(inputs: Inputs, pool: Pool) -> str:
    """The interpreter of a pool's ranks."""
    return pool.python or inputs.cluster.python or sys.executable

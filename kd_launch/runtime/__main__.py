"""One rank: environment -> world -> role -> loop.

python -m kd_launch.runtime RUN_DIR --role teacher|student|both
"""

import argparse
import hashlib
import os
import sys
import time
import traceback
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from kd_launch.errors import KdLaunchError
from kd_launch.plan import Role, RunPlan, read_run_plan
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.colocated import ColocatedTeacher, PayloadSource, RemoteTeacher
from kd_launch.runtime.environment import Environment, read_environment
from kd_launch.runtime.losses import Head
from kd_launch.runtime.metrics import Heartbeat, MetricsFile, Progress, record_failure
from kd_launch.runtime.models import DTYPES, load_head, load_student
from kd_launch.runtime.optimizer import MakeOptimizer, make_adamw
from kd_launch.runtime.parallel import shard_student
from kd_launch.runtime.payload import PayloadForm
from kd_launch.runtime.student import Trainer, finish
from kd_launch.runtime.teacher import load_frozen_teacher, objective, payload_form, teach
from kd_launch.runtime.world import World, agree, check_place, join, leave


def run_rank(run_dir: RunDir, role: Role, environment: Environment, make_optimizer: MakeOptimizer = make_adamw) -> None:
    """Joins the world, does this rank's part of the run, and leaves."""
    run = read_run_plan(run_dir.plan)
    check_place(environment, run, role)
    progress = Progress(unit="micro-batches" if role is Role.TEACHER else "steps", total=0)
    progress.wait_for("the other ranks")
    heartbeat = Heartbeat(run_dir, environment.rank, role, progress, environment.launcher_pid)
    heartbeat.start()
    world = join(environment, run, run_dir, role)
    batches = Batches(run, world.device)
    plan_sum = hashlib.sha256(run_dir.plan.read_bytes()).hexdigest()
    agree(world, {"attempt": environment.attempt, "plan": plan_sum, "first checksum": batches.first_checksum()})
    progress.wait_for(None)
    form = payload_form(run, DTYPES[run.spec.teacher.dtype])
    if role is Role.TEACHER:
        _run_teacher(world, run, batches, form, progress)
    else:
        _run_student(world, run, run_dir, batches, form, progress, make_optimizer)
    leave(world)
    heartbeat.stop()


def _run_teacher(world: World, run: RunPlan, batches: Batches, form: PayloadForm, progress: Progress) -> None:
    teacher = load_frozen_teacher(run, form, world.device)
    progress.total = batches.schedule.items_per_teacher
    teach(world, run, batches, teacher, form, progress)


def _run_student(
    world: World,
    run: RunPlan,
    run_dir: RunDir,
    batches: Batches,
    form: PayloadForm,
    progress: Progress,
    make_optimizer: MakeOptimizer,
) -> None:
    dtype = DTYPES[run.spec.student.dtype]
    progress.total = run.spec.training.steps
    model = load_student(run.spec).to(world.device)
    student = shard_student(model, objective(run), run.layout.student, world.student_mesh, dtype)
    source = _payload_source(world, run, batches, form)
    metrics = MetricsFile(run_dir.metrics) if world.is_first_student else None
    if world.is_first_student:
        write_json(run_dir.start_record(world.attempt), {"time": time.time(), "attempt": world.attempt})
    Trainer(world, run, batches, student, source, make_optimizer).train(metrics, progress)
    finish(world, run, run_dir, student)
    if world.is_first_student:
        write_json(run_dir.done_record(world.attempt), {"time": time.time(), "step": run.spec.training.steps})


def _payload_source(world: World, run: RunPlan, batches: Batches, form: PayloadForm) -> PayloadSource:
    head: Head | None = load_head(run.spec.teacher, world.device) if form.kind == "hidden_states" else None
    if run.layout.colocated:
        return ColocatedTeacher(load_frozen_teacher(run, form, world.device), batches, form, head)
    return RemoteTeacher(world, run, batches, form, head)


def main(argv: list[str] | None = None, make_optimizer: MakeOptimizer = make_adamw) -> int:
    """Runs one rank and returns its exit code; a failure is recorded in the run folder and printed."""
    parser = argparse.ArgumentParser(prog="kd_launch.runtime", description="One rank of a kd-launch run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--role", type=Role, choices=list(Role), required=True)
    arguments = parser.parse_args(argv)
    run_dir = RunDir(arguments.run_dir)
    environment = Environment("single", 0, 1, 0, 1, 1)
    disable_progress_bar()  # a log of many ranks is no terminal
    try:
        environment = read_environment(os.environ)
        run_rank(run_dir, arguments.role, environment, make_optimizer)
    except Exception as error:  # whatever it is, the run folder must say so
        _report(error, run_dir, arguments.role, environment)
        return error.exit_code if isinstance(error, KdLaunchError) else 1
    return 0


def _report(error: Exception, run_dir: RunDir, role: Role, environment: Environment) -> None:
    if isinstance(error, KdLaunchError):
        sys.stderr.write(f"error: {error}\n")
    else:
        traceback.print_exc()
    try:
        record_failure(run_dir, environment.attempt, role, environment.rank, error)
    except OSError as unwritable:
        sys.stderr.write(f"error: the failure record cannot be written: {unwritable}\n")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # Torch's destructors may wait for ranks that this failure has left hanging.
        os._exit(code)

"""What one rank does from its place in the world to the end of the run: it joins, works in its role, and leaves."""

import hashlib
import time
from dataclasses import dataclass

from transformers.utils.logging import disable_progress_bar

from kd_launch.plan import Role, RunPlan
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.colocated import ColocatedTeacher, PayloadSource, RemoteTeacher
from kd_launch.runtime.departure import Departure
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.losses import Head
from kd_launch.runtime.metrics import MetricsFile
from kd_launch.runtime.models import DTYPES, load_head
from kd_launch.runtime.optimizer import MakeOptimizer, make_adamw
from kd_launch.runtime.parallel import load_student
from kd_launch.runtime.payload import PayloadForm
from kd_launch.runtime.pipeline import teach
from kd_launch.runtime.preflight import Preflight
from kd_launch.runtime.student import Trainer, finish
from kd_launch.runtime.teacher import load_frozen_teacher, objective, payload_form
from kd_launch.runtime.world import World, agree, join, leave


@dataclass(frozen=True)
class Task:
    """One rank of a run."""

    run_dir: RunDir
    run: RunPlan
    place: Environment
    role: Role
    progress: Progress
    departure: Departure


def run_rank(task: Task, make_optimizer: MakeOptimizer | None = None) -> None:
    """Joins the world, does this rank's part of the run, and leaves."""
    run, run_dir, progress = task.run, task.run_dir, task.progress
    disable_progress_bar()  # a log of many ranks is no terminal
    progress.enter("joining")
    timeout = run.cluster.heartbeat_timeout_s
    preflight = Preflight(run_dir, task.place, run.layout, timeout, task.departure, progress)
    world = join(task.place, run, run_dir, task.role, preflight)
    batches = Batches(run, world.device)
    plan_sum = hashlib.sha256(run_dir.plan.read_bytes()).hexdigest()
    facts = {"attempt": task.place.attempt, "plan": plan_sum, "first checksum": batches.first_checksum()}
    agree(world, facts, progress)
    progress.enter("loading")
    form = payload_form(run, DTYPES[run.spec.teacher.dtype])
    if task.role is Role.TEACHER:
        _run_teacher(world, run, batches, form, progress)
    else:
        _run_student(world, task, batches, form, make_optimizer or make_adamw)
    leave(world, run_dir, progress)


def _run_teacher(world: World, run: RunPlan, batches: Batches, form: PayloadForm, progress: Progress) -> None:
    teacher = load_frozen_teacher(world, run, form)
    progress.total = batches.schedule.items_per_teacher
    progress.enter("training")
    teach(world, run, batches, teacher, form, progress)
    progress.enter("finishing")


def _run_student(
    world: World, task: Task, batches: Batches, form: PayloadForm, make_optimizer: MakeOptimizer
) -> None:  # fmt: skip
    run, run_dir, progress = task.run, task.run_dir, task.progress
    progress.total = run.spec.training.steps
    student = load_student(run, objective(run), world.student_mesh, world.device)
    source = _payload_source(world, run, batches, form)
    metrics = MetricsFile(run_dir.metrics) if world.is_first_student else None
    if world.is_first_student:
        write_json(run_dir.start_record(world.attempt), {"time": time.time(), "attempt": world.attempt})
    progress.enter("training")
    Trainer(world, run, batches, student, source, make_optimizer, progress).train(metrics)
    progress.enter("finishing")
    finish(world, run, run_dir, student, progress)
    if world.is_first_student:
        write_json(run_dir.done_record(world.attempt), {"time": time.time(), "step": run.spec.training.steps})


def _payload_source(world: World, run: RunPlan, batches: Batches, form: PayloadForm) -> PayloadSource:
    head: Head | None = load_head(run.spec.teacher, world.device) if form.kind == "hidden_states" else None
    if run.layout.colocated:
        return ColocatedTeacher(world, run, batches, load_frozen_teacher(world, run, form), form, head)
    return RemoteTeacher(world, run, batches, form, head)

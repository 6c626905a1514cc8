"""What one rank does from its place in the world to the end of the run: it joins, works in its role, and leaves."""

import hashlib
import time
from dataclasses import dataclass

from transformers.utils.logging import disable_progress_bar

from kd_launch.plan import Role, RunPlan
from kd_launch.run_dir import RunDir, write_json
from kd_launch.runtime.allocator import choose_allocation
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.checkpoint.choice import choose
from kd_launch.runtime.checkpoint.manifest import TENSORS
from kd_launch.runtime.checkpoint.saver import Saver, Storage
from kd_launch.runtime.checkpoint.state import read_state
from kd_launch.runtime.checkpoint.tensors import Copies, TrainState
from kd_launch.runtime.colocated import ColocatedTeacher, PayloadSource, RemoteTeacher
from kd_launch.runtime.departure import Departure, grace_seconds
from kd_launch.runtime.devices import choose_queues
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.gate import Gate
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.losses import Head
from kd_launch.runtime.meeting import read_address
from kd_launch.runtime.metrics import MetricsFile
from kd_launch.runtime.models import DTYPES, load_head
from kd_launch.runtime.optimizer import MakeOptimizer, make_adamw
from kd_launch.runtime.parallel import load_student
from kd_launch.runtime.parting import Parting
from kd_launch.runtime.payload import PayloadForm
from kd_launch.runtime.pieces import chunk_range
from kd_launch.runtime.pipeline import teach
from kd_launch.runtime.preflight import Preflight
from kd_launch.runtime.products import choose_products
from kd_launch.runtime.record import Recorder
from kd_launch.runtime.room import write_patiently
from kd_launch.runtime.shared_head import SharedHead
from kd_launch.runtime.student import Learner, Trainer, finish
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
    choose_allocation(run.layout, task.role)
    choose_products()
    choose_queues()
    disable_progress_bar()  # a log of many ranks is no terminal
    progress.enter("joining")
    timeout = run.cluster.heartbeat_timeout_s
    preflight = Preflight(run_dir, task.place, run.layout, timeout, task.departure, progress)
    world = join(task.place, run, run_dir, task.role, preflight)
    if run.probe is not None:
        _run_probe(world, task)
        return
    batches = Batches(run, world.device)
    plan_sum = hashlib.sha256(run_dir.plan.read_bytes()).hexdigest()
    begin = _begin(world, task)
    facts = {"attempt": task.place.attempt, "plan": plan_sum, "first checksum": batches.first_checksum()}
    said = agree(world, facts if begin is None else {**facts, "step": begin}, progress)
    begin = int(str(said["step"]))
    progress.enter("loading")
    form = payload_form(run, DTYPES[run.spec.teacher.dtype])
    parting = _part_together(world, task)
    if task.role is Role.TEACHER:
        _run_teacher(world, run, batches, form, progress, begin)
    else:
        _run_student(world, task, batches, form, make_optimizer or make_adamw, begin, parting)
    leave(world, run_dir, progress, lambda: parting.nobody_stops_any_more(world.store))


def _run_probe(world: World, task: Task) -> None:
    """Measures in place of training; the first student says that it is done."""
    from kd_launch.runtime.probe import measure  # not above: no other run needs it

    task.progress.enter("training")
    measure(world, task.run, task.run_dir)
    task.progress.enter("finishing")
    if world.is_first_student:
        write_json(task.run_dir.done_record(world.attempt), {"time": time.time(), "step": 0})
    leave(world, task.run_dir, task.progress, lambda: None)


def _begin(world: World, task: Task) -> int | None:
    """The step that this attempt goes on from, as the students find it; None on a teacher, which is told."""
    if task.role is Role.TEACHER:
        return None
    assert world.checkpoint_group is not None
    return choose(task.run_dir, world.attempt, world.role_rank, world.checkpoint_group, task.progress)


def _part_together(world: World, task: Task) -> Parting:
    """From now on all ranks leave together: what one is told, all hear."""
    address = read_address(task.run_dir, world.attempt)
    assert address is not None, "the ranks have met"
    parting = Parting(address, world.parting_group)
    departure, place = task.departure, task.place
    departure.part_by(parting, grace_seconds(place.launcher, task.run.cluster.signal_before_end_s))

    def heed() -> None:
        word = parting.wait_for_stop()
        if word is not None:
            departure.follow(word)

    departure.start("stop", heed)
    return parting


def _run_teacher(
    world: World, run: RunPlan, batches: Batches, form: PayloadForm, progress: Progress, begin: int
) -> None:  # fmt: skip
    teacher = load_frozen_teacher(world, run, form)
    progress.total = batches.schedule.items_per_teacher
    progress.enter("training")
    teach(world, run, batches, teacher, form, progress, begin)
    progress.enter("finishing")


def _run_student(
    world: World, task: Task, batches: Batches, form: PayloadForm, make_optimizer: MakeOptimizer, begin: int,
    parting: Parting,
) -> None:  # fmt: skip
    run, run_dir, progress = task.run, task.run_dir, task.progress
    progress.total, progress.done = run.spec.training.steps, begin
    metrics = MetricsFile(run_dir.metrics) if world.is_first_student else None
    saved = read_state(run_dir.checkpoint(begin), run) if begin else None
    learner = _learner(world, task, make_optimizer, metrics, begin)
    recorder = Recorder(run, world.attempt, world.device, saved)
    source = _payload_source(world, run, batches, form, begin)
    trainer = Trainer(world, run, batches, learner, source, progress, recorder)
    if world.is_first_student:
        write_json(run_dir.start_record(world.attempt), {"time": time.time(), "attempt": world.attempt, "step": begin})
    parting.keep(learner.gate, learner.saver, trainer.state)
    progress.enter("training")
    trainer.train(metrics)
    trainer.save_last()
    progress.enter("finishing")
    if world.is_first_student:
        parting.nothing_is_left_to_save()
    finish(world, run, run_dir, learner.student, progress)
    if metrics is not None:
        write_patiently(run_dir.metrics, metrics.sync, progress)  # its last lines may wait for room
        record = run_dir.done_record(world.attempt)
        done = {"time": time.time(), "step": run.spec.training.steps}
        write_patiently(record, lambda: write_json(record, done), progress)


def _learner(
    world: World, task: Task, make_optimizer: MakeOptimizer, metrics: MetricsFile | None, begin: int
) -> Learner:  # fmt: skip
    """The student as this attempt finds it."""
    run, run_dir = task.run, task.run_dir
    student = load_student(run, objective(run), world.student_mesh, world.device)
    optimizer = make_optimizer(student, run.spec.training)
    state = TrainState(student, optimizer)
    group = world.checkpoint_group
    assert group is not None
    if begin:
        state.load(run_dir.checkpoint(begin) / TENSORS, group)
    storage = Storage(run_dir, world.attempt, run.spec.checkpoint.keep, world.role_rank, group)
    before_naming = (lambda: None) if metrics is None else metrics.sync
    return Learner(student, optimizer, Saver(storage, state, Copies(world.device), begin, before_naming), Gate(begin))


def _payload_source(world: World, run: RunPlan, batches: Batches, form: PayloadForm, begin: int) -> PayloadSource:
    head = _teacher_head(world, run, form)
    if run.layout.colocated:
        return ColocatedTeacher(world, run, batches, load_frozen_teacher(world, run, form), form, head)
    return RemoteTeacher(world, run, batches, form, head, begin)


def _teacher_head(world: World, run: RunPlan, form: PayloadForm) -> Head | SharedHead | None:
    """What turns the payloads of this student into logits; None where they are more than hidden states."""
    teacher, shards = run.spec.teacher, run.layout.student.head_shards
    if form.kind != "hidden_states":
        return None
    if shards == 1:
        return load_head(teacher, world.device)
    group = world.student_mesh.get_group("shard")
    part = load_head(teacher, world.device, chunk_range(form.vocabulary, group.rank(), shards))
    return SharedHead(part, form.vocabulary, group)

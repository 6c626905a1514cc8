"""A Choice as a Layout: every figure that the cost model predicts for it."""

from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import (
    Memory,
    Parts,
    student_buffer_bytes,
    student_memory,
    teacher_buffer_bytes,
    teacher_memory,
)
from kd_launch.cost.setting import StudentDegrees
from kd_launch.plan import Interval, Layout, RoleLayout
from kd_launch.planner.choices import Choice
from kd_launch.planner.layouts import Share
from kd_launch.planner.options import family
from kd_launch.planner.tables import Tables

CONTEXT = "context"
BUFFERS = "payload buffers"


def layout_of(tables: Tables, choice: Choice, parts: Parts | None = None) -> Layout:
    """The choice in the plan's words. parts: bytes of a GPU with both roles, where they are not the usual ones."""
    if parts is None and choice.allocation.placement == "colocated":
        parts = _colocated_parts(tables, choice)
    teacher = _role(tables, choice, choice.allocation.teacher, parts or _teacher_parts(tables, choice))
    student = _role(tables, choice, choice.allocation.student, parts or _student_parts(tables, choice))
    copies = choice.allocation.teacher.gpus // choice.teacher.degrees.gpus
    return _layout(
        tables,
        choice,
        teacher.model_copy(update={"replicas": copies, **choice.teacher.degrees._asdict()}),
        student.model_copy(update=_student_axes(choice.student.degrees)),
    )


def _student_axes(degrees: StudentDegrees) -> dict[str, object]:
    return {
        "replicas": degrees.replicas,
        "fsdp": degrees.fsdp,
        "reshard_after_forward": degrees.reshard,
        "activation_recompute": "full" if degrees.recompute else "none",
        "head_shards": degrees.head_shards,
    }


def _role(tables: Tables, choice: Choice, share: Share, parts: Parts) -> RoleLayout:
    """One role on its GPUs, its axes still to be said."""
    site = tables.sites[share.pool]
    shown = {name: size / GIB for name, size in parts.items() if size > 0}
    return RoleLayout(
        pool=share.pool,
        partition=site.pool.partition,
        nodes=share.nodes,
        gpus_per_node=share.per_node,
        gpus=share.gpus,
        replicas=1,
        fsdp=1,
        micro_batch_size=choice.unit.size,
        memory_gib=sum(shown.values()),
        memory_limit_gib=site.memory_limit_gib,
        memory_parts_gib=shown,
    )


def _layout(tables: Tables, choice: Choice, teacher: RoleLayout, student: RoleLayout) -> Layout:
    training, allocation = tables.spec.training, choice.allocation
    time = tables.setting.constants.time
    times = {"teacher": choice.teacher.seconds, "student": choice.student.seconds, "transport": choice.transport}
    samples_per_second = training.global_batch_size / choice.seconds
    return Layout(
        placement=allocation.placement,
        launch=allocation.launch,
        shares_nodes=allocation.shares_nodes,
        teacher=teacher,
        student=student,
        payload=choice.unit.payload,
        payload_bytes_per_token=tables.setting.payload_bytes_per_token(choice.unit.payload),
        prefetch=choice.prefetch,
        nodes=allocation.nodes,
        gpus=allocation.gpus,
        global_batch_size=training.global_batch_size,
        grad_accumulation_steps=tables.items(choice.unit) // allocation.student.gpus,
        step_seconds=Interval(p10=time.p10 * choice.seconds, p50=choice.seconds, p90=time.p90 * choice.seconds),
        samples_per_second=samples_per_second,
        tokens_per_second=samples_per_second * tables.setting.sequence_length,
        gpu_hours=choice.gpu_seconds * training.steps / 3600,
        gpus_idle=choice.allocated - allocation.gpus,
        teacher_seconds=times["teacher"],
        student_seconds=times["student"],
        transport_seconds=times["transport"],
        limited_by=max(times, key=lambda part: times[part]),
    )


def context_part(tables: Tables, share: Share) -> Parts:
    """What a process takes before any tensor."""
    return {CONTEXT: tables.sites[share.pool].context_gib * GIB}


def _teacher_parts(tables: Tables, choice: Choice) -> Parts:
    setting, tokens, degrees = tables.setting, tables.tokens(choice.unit), choice.teacher.degrees
    memory = teacher_memory(setting, degrees, tokens)
    buffers = choice.prefetch * teacher_buffer_bytes(setting, degrees, tokens, choice.unit.payload)
    return {**memory.resident, **memory.transient, BUFFERS: buffers, **context_part(tables, choice.allocation.teacher)}


def _student_parts(tables: Tables, choice: Choice) -> Parts:
    memory = _student_memory(tables, choice, holds_head=True)
    buffers = choice.prefetch * student_buffer_bytes(tables.setting, tables.tokens(choice.unit), choice.unit.payload)
    return {**memory.resident, **memory.transient, BUFFERS: buffers, **context_part(tables, choice.allocation.student)}


def _student_memory(tables: Tables, choice: Choice, *, holds_head: bool) -> Memory:
    share = choice.allocation.student
    return student_memory(
        tables.setting,
        tables.sites[share.pool],
        choice.student.degrees,
        tables.tokens(choice.unit),
        choice.unit.payload,
        holds_head=holds_head,
    )


def _colocated_parts(tables: Tables, choice: Choice) -> Parts:
    """Of a GPU with both roles: of the transients, only those of the role that has more."""
    teacher = teacher_memory(tables.setting, choice.teacher.degrees, tables.tokens(choice.unit))
    student = _student_memory(tables, choice, holds_head=any(family(choice.teacher.degrees)))
    larger = teacher if sum(teacher.transient.values()) > sum(student.transient.values()) else student
    return {
        "teacher weights": teacher.resident["weights"],
        **student.resident,
        **larger.transient,
        BUFFERS: student_buffer_bytes(tables.setting, tables.tokens(choice.unit), choice.unit.payload),
        **context_part(tables, choice.allocation.student),
    }

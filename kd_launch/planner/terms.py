"""Where the seconds of a layout's step go, term by term, from the cost model."""

from collections.abc import Mapping
from typing import NamedTuple

from kd_launch.cluster import Cluster
from kd_launch.cost.roles import StudentSeconds, student_seconds
from kd_launch.cost.setting import StudentDegrees, TeacherDegrees
from kd_launch.plan import Layout
from kd_launch.planner.allocations import Allocation, allocation_of
from kd_launch.planner.crowding import crowded_seconds
from kd_launch.planner.options import Unit
from kd_launch.planner.pairing import coupling_seconds
from kd_launch.planner.tables import Tables

TEACHER_COMPUTE = "teacher: compute"
COMMUNICATION = "student: communication that compute does not hide"
TRANSPORT = "transport: payloads on their way"
COUPLING = "student: asking for payloads"
CROWDING = "student: waiting for cores that ranks share"


class Case(NamedTuple):
    """A layout with what the cost model needs to look at it again."""

    tables: Tables
    layout: Layout
    allocation: Allocation
    unit: Unit
    teacher: TeacherDegrees
    student: StudentDegrees

    @property
    def turns(self) -> int:
        """Micro-batches of a student rank in a step."""
        return self.layout.grad_accumulation_steps

    def with_size(self, size: int) -> "Case":
        """With another micro-batch."""
        turns = self.layout.global_batch_size // (size * self.layout.student.gpus)
        layout = self.layout.model_copy(update={"grad_accumulation_steps": turns})
        return self._replace(unit=self.unit._replace(size=size), layout=layout)


def case_of(tables: Tables, cluster: Cluster, layout: Layout) -> Case:
    teacher, student = layout.teacher, layout.student
    return Case(
        tables=tables,
        layout=layout,
        allocation=allocation_of(layout, cluster),
        unit=Unit(student.micro_batch_size, layout.payload),
        teacher=TeacherDegrees(teacher.fsdp, teacher.tp, teacher.pp),
        student=StudentDegrees(
            student.replicas,
            student.fsdp,
            student.activation_recompute == "full",
            student.reshard_after_forward,
            student.head_shards,
        ),
    )


def terms_of(case: Case) -> dict[str, float]:
    """Seconds of a step; those of one role add up to the role's."""
    found = {**teacher_terms(case), **_student_terms(case)}
    found[CROWDING] = _crowding(case, found)
    if not case.layout.colocated:
        found[TRANSPORT] = case.layout.transport_seconds
        found[COUPLING] = coupling_seconds(case.tables, case.allocation.student, case.unit)
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def _crowding(case: Case, terms: Mapping[str, float]) -> float:
    """What a step takes longer because ranks share CPU cores."""
    teacher, student = (
        sum(seconds for name, seconds in terms.items() if name.startswith(role)) for role in ("teacher", "student")
    )
    transport = case.layout.transport_seconds
    alone = teacher + student if case.layout.colocated else max(teacher, student, transport)
    return max(0.0, crowded_seconds(case.tables.sites, case.allocation, teacher, student, transport) - alone)


def teacher_terms(case: Case) -> dict[str, float]:
    """What an undivided teacher would compute, and what its split adds."""
    tables, share, degrees = case.tables, case.allocation.teacher, case.teacher
    total = tables.teacher(share, degrees, case.unit, colocated=case.layout.colocated).seconds
    compute = tables.items(case.unit) * tables.least_teacher_seconds(share.pool, case.unit) / share.gpus
    return {TEACHER_COMPUTE: compute, split_term(degrees): total - compute}


def split_term(degrees: TeacherDegrees) -> str:
    """What a split adds, in words."""
    adds = (
        (degrees.fsdp, "gathers of its weights"),
        (degrees.tp, "all-reduces and smaller products"),
        (degrees.pp, "stages that wait"),
    )
    return f"teacher: {', '.join(words for degree, words in adds if degree > 1) or 'nothing more'}"


def student_step(case: Case) -> StudentSeconds:
    """The student's optimizer step."""
    tables, share = case.tables, case.allocation.student
    site, tokens = tables.sites[share.pool], tables.tokens(case.unit)
    return student_seconds(tables.setting, site, case.student, share.block, tokens, case.turns, case.unit.payload)


def _student_terms(case: Case) -> dict[str, float]:
    step = student_step(case)
    again = " with the forward again" if case.student.recompute else ""
    return {
        "student: forward": step.forward,
        f"student: backward{again}": step.backward,
        "student: loss": step.loss,
        COMMUNICATION: step.communication,
        "student: update and overhead": step.optimizer,
    }

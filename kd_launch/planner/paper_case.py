"""The layouts of arXiv 2606.27797 on all GPUs of a pool: teacher and student colocated, each split its own way.

"(2-3)" is a student under ZeRO-2 with a teacher under ZeRO-3; "(2-TP)" one with a tensor-parallel teacher. TRL itself
shards the teacher as the student and keeps a float32 copy of it. Engines: ours, whose loss is computed in chunks, or
DeepSpeed under TRL, whose factors engines.yaml documents and whose loss holds whole logits.
"""

from dataclasses import replace
from typing import NamedTuple

from kd_launch.catalog import find_engine
from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import Parts, student_buffer_bytes, student_memory, teacher_memory
from kd_launch.cost.roles import student_seconds, teacher_seconds
from kd_launch.cost.setting import Setting, StudentDegrees, TeacherDegrees
from kd_launch.plan import PaperLayout
from kd_launch.planner.baseline import trl_parts
from kd_launch.planner.layouts import Share, divisors, micro_batches
from kd_launch.planner.options import Unit
from kd_launch.planner.prediction import context_part
from kd_launch.planner.tables import Tables

OURS = "kd-launch"
DEEPSPEED = "trl-deepspeed"


class _Ways(NamedTuple):
    name: str
    teacher: TeacherDegrees
    student: StudentDegrees
    has_copy: bool


def paper_case(tables: Tables, share: Share, engine: str = OURS) -> list[PaperLayout]:
    """Each layout with its largest micro-batch; without tensor parallelism where the teacher has no plan for it."""
    sizes = micro_batches(tables.spec, share.gpus)
    found = []
    for ways in _ways(tables, share):
        rising = [_case(tables, share, ways, size, engine) for size in sizes]
        found.append(next((case for case in reversed(rising) if case.fits), rising[0]))
    return found


def case_at(tables: Tables, share: Share, size: int, engine: str = OURS) -> list[PaperLayout]:
    """Each layout with one micro-batch."""
    return [_case(tables, share, ways, size, engine) for ways in _ways(tables, share)]


def _ways(tables: Tables, share: Share) -> list[_Ways]:
    gpus = share.gpus
    two, three = (StudentDegrees(1, gpus, False, reshard) for reshard in (False, True))
    whole, sharded = TeacherDegrees(1, 1, 1), TeacherDegrees(gpus, 1, 1)
    found = [
        _Ways("TRL (2)", whole, two, has_copy=True),
        _Ways("TRL (3)", sharded, three, has_copy=True),
        _Ways("(2-0)", whole, two, has_copy=False),
        _Ways("(2-3)", sharded, two, has_copy=False),
        _Ways("(3-3)", sharded, three, has_copy=False),
    ]
    tps = [tp for tp in divisors(share.block) if tp > 1 and tables.setting.teacher.legal_tp(tp)]
    return found + [_Ways("(2-TP)", TeacherDegrees(1, tp, 1), two, has_copy=False) for tp in tps[-1:]]


def _case(tables: Tables, share: Share, ways: _Ways, size: int, engine: str) -> PaperLayout:
    unit = Unit(size, "logits")
    site, turns = tables.sites[share.pool], tables.items(unit) // share.gpus
    parts = _parts(tables, share, ways, unit, engine)
    used = sum(parts.values()) / GIB
    seconds = turns * _forward(tables, share, ways.teacher, unit, engine)
    seconds += student_seconds(
        _setting(tables, engine), site, ways.student, share.block, tables.tokens(unit), turns, unit.payload
    ).total
    batch = tables.spec.training.global_batch_size
    return PaperLayout(
        name=ways.name,
        engine=engine,
        micro_batch_size=size,
        step_seconds=seconds,
        samples_per_second=batch / seconds,
        memory_gib=used,
        fits=used <= site.memory_limit_gib,
    )


def _setting(tables: Tables, engine: str) -> Setting:
    return tables.setting if engine == OURS else replace(tables.setting, engine=find_engine(engine))


def _forward(tables: Tables, share: Share, teacher: TeacherDegrees, unit: Unit, engine: str) -> float:
    """Of one turn of every rank. In the paper tensor-parallel ranks work on all their samples in one forward; ours
    take one rank's micro-batch after the other."""
    setting, site, tokens = _setting(tables, engine), tables.sites[share.pool], tables.tokens(unit)
    if engine == OURS:
        each = teacher_seconds(setting, site, teacher, share.block, tokens, unit.payload).each
        return teacher.sender_gpus * each
    return teacher_seconds(setting, site, teacher, share.block, teacher.sender_gpus * tokens, unit.payload).each


def _parts(tables: Tables, share: Share, ways: _Ways, unit: Unit, engine: str) -> Parts:
    """Bytes of a rank."""
    if engine == DEEPSPEED or ways.has_copy:
        return trl_parts(tables, share, ways.teacher, ways.student, unit, has_copy=ways.has_copy)
    setting, site, tokens = tables.setting, tables.sites[share.pool], tables.tokens(unit)
    frozen = teacher_memory(setting, ways.teacher, tokens)
    trained = student_memory(setting, site, ways.student, tokens, unit.payload, holds_head=False)
    larger = max(frozen.transient, trained.transient, key=lambda parts: sum(parts.values()))
    payload = {"payload buffers": student_buffer_bytes(setting, tokens, unit.payload)}
    return {
        "teacher weights": frozen.resident["weights"],
        **trained.resident,
        **larger,
        **payload,
        **context_part(tables, share),
    }

"""Seconds of each role: one micro-batch of a teacher, one optimizer step of a student."""

import functools
import math
from typing import NamedTuple

from kd_launch.cost.collectives import Collective, Group
from kd_launch.cost.compute import (
    Device,
    LayerSeconds,
    beside_host,
    floors,
    forward_bytes,
    gradient_sum_seconds,
    head_seconds,
    layer_seconds,
    loss_chunk_rows,
    loss_seconds,
    most_loss_rows,
    passes_of,
)
from kd_launch.cost.constants import GB, MIB, MICRO
from kd_launch.cost.setting import Setting, Site, StudentDegrees, TeacherDegrees
from kd_launch.cost.trained import Recompute, Split
from kd_launch.cost.training import exposed, pass_seconds, shard_group, step_seconds
from kd_launch.plan import Payload


class TeacherSeconds(NamedTuple):
    """Of one sender: `each` micro-batch once its pipeline is full, and the time to fill it."""

    each: float
    fill: float


class StudentSeconds(NamedTuple):
    """Of one optimizer step on one rank."""

    forward: float
    backward: float
    loss: float
    communication: float
    """What does not hide behind compute."""
    optimizer: float
    """With the step's fixed overhead."""

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.loss + self.communication + self.optimizer


def teacher_seconds(
    setting: Setting, site: Site, degrees: TeacherDegrees, block: int, tokens: float, payload: Payload
) -> TeacherSeconds:
    """One micro-batch of `tokens` tokens; every `block` ranks in order lie inside a node.

    tp ranks are neighbours, then fsdp ranks, and pipeline stages lie farthest apart.
    """
    layer = _teacher_layer(setting, site, degrees.fsdp, degrees.tp, block, tokens)
    head = 0.0 if payload == "hidden_states" else _teacher_head(setting, site, degrees.tp, tokens)
    root = _teacher_root(setting, site, degrees, block)
    layers = setting.teacher.layers
    if degrees.pp == 1:
        return TeacherSeconds(layers * layer + head + root, 0.0)
    hop = site.fabric.message_seconds(
        setting.teacher_width * tokens * setting.teacher.hidden / degrees.tp,
        between_nodes=degrees.gpus > block,
        senders_per_node=min(block, degrees.tp * degrees.fsdp),
    )
    # the last stage has the head, and the fewest layers where they do not divide
    stage = max(-(-layers // degrees.pp) * layer, layers // degrees.pp * layer + head) + root + hop
    return TeacherSeconds(stage, (degrees.pp - 1) * stage)


@functools.lru_cache(maxsize=65536)
def _teacher_layer(setting: Setting, site: Site, fsdp: int, tp: int, block: int, tokens: float) -> float:
    """One layer with its all-reduces (tp) and the all-gather of its weights (fsdp)."""
    device, fabric, engine = site.teacher_device, site.fabric, site.engine(setting.engine)
    assert device is not None
    floor, _ = floors(engine, device, compiled=setting.compiled)
    sequence = min(setting.sequence_length, int(tokens))
    work = _layer(setting, device, tokens, sequence, tp)
    seconds = engine.teacher_factor * beside_host(device, work.forward, floor)
    if tp > 1:
        size = device.width * tokens * setting.teacher.hidden
        around = MICRO * setting.constants.links.cpu_stop_us if site.pool.is_cpu else 0.0
        seconds += 2 * (fabric.stop_seconds(size, Group(tp, min(tp, block))) + around)
    if fsdp > 1:
        matrix = setting.teacher.hidden * setting.teacher.intermediate
        gather = _teacher_gather(setting, site, fsdp, tp, block, setting.teacher_sizes.layer, matrix)
        seconds += exposed(gather, seconds, site.hiding(engine), engine.contention)
        seconds += fault_seconds(setting, site, forward_bytes(device, setting.teacher, tokens, tp))
    return seconds


@functools.lru_cache(maxsize=4096)
def _teacher_head(setting: Setting, site: Site, tp: int, tokens: float) -> float:
    assert site.teacher_device is not None
    teacher = setting.teacher
    seconds = head_seconds(site.teacher_device, tokens, teacher.vocabulary / tp, teacher.hidden)
    return site.engine(setting.engine).teacher_factor * seconds


def _teacher_root(setting: Setting, site: Site, degrees: TeacherDegrees, block: int) -> float:
    """All-gather of embedding and head, which nothing hides."""
    if degrees.fsdp == 1:
        return 0.0
    sizes = setting.teacher_sizes
    parameters = sizes.root if degrees.pp == 1 else sizes.head
    matrix = setting.teacher.hidden * setting.teacher.vocabulary
    return _teacher_gather(setting, site, degrees.fsdp, degrees.tp, block, parameters, matrix)


@functools.lru_cache(maxsize=65536)
def _teacher_gather(
    setting: Setting, site: Site, fsdp: int, tp: int, block: int, parameters: int, matrix: int
) -> float:  # fmt: skip
    """All-gather of `parameters` parameters, which lie in matrices of `matrix`."""
    inside = max(1, min(fsdp, block // tp))
    group = Group(fsdp, inside, peers=max(1, block // inside))
    size = setting.teacher_width * parameters / tp
    seconds = setting.engine.gather_factor * site.fabric.seconds(Collective.ALL_GATHER, size, group)
    if not site.pool.is_cpu:
        return seconds
    assert site.teacher_device is not None
    seconds += setting.constants.links.cpu_copies * size / site.teacher_device.bytes_per_s
    huge = MIB * setting.constants.links.cpu_huge_page_mib
    weights = size * min(1.0, huge * tp / max(1, setting.teacher_width * matrix))
    return seconds + fault_seconds(setting, site, weights + min(size, huge))  # and the collective's buffer


def columns_seconds(
    setting: Setting, site: Site, degrees: TeacherDegrees, block: int, tokens: int, payload: Payload
) -> float:  # fmt: skip
    """Of a colocated micro-batch whose logits lie over tensor-parallel ranks: they are padded, gathered on the one that
    trains on them, and put side by side (runtime/colocated.py)."""
    if payload != "logits" or degrees.tp == 1:
        return 0.0
    assert site.teacher_device is not None
    size = tokens * setting.payload_bytes_per_token(payload)
    gather = site.fabric.seconds(Collective.ALL_GATHER, size, Group(degrees.tp, min(degrees.tp, block)))
    return gather + 2 * (1 + 1 / degrees.tp) * size / site.teacher_device.bytes_per_s


def student_fault_seconds(setting: Setting, site: Site, degrees: TeacherDegrees, tokens: int) -> float:
    """What a micro-batch of the student takes longer in the process of such a teacher; 0 where it has its own."""
    device = site.student_device
    if degrees.fsdp == 1 or not site.pool.is_cpu or device is None:
        return 0.0
    layers = setting.student.layers * forward_bytes(device, setting.student, tokens)
    loss = setting.loss_traffic / 2 * tokens * setting.vocabulary  # half of it is read
    return fault_seconds(setting, site, 3 * layers + loss)  # in the backward twice as much as in the forward


def fault_seconds(setting: Setting, site: Site, size: float) -> float:
    """For `size` bytes in small pages on a CPU rank that gathers the teacher: it keeps no freed memory
    (runtime/allocator.py), so that each page is had from the kernel anew. Huge pages cost next to nothing; of a tensor
    about one huge page's size lies outside of them."""
    if not site.pool.is_cpu:
        return 0.0
    return site.fresh_memory_factor * size / (GB * setting.constants.links.cpu_fault_gb_per_s)


@functools.lru_cache(maxsize=4096)
def _layer(setting: Setting, device: Device, tokens: float, sequence: int, tp: int) -> LayerSeconds:
    return layer_seconds(
        device,
        setting.teacher,
        tokens,
        sequence,
        tp,
        attention=setting.attention,
        attention_speed=setting.engine.attention_speed,
        passes=passes_of(setting.engine, device, compiled=setting.compiled),
        splits_sequence=False,
    )


def student_seconds(
    setting: Setting,
    site: Site,
    degrees: StudentDegrees,
    block: int,
    tokens: int,
    accumulation: int,
    payload: Payload,
) -> StudentSeconds:
    """One optimizer step of `accumulation` micro-batches of `tokens` tokens per rank."""
    trained, split = setting.trained(site), student_split(degrees, block)
    loss = _student_loss(setting, site, tokens, payload)
    layer = pass_seconds(trained, split, tokens)
    step = step_seconds(trained, split, tokens, accumulation, loss)
    layers = accumulation * setting.student.layers
    sums = _gradient_sums(setting, trained.device, degrees, accumulation)
    return StudentSeconds(
        forward=layers * layer.forward,
        backward=layers * layer.backward + trained.engine.compute_factor * sums,
        loss=accumulation * loss,
        communication=step.data_parallel + accumulation * _exchange_seconds(setting, site, degrees, block, tokens),
        optimizer=step.optimizer + step.overhead,
    )


def _exchange_seconds(setting: Setting, site: Site, degrees: StudentDegrees, block: int, tokens: int) -> float:
    """Of a micro-batch whose teacher logits the ranks that share the head compute together: their hidden states go to
    all, the logits come back. Nothing hides them (runtime/shared_head.py)."""
    ranks = degrees.head_shards
    if ranks == 1:
        return 0.0
    group = shard_group(student_split(degrees, block))
    chunks = math.ceil(tokens / most_loss_rows(tokens, setting.vocabulary, site.loss_chunk_mib))
    each = setting.teacher_width * tokens / chunks
    asked = site.fabric.seconds(Collective.ALL_GATHER, ranks * each * setting.teacher.hidden, group)
    answered = site.fabric.seconds(Collective.ALL_GATHER, each * setting.vocabulary, group)
    return chunks * (asked + answered)


def _gradient_sums(setting: Setting, device: Device, degrees: StudentDegrees, accumulation: int) -> float:
    """With shards, a micro-batch's gradients are reduced before they are added."""
    student = setting.student
    local = setting.student_sizes.all / degrees.fsdp
    # One rank adds some rows to a tied head's gradient (runtime/parallel.py).
    bare = student.tied and degrees.replicas * degrees.fsdp == 1 and setting.student_dtype == "float32"
    rows = 0 if bare else student.vocabulary
    return gradient_sum_seconds(device, local, rows, student.hidden, accumulation, tied=student.tied)


def student_split(degrees: StudentDegrees, block: int) -> Split:
    """The student's layout in the words of the training formulas: weights that stay gathered are ZeRO-2's."""
    stage = 0 if degrees.fsdp == 1 else 3 if degrees.reshard else 2
    recompute: Recompute = "full" if degrees.recompute else "none"
    return Split(degrees.replicas, degrees.fsdp, stage, recompute=recompute, block=block)


@functools.lru_cache(maxsize=4096)
def _student_loss(setting: Setting, site: Site, tokens: int, payload: Payload) -> float:
    assert site.student_device is not None
    seconds = loss_seconds(
        site.student_device,
        tokens,
        loss_chunk_rows(tokens, setting.vocabulary, site.loss_chunk_mib),
        setting.vocabulary,
        setting.student.hidden,
        setting.teacher.hidden if payload == "hidden_states" else None,
        setting.loss_traffic,
    )
    return setting.engine.compute_factor * site.loss_factor * seconds

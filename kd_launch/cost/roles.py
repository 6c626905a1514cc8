"""Seconds of each role: one micro-batch of a teacher, one optimizer step of a student."""

import functools
from typing import NamedTuple

from kd_launch.architecture import Architecture
from kd_launch.cost.collectives import Collective, Fabric, Group
from kd_launch.cost.compute import (
    Device,
    LayerSeconds,
    floors,
    head_seconds,
    layer_seconds,
    loss_chunk_rows,
    loss_seconds,
    optimizer_seconds,
)
from kd_launch.cost.setting import Setting, Site, StudentDegrees, TeacherDegrees
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


def exposed(communication: float, compute: float, hiding: float) -> float:
    """Seconds of communication that do not hide behind the share `hiding` of the same layer's compute."""
    return max(0.0, communication - hiding * compute)


def overlap(setting: Setting, site: Site) -> float:
    """Share of compute behind which communication can hide. On a CPU the same cores do both."""
    return 0.0 if site.pool.is_cpu else setting.engine.overlap


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
    device, fabric, engine = site.teacher_device, site.fabric, setting.engine
    assert device is not None
    floor, _ = floors(engine, compiled=setting.compiled)
    sequence = min(setting.sequence_length, int(tokens))
    seconds = engine.teacher_factor * _layer(device, setting.teacher, tokens, sequence, tp).forward(floor)
    if tp > 1:
        size = device.width * tokens * setting.teacher.hidden
        seconds += 2 * fabric.seconds(Collective.ALL_REDUCE, size, Group(tp, tp))
    if fsdp > 1:
        gather = _teacher_gather(setting, site, fsdp, tp, block, setting.teacher_sizes.layer)
        seconds += exposed(gather, seconds, overlap(setting, site))
    return seconds


@functools.lru_cache(maxsize=4096)
def _teacher_head(setting: Setting, site: Site, tp: int, tokens: float) -> float:
    assert site.teacher_device is not None
    teacher = setting.teacher
    seconds = head_seconds(site.teacher_device, tokens, teacher.vocabulary / tp, teacher.hidden)
    return setting.engine.teacher_factor * seconds


def _teacher_root(setting: Setting, site: Site, degrees: TeacherDegrees, block: int) -> float:
    """All-gather of embedding and head, which nothing hides."""
    if degrees.fsdp == 1:
        return 0.0
    sizes = setting.teacher_sizes
    parameters = sizes.root if degrees.pp == 1 else sizes.head
    return _teacher_gather(setting, site, degrees.fsdp, degrees.tp, block, parameters)


@functools.lru_cache(maxsize=65536)
def _teacher_gather(setting: Setting, site: Site, fsdp: int, tp: int, block: int, parameters: int) -> float:
    inside = max(1, min(fsdp, block // tp))
    group = Group(fsdp, inside, peers=max(1, block // inside))
    size = setting.teacher_width * parameters / tp
    return setting.engine.gather_factor * site.fabric.seconds(Collective.ALL_GATHER, size, group)


@functools.lru_cache(maxsize=4096)
def _layer(device: Device, model: Architecture, tokens: float, sequence: int, tp: int) -> LayerSeconds:
    return layer_seconds(device, model, tokens, sequence, tp)


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
    model, device, engine = setting.student, site.student_device, setting.engine
    assert device is not None
    floor_forward, floor_backward = floors(engine, compiled=setting.compiled)
    layer = _layer(device, model, tokens, min(setting.sequence_length, tokens), 1)
    forward = engine.compute_factor * layer.forward(floor_forward)
    backward = engine.compute_factor * layer.backward(floor_backward) + (forward if degrees.recompute else 0.0)
    loss = engine.compute_factor * loss_seconds(
        device,
        tokens,
        loss_chunk_rows(tokens, setting.vocabulary, site.loss_chunk_mib),
        setting.vocabulary,
        model.hidden,
        setting.teacher.hidden if payload == "hidden_states" else None,
        setting.loss_traffic,
    )
    optimizer = optimizer_seconds(device, setting.student_sizes.all / degrees.fsdp, engine)
    communication = _student_communication(setting, site, degrees, block, accumulation, forward, backward)
    compute = accumulation * (model.layers * (forward + backward) + loss)
    overhead = engine.step_overhead_s + engine.step_overhead_fraction * (compute + communication + optimizer)
    return StudentSeconds(
        forward=accumulation * model.layers * forward,
        backward=accumulation * model.layers * backward,
        loss=accumulation * loss,
        communication=communication,
        optimizer=optimizer + overhead,
    )


def _student_communication(
    setting: Setting,
    site: Site,
    degrees: StudentDegrees,
    block: int,
    accumulation: int,
    forward: float,
    backward: float,
) -> float:
    """Exposed seconds of a step.

    Weights are gathered in each micro-batch. So are sharded gradients reduced, since keeping whole ones would cost the
    memory that sharding saves; replicas alone reduce once, in the last backward.
    """
    layers, sizes, fabric, hidden = setting.student.layers, setting.student_sizes, site.fabric, overlap(setting, site)
    gather = _gather(setting, fabric, degrees, block, sizes.layer)
    again = gather if degrees.reshard else 0.0
    reduce = _reduce(setting, fabric, degrees, block, sizes.layer)
    each = layers * (exposed(gather, forward, hidden) + exposed(again, backward, hidden))
    each += _gather(setting, fabric, degrees, block, sizes.root)
    last = layers * (exposed(again + reduce, backward, hidden) - exposed(again, backward, hidden))
    reductions = accumulation if degrees.fsdp > 1 else 1
    return accumulation * each + reductions * (last + _reduce(setting, fabric, degrees, block, sizes.root))


def _gather(setting: Setting, fabric: Fabric, degrees: StudentDegrees, block: int, parameters: int) -> float:
    size = setting.student_width * parameters
    group = _shard_group(degrees, block)
    return setting.engine.gather_factor * fabric.seconds(Collective.ALL_GATHER, size, group)


def _reduce(setting: Setting, fabric: Fabric, degrees: StudentDegrees, block: int, parameters: int) -> float:
    """Float32 gradients: summed within the ranks that share a training state, then over the replicas."""
    size = setting.constants.memory.gradient_bytes * parameters
    shards = _shard_group(degrees, block)
    stride = min(degrees.fsdp, block)
    copies = Group(degrees.replicas, max(1, min(degrees.replicas, block // stride)), peers=stride)
    seconds = fabric.seconds(Collective.REDUCE_SCATTER, size, shards)
    seconds += fabric.seconds(Collective.ALL_REDUCE, size / degrees.fsdp, copies)
    return setting.engine.data_parallel_factor * seconds


def _shard_group(degrees: StudentDegrees, block: int) -> Group:
    inside = min(degrees.fsdp, block)
    return Group(degrees.fsdp, inside, peers=max(1, block // inside))

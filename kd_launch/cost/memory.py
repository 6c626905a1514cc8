"""Bytes that a rank holds: by role, by part, and split in what stays (resident) and what comes and goes (transient)."""

from typing import NamedTuple

from kd_launch.cost.activations import kept_by_modules
from kd_launch.cost.compute import most_loss_rows
from kd_launch.cost.setting import Setting, Site, StudentDegrees, TeacherDegrees
from kd_launch.cost.sizes import Sizes
from kd_launch.plan import Payload

Parts = dict[str, float]


class Memory(NamedTuple):
    """Bytes by part. Ranks of both roles hold both residents, but only one role's transients at a time."""

    resident: Parts
    transient: Parts

    @property
    def total(self) -> float:
        return sum(self.resident.values()) + sum(self.transient.values())


def teacher_memory(setting: Setting, degrees: TeacherDegrees, tokens: int) -> Memory:
    """The frozen teacher: its share of the weights, gathered units under fsdp, one layer's transients.

    A frozen root stays gathered through the forward, with two layers: one at work, one on its way.
    """
    model, sizes, width = setting.teacher, setting.teacher_sizes, setting.teacher_width
    weights = width * sizes.stage(degrees.pp) / (degrees.fsdp * degrees.tp)
    gathered = 0.0
    if degrees.fsdp > 1:
        root = sizes.root if degrees.pp == 1 else sizes.head
        gathered = width * (root + 2 * sizes.layer) / degrees.tp
    mlp = max(model.intermediate, model.experts_per_token * model.expert_intermediate)
    layer = width / 2 * tokens * (12 * model.hidden + 6 * mlp / degrees.tp)
    activations = setting.constants.memory.teacher_activations * layer + width * tokens * model.hidden
    return Memory({"weights": weights}, {"gathered weights": gathered, "activations": activations})


def teacher_buffer_bytes(setting: Setting, degrees: TeacherDegrees, tokens: int, payload: Payload) -> float:
    """Per micro-batch that the teacher may work ahead: the payload and the copy that is being sent, over tp stripes."""
    return 2 * tokens * setting.payload_bytes_per_token(payload) / degrees.tp


def student_buffer_bytes(setting: Setting, tokens: int, payload: Payload) -> float:
    """Per micro-batch that may arrive ahead."""
    return tokens * setting.payload_bytes_per_token(payload)


def student_memory(
    setting: Setting,
    site: Site,
    degrees: StudentDegrees,
    tokens: int,
    payload: Payload,
    *,
    holds_head: bool,
) -> Memory:
    """The trained student; `tokens` of one micro-batch.

    holds_head: it keeps a copy of the teacher's head to turn hidden states into logits (payload hidden_states only).
    """
    constants, model, width = setting.constants.memory, setting.student, setting.student_width
    resident = {
        "training state": (constants.optimizer_bytes + setting.engine.gradient_bytes)
        * setting.student_sizes.all
        / degrees.fsdp,
        "head gradient": _head_gradient_width(width) * setting.vocabulary * model.hidden,
    }
    if payload == "hidden_states" and holds_head:
        whole = float(setting.teacher_width * setting.vocabulary * setting.teacher.hidden)
        resident["teacher head"] = whole / degrees.head_shards
    return Memory(
        resident,
        {
            "gathered weights": float(width * _gathered_parameters(setting.student_sizes, degrees)),
            "activations": _activations(setting, degrees, tokens),
            "loss buffers": loss_buffer_bytes(setting, site, tokens) + _exchange_bytes(setting, site, degrees, tokens),
        },
    )


def _head_gradient_width(width: int) -> float:
    """The float32 sum over the chunks, and the product that is added to it, in compute dtype."""
    return 4.0 if width == 4 else 4.0 + width


def _gathered_parameters(sizes: Sizes, degrees: StudentDegrees) -> int:
    """In compute dtype: all of them, or, where they are freed after use, the root and two layers."""
    return sizes.root + 2 * sizes.layer if degrees.reshard else sizes.all


def _activations(setting: Setting, degrees: StudentDegrees, tokens: int) -> float:
    model, width = setting.student, setting.student_width
    layer = kept_by_modules(model, width, setting.sequence_length) * tokens
    outputs = 2.0 * width * tokens * model.hidden  # the last hidden states and their gradient
    if degrees.recompute:
        return model.layers * width * tokens * model.hidden + layer + outputs
    return model.layers * layer + outputs


def _exchange_bytes(setting: Setting, site: Site, degrees: StudentDegrees, tokens: int) -> float:
    """Of a head that is spread over ranks, for one chunk: the hidden states of all of them, the logits that this one
    computes for them, and those that it gets."""
    if degrees.head_shards == 1:
        return 0.0
    rows = most_loss_rows(tokens, setting.vocabulary, site.loss_chunk_mib)
    hidden = (degrees.head_shards + 1) * setting.teacher.hidden
    return setting.teacher_width * rows * (hidden + 2 * setting.vocabulary)


def loss_buffer_bytes(setting: Setting, site: Site, tokens: int) -> float:
    """Products of one chunk of rows, and float32 logits of its blocks; they do not grow with the tokens beyond it."""
    memory = setting.constants.memory
    chunk = most_loss_rows(tokens, setting.vocabulary, site.loss_chunk_mib)
    block = most_loss_rows(tokens, setting.vocabulary, site.loss_block_mib)
    per_entry = memory.loss_chunk_buffers * setting.student_width * chunk + memory.loss_block_buffers * 4.0 * block
    return per_entry * setting.vocabulary

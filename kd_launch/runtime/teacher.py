"""The teacher: a frozen model that turns micro-batches into payloads, whole on a rank or split over several."""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kd_launch.plan import RunPlan
from kd_launch.runtime.losses import Head, Objective
from kd_launch.runtime.models import head_of, head_rules, load_config, load_teacher
from kd_launch.runtime.parallel import MicroBatch, last_hidden_states
from kd_launch.runtime.payload import PayloadForm, make_payload
from kd_launch.runtime.stage import load_stage
from kd_launch.runtime.world import World


class Teacher(Protocol):
    """The part of a teacher that one rank has."""

    def payload(self, batch: MicroBatch, hidden: Tensor | None = None) -> list[Tensor]:
        """Of the last pipeline stage the tensors of a micro-batch's payload, else the activations for the next stage.

        Args:
            batch: on this rank's device.
            hidden: the activations of the stage before; None on the first.
        """
        ...

    def idle(self) -> None:
        """Takes part in a forward of the ranks that this one shares its weights with."""
        ...


class FrozenTeacher:
    """The teacher on one rank, whole."""

    def __init__(self, model: PreTrainedModel, form: PayloadForm) -> None:
        """Keeps only what the payload needs: hidden states need no head."""
        self._form = form
        self._whole: PreTrainedModel | None = None
        self.head: Head | None = None
        self._base: nn.Module = model.base_model
        if head_rules(model.config) is not None:
            self.head = head_of(model, "teacher.model") if form.kind != "hidden_states" else None
        else:
            self._whole = model

    @torch.inference_mode()
    def payload(self, batch: MicroBatch, hidden: Tensor | None = None) -> list[Tensor]:  # noqa: ARG002 - no stage before
        """The payload's tensors of a micro-batch."""
        if self._whole is not None:
            logits = self._whole(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits
            return make_payload(self._form, logits, None, logits.flatten(0, 1)[batch.index])
        return make_payload(self._form, last_hidden_states(self._base, batch), self.head, None)

    def idle(self) -> None:
        """Nobody shares its weights."""


def payload_form(run: RunPlan, kind_dtype: torch.dtype) -> PayloadForm:
    """What both sides know of every payload, from the plan and the two models' configs."""
    spec = run.spec
    teacher = load_config(spec.teacher, "teacher.model").get_text_config()
    student = teacher if spec.student.model is None else load_config(spec.student, "student.model").get_text_config()
    # Vocabularies that differ by padding rows are cut to the common part; `prepare` has refused all others.
    vocabulary = min(teacher.vocab_size, student.vocab_size)
    return PayloadForm(
        run.layout.payload, teacher.hidden_size, vocabulary, spec.distillation.top_k, kind_dtype,
        spec.distillation.temperature, run.layout.teacher.tp, teacher.vocab_size,
    )  # fmt: skip


def objective(run: RunPlan) -> Objective:
    """The objective of the spec."""
    asked = run.spec.distillation
    return Objective(asked.beta, asked.temperature, asked.cross_entropy_weight)


def load_frozen_teacher(world: World, run: RunPlan, form: PayloadForm) -> Teacher:
    """This rank's part of the teacher.

    A whole one stays on the CPU in the pages of its files. On its way to a GPU it would be in the host's memory, too,
    once for each rank of a node: so it is read piece by piece where its parts are known.
    """
    assert world.teacher is not None
    if run.layout.teacher.is_split or (world.device.type == "cuda" and _has_known_parts(run)):
        return load_stage(run, form, world.teacher, world.device)
    return FrozenTeacher(load_teacher(run.spec.teacher, world.device), form)


def _has_known_parts(run: RunPlan) -> bool:
    return head_rules(load_config(run.spec.teacher, "teacher.model").get_text_config()) is not None

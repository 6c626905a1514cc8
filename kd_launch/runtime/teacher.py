"""The teacher: a frozen model that turns micro-batches into payloads, and the loop that streams them."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kd_launch.plan import RunPlan
from kd_launch.runtime.batches import Batches
from kd_launch.runtime.heartbeat import Progress
from kd_launch.runtime.losses import Head, Objective
from kd_launch.runtime.models import head_of, head_rules, load_config, load_teacher
from kd_launch.runtime.parallel import MicroBatch, last_hidden_states
from kd_launch.runtime.payload import PayloadForm, make_payload
from kd_launch.runtime.transport import Parcel, Sender
from kd_launch.runtime.world import World


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
    def payload(self, batch: MicroBatch) -> list[Tensor]:
        """The payload's tensors of a micro-batch."""
        if self._whole is not None:
            logits = self._whole(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits
            return make_payload(self._form, logits, None, logits.flatten(0, 1)[batch.index])
        hidden = last_hidden_states(self._base, batch)
        return make_payload(self._form, hidden, self.head, None)


def payload_form(run: RunPlan, kind_dtype: torch.dtype) -> PayloadForm:
    """What both sides know of every payload, from the plan and the two models' configs."""
    spec = run.spec
    teacher = load_config(spec.teacher, "teacher.model").get_text_config()
    student = teacher if spec.student.model is None else load_config(spec.student, "student.model").get_text_config()
    # Vocabularies that differ by padding rows are cut to the common part; `prepare` has refused all others.
    vocabulary = min(teacher.vocab_size, student.vocab_size)
    return PayloadForm(
        run.layout.payload, teacher.hidden_size, vocabulary, spec.distillation.top_k, kind_dtype,
        spec.distillation.temperature,
    )  # fmt: skip


def objective(run: RunPlan) -> Objective:
    """The objective of the spec."""
    asked = run.spec.distillation
    return Objective(asked.beta, asked.temperature, asked.cross_entropy_weight)


def load_frozen_teacher(run: RunPlan, form: PayloadForm, device: torch.device) -> FrozenTeacher:
    return FrozenTeacher(load_teacher(run.spec.teacher, device), form)


def teach(
    world: World, run: RunPlan, batches: Batches, teacher: FrozenTeacher, form: PayloadForm, progress: Progress,
    begin: int = 0,
) -> None:  # fmt: skip
    """Streams the payload of each of this rank's micro-batches from step `begin` on, `prefetch` ahead of its
    students."""
    assert world.lane is not None
    students = run.layout.student_ranks
    sender = Sender(form, world.lane, max(1, run.layout.prefetch), world.device, batches.most_tokens())
    for item in batches.items_of_teacher(world.role_rank, begin):
        stamp = batches.stamp(item, world.attempt, form.kind)
        parcel = Parcel(item.number, students[item.student], stamp)
        parts = teacher.payload(batches.micro_batch(item)) if stamp.tokens else form.empty(world.device)
        with progress.waiting(f"a student to take a micro-batch before {item.number}"):
            sender.send(parcel, parts)
        progress.done += 1
        progress.move()
    with progress.waiting("the students to take the last micro-batches"):
        sender.drain()

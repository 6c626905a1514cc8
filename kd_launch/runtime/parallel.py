"""The student as one module, under FSDP2 wherever it is sharded, whose forward ends in the loss.

The loss belongs inside the wrapped root's forward: there the head's weight is whole and in compute dtype, and a
gradient returned for it is reduced like any other. Calling the inner model from outside would mix sharded and whole
tensors, or train without any reduction and without an error.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from kd_launch.plan import RoleLayout, RunPlan
from kd_launch.runtime.compiling import choose_compare
from kd_launch.runtime.divergence import Compare, compare
from kd_launch.runtime.losses import ChunkedLoss, Head, LossInputs, Objective, TeacherSignal
from kd_launch.runtime.models import DTYPES, blank_student, decoder_layers, head_of
from kd_launch.runtime.sharding import draw, fill, pieces_of, sharded, take_memory


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one item on this rank's device."""

    ids: Tensor
    """[b, s]."""
    positions: Tensor
    """[b, s], of each token within its document: a restart marks a new one."""
    index: Tensor
    """[n], the flat positions of the loss tokens."""
    labels: Tensor
    """[n], the token after each loss token."""


def last_hidden_states(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The last hidden states [n, h] of the loss tokens, from a base model without a head.

    transformers tells documents apart by the restarts of the positions, as long as there is no mask and no cache.
    """
    output = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden.flatten(0, 1)[batch.index]


class DistilledStudent(nn.Module):
    """The student and its loss; nothing else calls the model."""

    def __init__(self, model: PreTrainedModel, objective: Objective, compare: Compare = compare) -> None:
        super().__init__()
        self.model = model
        self._objective, self._compare = objective, compare
        self._rules = replace(head_of(model, "student.model"), weight=torch.empty(0), bias=None)

    def forward(self, batch: MicroBatch, signal: TeacherSignal, scale: float, evaluate: bool) -> tuple[Tensor, Tensor]:
        """The scaled loss [] of a micro-batch, and `losses.STATISTICS` summed over its loss tokens."""
        hidden = last_hidden_states(self.model.base_model, batch)
        embeddings = self.model.get_output_embeddings()
        inputs = LossInputs(signal, batch.labels, self._objective, scale, self._head, evaluate, self._compare)
        loss, statistics = ChunkedLoss.apply(hidden, embeddings.weight, getattr(embeddings, "bias", None), inputs)  # type: ignore[no-untyped-call]
        return loss, statistics

    def _head(self, weight: Tensor, bias: Tensor | None) -> Head:
        return replace(self._rules, weight=weight, bias=bias)


def shard_student(
    model: PreTrainedModel, objective: Objective, layout: RoleLayout, mesh: DeviceMesh, dtype: torch.dtype,
    compare: Compare = compare,
) -> DistilledStudent:  # fmt: skip
    """Wraps the student: float32 master weights, compute in `dtype`, gradients reduced in float32.

    One rank that computes in float32 needs nothing of FSDP, which would copy each weight and each gradient twice in a
    step: of a 20M student on a CPU that is a tenth of it.
    """
    if layout.activation_recompute == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    model.train()
    student = DistilledStudent(model, objective, compare)
    mixed = dtype != torch.float32
    if mesh.size() == 1 and not mixed:
        if model.config.tie_word_embeddings:
            # Some rows are added to the head's gradient, instead of a matrix that is zero but for them.
            model.get_input_embeddings().sparse = True
        return student
    policy = MixedPrecisionPolicy(dtype if mixed else None, torch.float32 if mixed else None)
    reshard = bool(layout.reshard_after_forward)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(student, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return student


def load_student(run: RunPlan, objective: Objective, mesh: DeviceMesh, device: torch.device) -> DistilledStudent:
    """The student of a run, of which this rank holds its shards and has read, or drawn, no more than them."""
    model, weights = blank_student(run.spec)
    # DistilledStudent's name for the model; what is cut here is what fully_shard cuts below.
    pieces = {f"model.{name}": piece for name, piece in pieces_of(model, 0, 1).items()}
    shard = mesh["shard"]
    pieces = sharded(pieces, shard.get_local_rank(), shard.size())
    compare = choose_compare(run.spec.training.compile, device)
    student = shard_student(model, objective, run.layout.student, mesh, DTYPES[run.spec.student.dtype], compare)
    take_memory(student, device, model)
    if weights is None:
        draw(student, pieces, model, run.spec.training.seed)
    else:
        fill(student, pieces, weights, lambda name: name.removeprefix("model."))
    return student


def reduce_gradients(student: nn.Module, now: bool, is_last: bool, reshard: bool) -> None:
    """Whether the next backward reduces gradients over ranks, or keeps them for a later one to reduce them all.

    What the ranks of one replica have reduced goes to the other replicas once a step: torch would send it in each
    micro-batch, and hold every sum until the end of the backward beside the gradients that it is added to.

    Args:
        is_last: of its step. Before that the weights do not change: they stay whole where they are whole between
            forward and backward anyway.
        reshard: whether they are not.
    """
    if not isinstance(student, FSDPModule):
        return
    student.set_requires_gradient_sync(now)
    student.set_requires_all_reduce(is_last)
    student.set_is_last_backward(now)
    student.set_reshard_after_backward(is_last or reshard)


def whole_state(student: DistilledStudent, keep: bool) -> dict[str, Tensor]:
    """The model's whole state on the CPU, under the names of the unwrapped model, where `keep`; else nothing.

    All student ranks must call it. Torch's own `get_model_state_dict` gives it to global rank 0, which is a teacher.
    """
    state: dict[str, Tensor] = {}
    for name, value in student.model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            state[name] = whole.detach().cpu()
    return state

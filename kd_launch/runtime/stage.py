"""One rank's part of a teacher that is split: some layers, some of their matrices, or a shard of both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from kd_launch.errors import SpecError
from kd_launch.plan import RoleLayout, RunPlan
from kd_launch.runtime.losses import Head
from kd_launch.runtime.models import DTYPES, blank_model, decoder_layers, head_rules, open_weights
from kd_launch.runtime.parallel import MicroBatch
from kd_launch.runtime.payload import PayloadForm, TopStripe, make_payload, merge_top, top_stripe
from kd_launch.runtime.pieces import Range
from kd_launch.runtime.sharding import (
    Pieces,
    fill,
    forget_forwards,
    local_of,
    pieces_of,
    sharded,
    split_layers,
    split_rows,
    split_vocabulary,
    take_memory,
)
from kd_launch.runtime.world import TeacherGroups


class Passing(nn.Module):
    """In place of a layer that another stage has."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden


class NoPositions(nn.Module):
    """In place of learned positions, which the first stage has added already."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


def layers_of_stage(layers: int, stage: int, stages: int) -> Range:
    """The first and before the last layer: as many for each, the first stages one more where they do not divide.

    >>> [layers_of_stage(10, stage, 4) for stage in range(4)]
    [(0, 3), (3, 6), (6, 8), (8, 10)]
    """
    each, more = divmod(layers, stages)
    return stage * each + min(stage, more), (stage + 1) * each + min(stage + 1, more)


class Stage(nn.Module):
    """The wrapped root: whole weights exist only inside its forward."""

    def __init__(
        self, model: PreTrainedModel, form: PayloadForm, rules: Head, groups: TeacherGroups, last: bool
    ) -> None:
        """
        Args:
            model: the base model, cut to the stage's layers.
            form: of the payload.
            rules: the head without its weight.
            groups: this rank's place.
            last: whether this stage makes the payload.
        """
        super().__init__()
        self.model = model
        self.head: nn.Parameter | None = None
        """Rows of the output head; None where they are the embedding's, or not needed."""
        self.head_bias: nn.Parameter | None = None
        self._form, self._rules, self._last = form, rules, last
        self._tp_rank = groups.place.tp_rank
        self._tp_group = groups.mesh.get_group("tp") if form.stripes > 1 and groups.mesh is not None else None

    def forward(self, batch: MicroBatch, hidden: Tensor | None) -> list[Tensor]:
        """Activations [b, s, h] for the next stage; of the last stage the payload, of logits this rank's columns."""
        inputs = {"input_ids": batch.ids} if hidden is None else {"inputs_embeds": hidden}
        output: Tensor = self.model(**inputs, position_ids=batch.positions, use_cache=False).last_hidden_state
        if not self._last:
            return [output]
        return self._payload(output.flatten(0, 1)[batch.index])

    def _payload(self, hidden: Tensor) -> list[Tensor]:
        form = self._form
        if form.kind == "hidden_states":
            return [hidden.to(form.dtype)]
        if not len(hidden):
            return form.empty(hidden.device, self._tp_rank)
        start, stop = form.columns(self._tp_rank)
        weight = self.model.get_input_embeddings().weight if self.head is None else self.head
        bias = None if self.head_bias is None else local_of(self.head_bias)
        head = replace(self._rules, weight=local_of(weight), bias=bias)
        if form.kind == "logits" or self._tp_group is None:
            return make_payload(replace(form, vocabulary=stop - start), hidden, head, None)
        mine = top_stripe(form, hidden, head, (start, stop))
        return merge_top(_gathered(mine, self._tp_group), min(form.top_k, form.vocabulary))


def _gathered(mine: TopStripe, group: dist.ProcessGroup) -> list[TopStripe]:
    """The stripes of all ranks."""
    columns = []
    for tensor in (mine.values, mine.ids, mine.rest):
        found = [torch.empty_like(tensor) for _ in range(group.size())]
        dist.all_gather(found, tensor.contiguous(), group=group)
        columns.append(found)
    return [TopStripe(*parts) for parts in zip(*columns, strict=True)]


class StagedTeacher:
    """A split teacher on one rank."""

    def __init__(self, stage: Stage, hidden: int, dtype: torch.dtype, device: torch.device, first: bool) -> None:
        self._stage = stage
        ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        self._idle = MicroBatch(ids, ids, nothing, nothing)
        self._idle_hidden = None if first else torch.zeros(1, 1, hidden, dtype=dtype, device=device)

    @torch.no_grad()
    def payload(self, batch: MicroBatch, hidden: Tensor | None = None) -> list[Tensor]:
        """What this rank makes of a micro-batch, from the activations of the stage before, unless it is the first."""
        parts = list(self._stage(batch, hidden))
        forget_forwards(self._stage)
        return parts

    def idle(self) -> None:
        """Takes part in a forward of others."""
        self.payload(self._idle, self._idle_hidden)


@dataclass(frozen=True)
class Cut:
    """A stage without storage, and what this rank is to hold of it."""

    stage: Stage
    pieces: Pieces
    model: PreTrainedModel
    """What it was cut from."""
    head_names: dict[str, str]
    """In the checkpoint, of what the head consists of."""

    def name(self, parameter: str) -> str:
        """In the checkpoint."""
        prefix: str = self.model.base_model_prefix
        return self.head_names.get(parameter, prefix + parameter.removeprefix("model"))


def load_stage(run: RunPlan, form: PayloadForm, groups: TeacherGroups, device: torch.device) -> StagedTeacher:
    """Builds this rank's part of the teacher and reads its weights, no more than them.

    Raises:
        SpecError: an architecture that cannot be split like this, or incomplete weights.
    """
    cut = cut_stage(run, form, groups)
    take_memory(cut.stage, device, cut.model.base_model)
    fill(cut.stage, cut.pieces, open_weights(run.spec.teacher, "teacher.model", cut.model), cut.name)
    dtype = DTYPES[run.spec.teacher.dtype]
    return StagedTeacher(cut.stage, cut.model.config.hidden_size, dtype, device, groups.place.stage == 0)


def cut_stage(run: RunPlan, form: PayloadForm, groups: TeacherGroups) -> Cut:
    """Everything of `load_stage` that takes no memory.

    Raises:
        SpecError: an architecture that cannot be split like this.
    """
    layout, place = run.layout.teacher, groups.place
    whole = blank_model(run.spec.teacher, "teacher.model", DTYPES[run.spec.teacher.dtype]).requires_grad_(False).eval()
    rules = head_rules(whole.config)
    if rules is None:
        raise SpecError(
            f"teacher.model: how to split a {whole.config.model_type} is not known to this version; set "
            "teacher.parallelism to replicas alone"
        )
    last, tied = place.stage == layout.pp - 1, whole.config.tie_word_embeddings
    stage = Stage(whole.base_model, form, Head(torch.empty(0), None, *rules), groups, last)
    head_name = _name_of(whole, whole.get_input_embeddings()) if tied else "lm_head.weight"
    kept = _cut_to_stage(whole, place.stage, layout.pp)
    if last and form.kind != "hidden_states":
        _give_head(stage, whole, shared=tied and layout.pp == 1)
    _split_over_tp(stage, groups.mesh, place.stage == 0, layout)
    pieces = pieces_of(stage, place.tp_rank, layout.tp)
    if layout.fsdp > 1 and groups.mesh is not None:
        _shard(stage, kept, groups.mesh["fsdp"])
        pieces = sharded(pieces, place.shard, layout.fsdp)
    return Cut(stage, pieces, whole, {"head": head_name, "head_bias": "lm_head.bias"})


def _name_of(model: nn.Module, part: nn.Module) -> str:
    """Of the weight of a part."""
    return next(f"{name}.weight" for name, module in model.named_modules() if module is part)


def _cut_to_stage(model: PreTrainedModel, stage: int, stages: int) -> list[nn.Module]:
    """Puts something that passes on in the place of what other stages have; the layers that are left.

    The list keeps its length: what the config says of each layer stays beside it.
    """
    layers = decoder_layers(model)
    start, stop = layers_of_stage(len(layers), stage, stages)
    for index in range(len(layers)):
        if not start <= index < stop:
            layers[index] = Passing()
    base = model.base_model
    for name, part in list(base.named_children()):
        if stage > 0 and name == "wpe":
            setattr(base, name, NoPositions())
        elif (stage > 0 and part is base.get_input_embeddings()) or (stage < stages - 1 and name in ("norm", "ln_f")):
            setattr(base, name, Passing())
    return [layers[index] for index in range(start, stop)]


def _give_head(stage: Stage, model: PreTrainedModel, *, shared: bool) -> None:
    output = model.get_output_embeddings()
    if not shared:
        stage.head = nn.Parameter(output.weight.detach(), requires_grad=False)
    if getattr(output, "bias", None) is not None:
        stage.head_bias = nn.Parameter(output.bias.detach(), requires_grad=False)


def _split_over_tp(stage: Stage, mesh: DeviceMesh | None, first: bool, layout: RoleLayout) -> None:
    if layout.tp == 1 or mesh is None:
        return
    axis = mesh["tp"]
    split_layers(stage.model, axis)
    if first:
        split_vocabulary(stage.model.get_input_embeddings(), axis)
    for name in ("head", "head_bias"):
        if (parameter := getattr(stage, name)) is not None:
            setattr(stage, name, split_rows(parameter, axis))


def _shard(stage: Stage, layers: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Weights are gathered for a layer at a time, and freed after it; so are those outside of the layers."""
    units = list(layers)
    embedding = stage.model.get_input_embeddings()
    # A head that is the embedding is needed at the end of the root's forward, outside of the embedding's.
    if stage.head is not None or stage._form.kind == "hidden_states" or not stage._last:
        units += [embedding] if any(True for _ in embedding.parameters()) else []
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(stage, mesh=mesh, reshard_after_forward=True)

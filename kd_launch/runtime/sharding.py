"""A model without storage -> the part of it that this rank holds: cut over ranks first, then filled piece by piece.

transformers' own tensor-parallel styles and torch's fully_shard make the cut while every parameter is still on the meta
device; only then is memory taken, and each piece read straight into its place. So no rank ever holds more than its
shard and one piece. What this needs of transformers' internals stands here and nowhere else.
"""

import re
import zlib
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from kd_launch.errors import SpecError
from kd_launch.runtime.pieces import Piece, chunk_range
from kd_launch.runtime.weights import Weights

Pieces = dict[str, Piece]
"""By the name of the parameter."""
Names = Callable[[str], str]
"""A parameter's name in a module -> its name in the checkpoint."""


def split_layers(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Cuts the layers of a base model over the ranks of a mesh, by its architecture's own plan.

    Raises:
        SpecError: the architecture has none.
    """
    plan = {name: style for name, style in model.tp_plan.items() if ".*." in name}
    if not plan:
        kind = model.config.model_type
        raise SpecError(f"teacher.parallelism.tp: transformers has no tensor-parallel plan for a {kind}; set tp: 1")
    styles: dict[str, str] = {}
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(prefix=module_name, recurse=False):
            style = plan.get(_wild(name)) or plan.get(_wild(module_name))
            if style is not None:
                styles[name] = style  # parameters before the module that is hooked
        if (style := plan.get(_wild(module_name))) is not None:
            styles[module_name] = style
    apply_tensor_parallelism(model, mesh, styles)


def _wild(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def split_rows(parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """A parameter on the meta device whose rows are cut over the ranks of a mesh."""
    cut = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
    return nn.Parameter(cut, requires_grad=False)


def split_vocabulary(embedding: nn.Module, mesh: DeviceMesh) -> None:
    """Each rank of a mesh holds some rows of an embedding; lookups are summed over them.

    transformers' style for it cannot scale what it looks up, as Gemma's embeddings do.
    """
    parameter = embedding.weight
    assert isinstance(parameter, nn.Parameter)
    start, stop = chunk_range(len(parameter), mesh.get_local_rank(), mesh.size())
    embedding.weight = split_rows(parameter, mesh)
    forward, group = embedding.forward, mesh.get_group()

    def lookup(ids: Tensor) -> Tensor:
        missing = (ids < start) | (ids >= stop)
        whole = embedding._parameters["weight"]
        embedding._parameters["weight"] = cast("nn.Parameter", local_of(whole))
        try:
            found: Tensor = forward((ids - start).masked_fill(missing, 0))
        finally:
            embedding._parameters["weight"] = whole
        found = found.masked_fill(missing.unsqueeze(-1), 0)
        dist.all_reduce(found, group=group)
        return found

    embedding.forward = lookup


def local_of(tensor: Tensor | None) -> Tensor:
    """This rank's part of a tensor that may be cut over ranks."""
    assert tensor is not None
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def pieces_of(module: nn.Module, tp_rank: int, tp: int) -> Pieces:
    """What this rank holds of each parameter; before fully_shard, which cuts the pieces further."""
    return {name: _piece_of(parameter, tp_rank, tp) for name, parameter in module.named_parameters()}


def _piece_of(parameter: Tensor, rank: int, ranks: int) -> Piece:
    piece = Piece.whole(tuple(parameter.shape))
    if not isinstance(parameter, DTensor):
        return piece
    (placement,) = parameter.placements
    return _placed(piece, placement, rank, ranks)


def _placed(piece: Piece, placement: Placement, rank: int, ranks: int) -> Piece:
    dim = getattr(placement, "dim", None)
    if dim is None:
        return piece
    return piece.chunk(dim, rank, ranks, getattr(placement, "split_factor", 1))


def sharded(pieces: Pieces, shard: int, shards: int) -> Pieces:
    """The pieces that fully_shard leaves to a rank: rows of what it held."""
    return {name: piece.chunk(0, shard, shards) for name, piece in pieces.items()}


def forget_forwards(module: nn.Module) -> None:
    """fully_shard remembers each layer of each forward until the next backward, which a frozen model never has."""
    if isinstance(module, FSDPModule):
        order = module._get_fsdp_state()._comm_ctx.post_forward_order
        for group in order:
            group._post_forward_indices.clear()
        order.clear()


def take_memory(module: nn.Module, device: torch.device, model: PreTrainedModel) -> None:
    """Gives every parameter of a module, which holds `model`, its storage, and the buffers their values."""
    tied = _tied(module)
    module.to_empty(device=device)
    for (first, name), *others in tied:
        for owner, other in others:
            owner._parameters[other] = first._parameters[name]
    for parameter in module.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    for part in model.modules():
        if part._non_persistent_buffers_set:
            model._init_weights(part)


def _tied(module: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The places of each parameter that has several: moving to another device would make several of it."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((owner, name))
    return [found for found in places.values() if len(found) > 1]


@torch.no_grad()
def fill(module: nn.Module, pieces: Pieces, weights: Weights, names: Names) -> None:
    """Reads every piece from a checkpoint."""
    for name, parameter in module.named_parameters():
        weights.read(names(name), tuple(parameter.shape), pieces[name], local_of(parameter))


@torch.no_grad()
def draw(module: nn.Module, pieces: Pieces, model: PreTrainedModel, seed: int) -> None:
    """Random weights, as the architecture draws them: the same whole whatever piece of it a rank keeps.

    Each module is drawn by itself and whole, from a seed of its own.
    """
    prefix = next(name for name, part in module.named_modules() if part is model)
    above = _ancestors(model)
    seen: set[int] = set()
    for name, part in model.named_modules():
        mine = {key: value for key, value in part._parameters.items() if value is not None and id(value) not in seen}
        seen.update(id(value) for value in mine.values())
        if mine:
            whole = _drawn(model, part, above[name], mine, zlib.crc32(f"{seed} {name}".encode()))
            for key, parameter in mine.items():
                full = ".".join(word for word in (prefix, name, key) if word)
                for source, place in pieces[full].blocks():
                    local_of(parameter)[place].copy_(whole[key][source])


def _drawn(
    model: PreTrainedModel, part: nn.Module, above: Iterable[nn.Module], mine: dict[str, nn.Parameter], seed: int
) -> dict[str, Tensor]:
    """The parameters of one module, whole, on the CPU."""
    whole = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in mine.items()}
    try:
        part._parameters.update({key: nn.Parameter(value) for key, value in whole.items()})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in (part, *above):
                model._init_weights(module)
    finally:
        part._parameters.update(mine)
    return whole


def _ancestors(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """The modules that a module lies in, innermost first, but models: some draw a child's weights anew."""
    modules = dict(model.named_modules())
    found = {}
    for name in modules:
        words = name.split(".") if name else []
        chain = [modules[".".join(words[:length])] for length in range(len(words) - 1, 0, -1)]
        found[name] = [module for module in chain if not isinstance(module, PreTrainedModel | nn.ModuleList)]
    return found

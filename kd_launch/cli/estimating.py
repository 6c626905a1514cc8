"""estimate train, estimate forward: the cost model on one model and one layout, no search."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kd_launch.cli.app import Json, app, say

if TYPE_CHECKING:
    from kd_launch.estimate.request import Request
    from kd_launch.estimate.result import Estimate

group = typer.Typer(no_args_is_help=True, help="What a training step or a forward pass of one model takes and needs.")
app.add_typer(group, name="estimate")

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A hub id, a folder, or a config.json.", show_default=False)
]
GpuName = Annotated[str, typer.Option("--gpu", metavar="NAME", help="An id or alias of the catalog, such as H100.")]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="All of them.")]
PerNode = Annotated[
    int | None, typer.Option("--gpus-per-node", metavar="N", help="Else 8, or --gpus where that is less.")
]
Tp = Annotated[int, typer.Option("--tp", metavar="N", help="Tensor parallel ranks, with sequence parallelism.")]
Pp = Annotated[int, typer.Option("--pp", metavar="N", help="Pipeline stages (1F1B); need not divide the layers.")]
Cp = Annotated[
    int | None,
    typer.Option("--cp", metavar="N", help="Ranks that share a sequence's tokens; else those that get no sequence."),
]
Ep = Annotated[int, typer.Option("--ep", metavar="N", help="Ranks that divide the experts of a layer.")]
Interleave = Annotated[int, typer.Option("--interleave", metavar="N", help="Pieces of the model on each stage.")]
TrainZero = Annotated[
    int, typer.Option("--zero", min=0, max=3, help="What data parallel ranks divide: 0 nothing (DDP), 3 all (FSDP).")
]
ForwardZero = Annotated[int, typer.Option("--zero", min=0, max=3, help="3: weights sharded (FSDP); less: replicated.")]
Length = Annotated[int, typer.Option("--sequence-length", metavar="N", help="Tokens of a sequence.")]
GlobalBatch = Annotated[
    int | None,
    typer.Option("--global-batch-size", metavar="N", help="Sequences; else one micro-batch per data parallel rank."),
]
MicroBatch = Annotated[
    int | None, typer.Option("--micro-batch-size", metavar="N", help="Sequences; else the fastest that fits.")
]
RecomputeName = Annotated[Literal["none", "selective", "full"], typer.Option("--recompute")]
DtypeName = Annotated[Literal["bf16", "fp16", "fp32", "fp8"], typer.Option("--dtype")]
EngineName = Annotated[
    Literal["auto", "torch-fsdp", "megatron"],
    typer.Option("--engine", help="auto: torch-fsdp where gradients are sharded (ZeRO 2, 3), else megatron."),
]
LossName = Annotated[
    Literal["auto", "plain", "fused"],
    typer.Option(
        "--loss", help="plain: float32 copies of all logits; fused: none; auto: in pieces where only they fit."
    ),
]
AttentionName = Annotated[Literal["flash", "eager"], typer.Option("--attention")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile.")]
Network = Annotated[
    float | None,
    typer.Option("--inter-node-gb-per-s", metavar="X", help="Per node and direction; else as such nodes are built."),
]


@group.command("train")
def train(
    model: Model,
    gpu: GpuName,
    gpus: Gpus,
    gpus_per_node: PerNode = None,
    tp: Tp = 1,
    pp: Pp = 1,
    cp: Cp = None,
    ep: Ep = 1,
    interleave: Interleave = 1,
    zero: TrainZero = 3,
    sequence_length: Length = 4096,
    global_batch_size: GlobalBatch = None,
    micro_batch_size: MicroBatch = None,
    recompute: RecomputeName = "none",
    dtype: DtypeName = "bf16",
    attention: AttentionName = "flash",
    loss: LossName = "auto",
    engine: EngineName = "auto",
    compile: Compile = False,  # noqa: A002  the option's name
    inter_node_gb_per_s: Network = None,
    as_json: Json = False,
) -> None:
    """A training step: forward, backward, update."""
    request = _request(locals())
    from kd_launch.estimate.train import estimate_training

    _show("train", request, estimate_training(request), as_json)


@group.command("forward")
def forward(
    model: Model,
    gpu: GpuName,
    gpus: Gpus,
    gpus_per_node: PerNode = None,
    tp: Tp = 1,
    pp: Pp = 1,
    zero: ForwardZero = 0,
    sequence_length: Length = 4096,
    global_batch_size: GlobalBatch = None,
    micro_batch_size: MicroBatch = None,
    recompute: RecomputeName = "none",
    dtype: DtypeName = "bf16",
    attention: AttentionName = "flash",
    compile: Compile = False,  # noqa: A002  the option's name
    inter_node_gb_per_s: Network = None,
    as_json: Json = False,
) -> None:
    """A forward pass over the batch, as a frozen teacher does it. --recompute has no meaning here."""
    request = _request(locals())
    from kd_launch.estimate.forward import estimate_forward

    _show("forward", request, estimate_forward(request), as_json)


def _request(arguments: Mapping[str, Any]) -> "Request":
    """The question that a command's arguments ask."""
    from kd_launch.catalog import find_gpu
    from kd_launch.estimate.request import Request
    from kd_launch.model_source import find_architecture

    given = {name: value for name, value in arguments.items() if name != "as_json"}
    given["model"] = find_architecture(given["model"], None, os.environ)
    given["gpu"] = find_gpu(given["gpu"])
    if given["gpus_per_node"] is None:
        given["gpus_per_node"] = min(8, max(given["gpus"], 1))
    if given.get("cp", 1) is not None:
        return Request(**given)
    shared = Request(**given | {"cp": 1}).context_for_batch()
    if shared > 1:
        say(f"note: the batch has fewer sequences than ranks, so that {shared} ranks share the tokens of one (--cp)")
    return Request(**given | {"cp": shared})


def _show(kind: Literal["train", "forward"], request: "Request", estimate: "Estimate", as_json: bool) -> None:
    from kd_launch.cli.estimate_text import format_estimate

    if as_json:
        print(estimate.model_dump_json(indent=2))
    else:
        print(format_estimate(kind, request, estimate), end="")

"""Seconds of one optimizer step of a model in training, under data, sharded, tensor and pipeline parallelism."""

import functools
import math
from typing import NamedTuple

from kd_launch.cost.collectives import Collective, Group
from kd_launch.cost.compute import (
    LayerSeconds,
    beside_host,
    floors,
    layer_seconds,
    optimizer_seconds,
    passes_of,
)
from kd_launch.cost.trained import Split, Trained, keeps_operators, local_parameters, updated_parameters


class StepSeconds(NamedTuple):
    """Of one optimizer step on the slowest rank, by term; what hides behind another term is not counted."""

    gemm: float
    attention: float
    elementwise: float
    launch: float
    """What the host needs beyond the layers' work on the device."""
    recompute: float
    head: float
    """Logits, loss and their gradients."""
    tensor_parallel: float
    expert_parallel: float
    """Tokens on their way to experts and back."""
    pipeline: float
    """Bubble, uneven stages and messages."""
    data_parallel: float
    """Gathers of weights and reductions of gradients."""
    optimizer: float
    overhead: float

    @property
    def total(self) -> float:
        return sum(self)


class PassSeconds(NamedTuple):
    """One layer and one micro-batch, on its rank."""

    work: LayerSeconds
    forward: float
    """With what the host takes longer, and exposed tensor parallel traffic."""
    backward: float
    """With recomputation."""
    again: float
    """Work that is computed twice."""
    tensor_parallel: float
    """Exposed traffic within forward and backward."""
    expert_parallel: float
    """Of it tokens on their way to experts and back."""

    @property
    def all(self) -> float:
        return self.forward + self.backward


def step_seconds(trained: Trained, split: Split, tokens: float, accumulation: int, head: float) -> StepSeconds:
    """One step of `accumulation` micro-batches of `tokens` tokens per data-parallel rank.

    head: seconds of logits and loss of one micro-batch, forward and backward, where they are.
    """
    tokens = tokens / split.context
    layer = pass_seconds(trained, split, tokens)
    count = accumulation * trained.model.layers / split.pp
    work = layer.work
    device = 3 * (work.gemms + work.elementwise) + work.attention + work.attention_backward
    parts = (
        count * 3 * work.gemms,
        count * (work.attention + work.attention_backward),
        count * 3 * work.elementwise,
        count * (layer.all - layer.tensor_parallel - device - layer.again),
        count * layer.again,
        accumulation * head / split.pp,
        count * (layer.tensor_parallel - layer.expert_parallel),
        count * layer.expert_parallel,
        _pipeline_seconds(trained, split, tokens, accumulation, layer.all, head),
        data_parallel_seconds(trained, split, accumulation, layer.forward, layer.backward),
        optimizer_seconds(trained.device, updated_parameters(trained.sizes, split), trained.engine),
    )
    return StepSeconds(*parts, overhead=_overhead(trained, split, sum(parts)))


def _overhead(trained: Trained, split: Split, seconds: float) -> float:
    """The step's fixed cost, and the wait for the slowest of many equal ranks.

    One process on a CPU asks no device for anything and waits for nobody: its steps take what their parts do, within
    2 % (benchmarks.calibrated).
    """
    if trained.copies and split.ranks == 1:
        return 0.0
    engine = trained.engine
    behind = engine.straggler * math.sqrt(2 * math.log(split.ranks)) if split.ranks > 1 else 0.0
    return engine.step_overhead_s * trained.device.launch_factor + (engine.step_overhead_fraction + behind) * seconds


@functools.lru_cache(maxsize=65536)
def pass_seconds(trained: Trained, split: Split, tokens: float) -> PassSeconds:
    """Forward and backward of one layer over `tokens` tokens of a rank."""
    work = _work(trained, split, tokens)
    full = split.recompute == "full"
    floor_forward, floor_backward = _floors(trained, split)
    routed = _expert_parallel(trained, split, tokens)
    traffic, again = _tensor_parallel(trained, split, tokens) + routed, _again(work, split)
    forward = beside_host(trained.device, work.forward + 2 * traffic, floor_forward)
    backward = beside_host(trained.device, work.backward + 2 * traffic, floor_backward)
    return PassSeconds(
        work=work,
        forward=forward,
        backward=backward + (forward if full else again),
        again=again,
        tensor_parallel=(6 if full else 4) * traffic,
        expert_parallel=(6 if full else 4) * routed,
    )


def _floors(trained: Trained, split: Split) -> tuple[float, float]:
    """The host's seconds to launch a layer, forward and backward; experts on other ranks need more of it."""
    sparse = trained.model.sparse_layers / trained.model.layers if split.experts > 1 else 0.0
    factor = trained.engine.compute_factor * (1 + sparse * (trained.device.constants.routed_floor - 1))
    forward, backward = floors(trained.engine, trained.device, compiled=trained.compiled)
    return factor * forward, factor * backward


def _again(work: LayerSeconds, split: Split) -> float:
    """Seconds of what is computed twice.

    selective: with sharded states, every second product and what lies between, as torchtitan's operator policy; else
    attention alone, which a flash kernel computes again by itself.
    """
    if split.recompute == "full":
        return work.gemms + work.attention + work.elementwise
    if split.recompute == "none":
        return 0.0
    if keeps_operators(split):
        return 0.5 * work.gemms + work.elementwise
    return 0.0 if work.is_flash else work.attention


def _work(trained: Trained, split: Split, tokens: float) -> LayerSeconds:
    return _work_of(trained, split.tp, split.experts, tokens)


@functools.lru_cache(maxsize=65536)
def _work_of(trained: Trained, tp: int, experts: int, tokens: float) -> LayerSeconds:
    work = layer_seconds(
        trained.device,
        trained.model,
        tokens,
        trained.sequence_length,
        tp,
        expert_ranks=experts,
        attention=trained.attention,
        attention_speed=trained.engine.attention_speed,
        passes=passes_of(trained.engine, trained.device, compiled=trained.compiled),
    )
    return work.slower(trained.engine.compute_factor)


def _tensor_parallel(trained: Trained, split: Split, tokens: float) -> float:
    """Exposed seconds of one half of a layer's pass: an all-gather along the sequence and a reduce-scatter."""
    if split.tp == 1:
        return 0.0
    size = trained.device.width * tokens * trained.model.hidden
    group = Group(split.tp, min(split.tp, split.block), peers=max(1, split.block // split.tp))
    seconds = trained.fabric.seconds(Collective.ALL_GATHER, size, group)
    seconds += trained.fabric.seconds(Collective.REDUCE_SCATTER, size, group)
    return (1 - trained.engine.tensor_parallel_overlap) * seconds


def _expert_parallel(trained: Trained, split: Split, tokens: float) -> float:
    """Seconds of one half of a layer's pass: its tokens' way to their experts, or back."""
    if split.experts == 1:
        return 0.0
    model = trained.model
    size = trained.device.width * tokens / split.tp * model.hidden
    group = Group(split.experts, min(split.experts, split.block), peers=max(1, split.block // split.experts))
    return model.sparse_layers / model.layers * trained.fabric.exchange_seconds(size, group, model.experts_per_token)


def _pipeline_seconds(
    trained: Trained, split: Split, tokens: float, accumulation: int, layer: float, head: float
) -> float:
    """What a pipeline adds to its ranks' mean share of the work: one forward one backward (1F1B), interleaved or not.

    The slowest stage sets the beat; the last one has the head, and the fewest layers where they do not divide.
    """
    if split.pp == 1:
        return 0.0
    layers = trained.model.layers
    most, least = -(-layers // split.pp), layers // split.pp
    beat = max(most * layer, least * layer + head)
    mean = (layers * layer + head) / split.pp
    size = trained.device.width * tokens * trained.model.hidden / split.tp
    group = split.ranks // split.pp
    between = split.ranks > split.block
    hop = trained.fabric.message_seconds(size, between_nodes=between, senders_per_node=min(group, split.block))
    fill = (split.pp - 1) / split.interleave * (layers / split.pp * layer)
    return accumulation * (beat - mean) + fill + 2 * hop * (accumulation + split.pp - 1)


def data_parallel_seconds(trained: Trained, split: Split, accumulation: int, forward: float, backward: float) -> float:
    """Exposed seconds of a step; `forward` and `backward` of one layer.

    Sharded weights are gathered in each micro-batch, and sharded gradients reduced, since keeping whole ones would cost
    the memory that sharding saves. Otherwise, and in a pipeline, both happen once a step, as sums over replicas do.
    """
    if split.replicas * split.shards == 1:
        return 0.0
    sizes, pp = trained.sizes, split.pp
    hide = functools.partial(exposed, hiding=trained.hiding, contention=trained.engine.contention)
    layers = -(-trained.model.layers // pp)
    root = sizes.root if pp == 1 else sizes.head
    layer = local_parameters(sizes, split) / sizes.stage(pp) * split.tp * sizes.layer
    gather, gather_root = (_gather(trained, split, size) for size in (layer, root))
    again = gather if split.stage == 3 and pp == 1 else 0.0
    each = layers * (hide(gather, forward) + hide(again, backward)) + gather_root

    def reduced(over: Split) -> float:
        reduce, reduce_root = (_reduce(trained, over, size) for size in (layer, root))
        return layers * (hide(again + reduce, backward) - hide(again, backward)) + reduce_root

    if not split.reduces_each_time:
        return each + reduced(split)
    return accumulation * each + (accumulation - 1) * reduced(split._replace(replicas=1)) + reduced(split)


def exposed(communication: float, compute: float, hiding: float, contention: float = 0.0) -> float:
    """Seconds that communication adds to the same layer's compute.

    hiding: the share of compute behind which it can hide. contention: what compute loses to hidden communication, by
    sharing the device's memory and its cores, as a share of the communication's time.
    """
    hidden = min(communication, hiding * compute)
    return communication - (1 - contention) * hidden


def _gather(trained: Trained, split: Split, parameters: float) -> float:
    size = trained.device.width * parameters / split.tp
    seconds = trained.copies * size / trained.device.bytes_per_s
    if split.stage == 0 or split.shards == 1:
        return seconds
    gather = trained.fabric.seconds(Collective.ALL_GATHER, size, shard_group(split))
    return seconds + trained.engine.gather_factor * gather


def _reduce(trained: Trained, split: Split, parameters: float) -> float:
    """Gradients: summed within the ranks that share a training state, then over the replicas."""
    size = trained.engine.gradient_bytes * parameters / split.tp
    divided = split.shards if split.stage else 1
    seconds = 0.0
    if divided > 1:
        seconds = trained.fabric.seconds(Collective.REDUCE_SCATTER, size, shard_group(split))
    copies = split.replicas * split.shards // divided
    if copies > 1:
        stride = min(split.tp * divided, split.block)
        inside = max(1, min(copies, split.block // stride))
        group = Group(copies, inside, peers=max(1, split.block // inside))
        seconds += trained.fabric.seconds(Collective.ALL_REDUCE, size / divided, group)
    return trained.engine.data_parallel_factor * seconds + trained.copies * size / trained.device.bytes_per_s


def shard_group(split: Split) -> Group:
    """The ranks of one replica that hold a training state together."""
    inside = max(1, min(split.shards, split.block // split.tp))
    return Group(split.shards, inside, peers=max(1, split.block // inside))

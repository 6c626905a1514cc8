"""A training step of one model, in time and memory."""

from dataclasses import replace

from kd_launch.catalog import Engine, find_engine
from kd_launch.cost.compute import cross_entropy_seconds
from kd_launch.cost.constants import GIB, Constants, load_constants
from kd_launch.cost.setting import Site
from kd_launch.cost.sizes import sizes_of
from kd_launch.cost.trained import Split, Trained
from kd_launch.cost.training import StepSeconds, step_seconds
from kd_launch.cost.training_memory import Parts, training_memory
from kd_launch.estimate.batches import batches
from kd_launch.estimate.hardware import site_for
from kd_launch.estimate.request import Request
from kd_launch.estimate.result import Estimate, estimate_of, in_pieces


def estimate_training(request: Request, constants: Constants | None = None, engine: Engine | None = None) -> Estimate:
    """One optimizer step. Raises SpecError for what cannot be.

    loss auto: in pieces as large as there is room for, where it does not fit at once and a fused one does.
    """
    request.check()
    constants, engine = constants or load_constants(), engine or find_engine(request.engine_name)
    whole = _estimated(request, constants, engine, fused=request.loss == "fused")
    if whole.fits or request.loss != "auto":
        return whole
    asked = replace(request, micro_batch_size=whole.micro_batch_size)
    return in_pieces(whole) if _estimated(asked, constants, engine, fused=True).fits else whole


def _estimated(request: Request, constants: Constants, engine: Engine, *, fused: bool) -> Estimate:
    site, split = site_for(request, constants), split_of(request)
    trained = trained_on(request, site, engine, fused=fused)

    def memory(micro: int, accumulation: int) -> Parts:
        tokens = micro * request.sequence_length
        return training_memory(trained, split, tokens, accumulation, constants.memory)

    def step(micro: int, accumulation: int) -> StepSeconds:
        tokens = micro * request.sequence_length
        return step_seconds(trained, split, tokens, accumulation, head_and_loss(trained, split, tokens))

    micro, accumulation = batches(
        request,
        lambda micro, count: sum(memory(micro, count).values()),
        lambda micro, count: step(micro, count).total,
        site.memory_limit_gib * GIB,
    )
    return estimate_of(
        request,
        constants,
        loss="fused" if fused else "plain",
        micro=micro,
        accumulation=accumulation,
        terms=step(micro, accumulation)._asdict(),
        parts=memory(micro, accumulation),
        passes=3,
        spread=constants.intervals.of("train", several_nodes=request.gpus > request.gpus_per_node),
    )


def split_of(request: Request) -> Split:
    """Data-parallel and context-parallel ranks share the training state, as far as the ZeRO stage says."""
    ranks = request.data_parallel * request.cp
    return Split(
        replicas=1 if request.zero else ranks,
        shards=ranks if request.zero else 1,
        stage=request.zero if ranks > 1 else 0,
        tp=request.tp,
        pp=request.pp,
        context=request.cp,
        experts=request.ep,
        interleave=request.interleave,
        recompute=request.recompute,
        block=min(request.gpus, max(request.gpus_per_node, request.gpu.link_domain or 0)),
    )


def trained_on(request: Request, site: Site, engine: Engine, *, fused: bool) -> Trained:
    assert site.student_device is not None  # the request was checked
    if request.dtype == "fp16":
        engine = replace(engine, gradient_bytes=engine.half_gradient_bytes)
    return Trained(
        model=request.model,
        sizes=sizes_of(request.model),
        device=site.student_device,
        fabric=site.fabric,
        engine=engine,
        sequence_length=request.sequence_length,
        attention=request.attention,
        compiled=request.compile,
        hiding=site.hiding(engine),
        fused_loss=fused,
    )


def head_and_loss(trained: Trained, split: Split, tokens: float) -> float:
    """Logits and cross-entropy of one micro-batch, forward and backward, split over the vocabulary."""
    model, fused = trained.model, trained.compiled or trained.fused_loss
    vocabulary = model.vocabulary / split.tp
    return cross_entropy_seconds(trained.device, tokens / split.context, vocabulary, model.hidden, fused=fused)

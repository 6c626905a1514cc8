"""A forward pass of one model over a batch, as a frozen teacher does it: replicate, fsdp, tp, pp and their products."""

from kd_launch.catalog import Engine, find_engine
from kd_launch.cost.compute import head_seconds, layer_seconds, passes_of
from kd_launch.cost.constants import GIB, Constants, load_constants
from kd_launch.cost.memory import teacher_memory
from kd_launch.cost.roles import TeacherSeconds, teacher_seconds
from kd_launch.cost.setting import Setting, Site, TeacherDegrees
from kd_launch.cost.training_memory import Parts
from kd_launch.errors import SpecError
from kd_launch.estimate.batches import batches
from kd_launch.estimate.hardware import site_for
from kd_launch.estimate.request import DTYPES, Request
from kd_launch.estimate.result import Estimate, estimate_of

ENGINE = "kd-launch"


def estimate_forward(request: Request, constants: Constants | None = None, engine: Engine | None = None) -> Estimate:
    """One pass over the global batch, to the logits. --zero 3 shards the weights (FSDP), less replicates them.

    Raises SpecError for what cannot be.
    """
    request.check()
    if request.cp > 1:
        raise SpecError(f"--cp must be 1 in a forward pass, is {request.cp}")
    constants, engine = constants or load_constants(), engine or find_engine(ENGINE)
    site, setting, degrees = site_for(request, constants), _setting(request, constants, engine), _degrees(request)
    block = min(site.pool.gpus_per_node, request.gpus)

    def memory(micro: int, _: int) -> Parts:
        return _memory(setting, degrees, micro * request.sequence_length, constants)

    def seconds(micro: int) -> TeacherSeconds:
        return teacher_seconds(setting, site, degrees, block, micro * request.sequence_length, "logits")

    micro, count = batches(
        request,
        lambda size, count: sum(memory(size, count).values()),
        lambda size, count: count * seconds(size).each + seconds(size).fill,
        site.memory_limit_gib * GIB,
    )
    return estimate_of(
        request,
        constants,
        loss="plain",
        micro=micro,
        accumulation=count,
        terms=_terms(setting, site, degrees, micro * request.sequence_length, count, seconds(micro)),
        parts=memory(micro, count),
        passes=1,
        spread=constants.intervals.of("forward", several_nodes=request.gpus > request.gpus_per_node),
    )


def _setting(request: Request, constants: Constants, engine: Engine) -> Setting:
    return Setting(
        teacher=request.model,
        student=request.model,
        sequence_length=request.sequence_length,
        teacher_dtype=DTYPES[request.dtype],
        student_dtype=DTYPES[request.dtype],
        top_k=1,
        compiled=request.compile,
        engine=engine,
        constants=constants,
        attention=request.attention,
    )


def _degrees(request: Request) -> TeacherDegrees:
    return TeacherDegrees(request.data_parallel if request.zero == 3 else 1, request.tp, request.pp)


def _memory(setting: Setting, degrees: TeacherDegrees, tokens: int, constants: Constants) -> Parts:
    """With the logits of the micro-batch, in the compute dtype."""
    held = teacher_memory(setting, degrees, tokens)
    logits = setting.teacher_width * tokens * setting.teacher.vocabulary / degrees.tp
    return {**held.resident, **held.transient, "logits": logits, "context": constants.memory.context_gib * GIB}


def _terms(
    setting: Setting, site: Site, degrees: TeacherDegrees, tokens: int, count: int, seconds: TeacherSeconds
) -> dict[str, float]:
    """Work on the device by term; the rest of a micro-batch is communication, or the host that launches too slowly."""
    device, model = site.teacher_device, setting.teacher
    assert device is not None  # the request was checked
    layer = layer_seconds(
        device,
        model,
        tokens,
        min(setting.sequence_length, tokens),
        degrees.tp,
        attention=setting.attention,
        attention_speed=setting.engine.attention_speed,
        passes=passes_of(setting.engine, device, compiled=setting.compiled),
    )
    share = count * model.layers / degrees.pp
    head = count * head_seconds(device, tokens, model.vocabulary / degrees.tp, model.hidden) / degrees.pp
    terms = {
        "gemm": share * layer.gemms,
        "attention": share * layer.attention,
        "elementwise": share * layer.elementwise,
        "head": head,
    }
    terms["communication_and_launch"] = max(0.0, count * seconds.each - sum(terms.values()))
    terms["pipeline"] = seconds.fill
    return terms

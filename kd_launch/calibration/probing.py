"""How a probe is laid out: which layout, how much of each model, which sizes; and what its ranks found."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from kd_launch.architecture import Architecture
from kd_launch.cost.compute import WIDTH
from kd_launch.cost.constants import GIB
from kd_launch.cost.sizes import sizes_of
from kd_launch.errors import DoesNotFitError, SpecError
from kd_launch.plan import Layout, unsupported_by_runtime
from kd_launch.preparation import Inputs, plan_inputs
from kd_launch.probe import ProbeOrder, Sample
from kd_launch.run_dir import RunDir, read_json
from kd_launch.spec import Spec

TIME_LIMIT = "00:15:00"
"""Of the probe's job: short ones start soon."""
SECONDS = 2.5
"""For each of at most a dozen measurements: with the ranks' start, a minute or two."""
MOST_LAYERS = 8
MOST_BYTES = 64 * 2**20
"""Of a tensor that ranks reduce or send: larger ones tell no more."""
TRAINING_BYTES = 16
"""Per parameter: weights, gradient and two Adam states in float32."""
SHARE = 0.5
"""Of the memory limit that the probe's models may take; the rest is for activations and logits."""


def as_probe(inputs: Inputs) -> Inputs:
    """A spec's inputs for a probe: under a name of its own, with a short time limit."""
    spec = inputs.spec
    slurm = spec.slurm.model_copy(update={"time_limit": TIME_LIMIT})
    named = spec.model_copy(update={"name": f"{inputs.name[:118]}-calibrate", "slurm": slurm})
    return replace(inputs, loaded=replace(inputs.loaded, spec=named))


def layout_of_probe(inputs: Inputs) -> Layout:
    """The best layout with the roles apart, since it measures all that there is; else the choice.

    Of CPU processes one for each role: more could share cores, and then each would measure the others, too.
    """
    plan = plan_inputs(inputs)
    if inputs.cluster.pool(plan.chosen.student.pool).is_cpu:
        with suppress(SpecError, DoesNotFitError):
            return plan_inputs(_one_process_each(inputs)).chosen
    apart = (layout for layout in plan.candidates if not layout.colocated and unsupported_by_runtime(layout) is None)
    return next(apart, plan.chosen)


def _one_process_each(inputs: Inputs) -> Inputs:
    pinned = {"gpus": 1, "parallelism": "auto"}
    roles = {role: getattr(inputs.spec, role).model_copy(update=pinned) for role in ("teacher", "student")}
    spec = inputs.spec.model_copy(update={"placement": "disjoint", **roles})
    return replace(inputs, loaded=replace(inputs.loaded, spec=spec))


def order_for(spec: Spec, layout: Layout, teacher: Architecture, student: Architecture) -> ProbeOrder:
    """Two sizes of each thing, with as many layers as have room.

    Raises:
        SpecError: not even one layer of each has.
    """
    share = SHARE / 2 if layout.colocated else SHARE
    teacher_layers = _layers(teacher, WIDTH[spec.teacher.dtype], share * layout.teacher.memory_limit_gib, "teacher")
    student_layers = _layers(student, TRAINING_BYTES, share * layout.student.memory_limit_gib, "student")
    size, sizes = layout.student.micro_batch_size, sizes_of(student)
    tokens = size * spec.data.sequence_length
    return ProbeOrder(
        teacher_layers=teacher_layers,
        student_layers=student_layers,
        sizes=(size, 2 * size),
        collective_bytes=tuple(sorted({_bytes(4 * sizes.layer), _bytes(4 * sizes.root)})),
        message_bytes=_bytes(int(tokens * layout.payload_bytes_per_token)),
        seconds=SECONDS,
    )


def _bytes(size: int) -> int:
    return min(size, MOST_BYTES)


def _layers(model: Architecture, per_parameter: int, limit_gib: float, role: str) -> int:
    for layers in range(min(model.layers, MOST_LAYERS), 0, -1):
        if per_parameter * model.with_layers(layers).parameters <= limit_gib * GIB:
            return layers
    raise SpecError(
        f"{role}.model: not even one of its layers has room beside its embeddings in {limit_gib:.1f} GiB, so that "
        "there is nothing to measure; calibrate with a smaller model of the same dtype"
    )


def read_samples(run: RunDir, ranks: int) -> list[Sample]:
    """What every rank measured.

    Raises:
        SpecError: a rank's file is missing or damaged.
    """
    found: list[Sample] = []
    for rank in range(ranks):
        path = run.probe(rank)
        try:
            found += _samples(read_json(path))
        except (ValidationError, LookupError, TypeError) as error:
            raise SpecError(f"{path}: is no measurement of this version; calibrate again") from error
    return found


def _samples(document: dict[str, object] | None) -> Sequence[Sample]:
    if document is None:
        raise LookupError
    return TypeAdapter(list[Sample]).validate_python(document["samples"])

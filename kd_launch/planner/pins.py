"""Checks of what the spec fixes by hand, before any search: each impossible pin has its own message."""

from collections.abc import Iterator

from kd_launch.architecture import Architecture
from kd_launch.cluster import Cluster, Pool
from kd_launch.errors import SpecError, UnknownNameError, nearest
from kd_launch.planner.allocations import allowed_pools, most_nodes
from kd_launch.planner.layouts import divisors, pinned_gpus
from kd_launch.spec import Spec


def check_pins(spec: Spec, cluster: Cluster, teacher: Architecture, student: Architecture) -> None:
    """Raises SpecError with every pin that no layout can keep, one a line."""
    check_pools(spec, cluster)
    problems = [
        *_sequence_problems(spec, teacher, student),
        *_payload_problems(spec, teacher, student),
        *_gpu_problems(spec, cluster),
        *_teacher_problems(spec, cluster, teacher),
        *_batch_problems(spec, cluster),
        *_placement_problems(spec, cluster),
        *_launch_problems(spec, cluster),
    ]
    if problems:
        raise SpecError("\n".join(problems))


def check_pools(spec: Spec, cluster: Cluster) -> None:
    """Raises UnknownNameError where a role's pool is none of the cluster's."""
    names = [pool.name for pool in cluster.pools]
    for word, wanted in (("teacher", spec.teacher.pool), ("student", spec.student.pool)):
        if wanted not in ("auto", *names):
            raise UnknownNameError(
                f"{word}.pool: '{wanted}' is no pool of the cluster; pools: {', '.join(names)}{nearest(wanted, names)}"
            )


def _sequence_problems(spec: Spec, teacher: Architecture, student: Architecture) -> Iterator[str]:
    """Of the model that was made for the shorter sequences."""
    known = [
        (model.max_positions, word)
        for word, model in (("teacher", teacher), ("student", student))
        if model.max_positions is not None
    ]
    most, word = min(known, key=lambda model: model[0], default=(spec.data.sequence_length, ""))
    if spec.data.sequence_length > most:
        yield (
            f"data.sequence_length: {spec.data.sequence_length} tokens, but the {word} was made for at most {most}; "
            f"set {most} or less"
        )


def _payload_problems(spec: Spec, teacher: Architecture, student: Architecture) -> Iterator[str]:
    wanted, top_k = spec.distillation.payload, spec.distillation.top_k
    if wanted == "hidden_states" and not teacher.head_is_known:
        yield (
            f"distillation.payload: hidden_states needs the head of the teacher, and how a '{teacher.model_type}' "
            "turns hidden states into logits is not known; legal: auto, logits, top_k"
        )
    vocabulary = min(teacher.vocabulary, student.vocabulary)
    if wanted == "top_k" and top_k > vocabulary:
        yield f"distillation.top_k: {top_k} logits, but the vocabulary has {vocabulary}; set {vocabulary} or less"


def _gpu_problems(spec: Spec, cluster: Cluster) -> Iterator[str]:
    """More GPUs than there are."""
    for word, pin, pools in _roles(spec, cluster):
        have = _most_gpus(spec, pools)
        if pin is not None and pin > have:
            name = _pin_name(spec, word)
            yield f"{name}: {_gpus(pin)} asked for, but {_have(spec, pools)}; set auto, or {have} or less"


def _most_gpus(spec: Spec, pools: list[Pool]) -> int:
    """Of one pool."""
    return max(pool.gpus_per_node * most_nodes(spec, pool) for pool in pools)


def _roles(spec: Spec, cluster: Cluster) -> list[tuple[str, int | None, list[Pool]]]:
    pools, pins = allowed_pools(spec, cluster), pinned_gpus(spec)
    return [("teacher", pins[0], pools[0]), ("student", pins[1], pools[1])]


def _pin_name(spec: Spec, word: str) -> str:
    role = spec.teacher if word == "teacher" else spec.student
    return f"{word}.gpus" if role.parallelism == "auto" else f"{word}.parallelism"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count != 1 else ''}"


def _have(spec: Spec, pools: list[Pool]) -> str:
    """What the pools have, in words."""
    limit = " under max_nodes" if spec.max_nodes is not None else ""
    words = [
        f"pool {pool.name} has {pool.gpus_per_node * nodes} ({nodes} node{'s' if nodes > 1 else ''} x "
        f"{pool.gpus_per_node}){limit}"
        for pool in pools
        for nodes in (most_nodes(spec, pool),)
    ]
    return ", ".join(words)


def _teacher_problems(spec: Spec, cluster: Cluster, teacher: Architecture) -> Iterator[str]:
    pinned = spec.teacher.parallelism
    if pinned == "auto":
        return
    if pinned.fsdp * pinned.tp * pinned.pp > 1 and not teacher.can_be_split:
        yield (
            f"teacher.parallelism: how to split a '{teacher.model_type}' over GPUs is not known to this version; set "
            "replicas alone, or auto"
        )
        return
    if not teacher.legal_tp(pinned.tp):
        legal = ", ".join(str(tp) for tp in range(1, teacher.kv_heads + 1) if teacher.legal_tp(tp))
        why = (
            f"its {teacher.kv_heads} key-value heads and MLP must divide"
            if teacher.supports_tp
            else "it has no TP plan"
        )
        yield f"teacher.parallelism.tp: {pinned.tp} does not suit a '{teacher.model_type}' ({why}); legal: {legal}"
    per_node = max(pool.gpus_per_node for pool in allowed_pools(spec, cluster)[0])
    if teacher.legal_tp(pinned.tp) and pinned.tp > per_node:
        yield f"teacher.parallelism.tp: {pinned.tp} ranks must share a node, which has {_gpus(per_node)}"
    if pinned.pp > teacher.layers:
        yield f"teacher.parallelism.pp: {pinned.pp} stages, but the teacher has {teacher.layers} layers"


def _batch_problems(spec: Spec, cluster: Cluster) -> Iterator[str]:
    batch, size = spec.training.global_batch_size, spec.training.micro_batch_size
    gpus = pinned_gpus(spec)[1]
    if gpus is None and spec.placement == "colocated":
        gpus = pinned_gpus(spec)[0]  # the student's are the same
    if gpus is not None and gpus > _most_gpus(spec, allowed_pools(spec, cluster)[1]):
        return  # said already
    if gpus is not None and batch % gpus:
        yield (
            f"training.global_batch_size: {batch} sequences do not divide over {gpus} student GPUs; legal near it: "
            f"{_near(batch, gpus)}, or student GPUs: {_list(divisors(batch))}"
        )
    elif size != "auto" and batch % (size * (gpus or 1)):
        over = f" on {gpus} student GPUs" if gpus else ""
        yield (
            f"training.micro_batch_size: {size}{over} does not divide the global batch of {batch}; "
            f"legal: {_list(divisors(batch // (gpus or 1)))}"
        )


def _near(number: int, step: int) -> str:
    below = number // step * step
    return f"{below} or {below + step}" if below else str(step)


def _list(numbers: tuple[int, ...]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:11], "...", shown[-1]])


def _placement_problems(spec: Spec, cluster: Cluster) -> Iterator[str]:
    teacher_pin, student_pin = pinned_gpus(spec)
    if spec.placement == "colocated":
        if not _common_pools(spec, cluster):
            yield (
                f"placement: colocated needs one pool for both roles, but teacher.pool is {spec.teacher.pool} and "
                f"student.pool is {spec.student.pool}"
            )
        if None not in (teacher_pin, student_pin) and teacher_pin != student_pin:
            yield (
                f"placement: colocated gives both roles the same GPUs, but the spec pins {teacher_pin} for the teacher "
                f"and {student_pin} for the student; pin one of them or the same number"
            )
    elif spec.placement == "disjoint" or len({teacher_pin, student_pin, None}) == 3:
        wanted = (teacher_pin or 1) + (student_pin or 1)
        have = _gpus_of_both(spec, cluster)
        if wanted > have and max(teacher_pin or 1, student_pin or 1) <= have:
            yield (
                f"placement: roles on GPUs of their own need {teacher_pin or 1} + {student_pin or 1}, but "
                f"{_have(spec, list(cluster.pools))}; pin fewer, or placement: colocated with the same number for both"
            )


def _gpus_of_both(spec: Spec, cluster: Cluster) -> int:
    """All GPUs of the pools that either role may use."""
    teacher, student = allowed_pools(spec, cluster)
    return sum(
        pool.gpus_per_node * most_nodes(spec, pool) for pool in cluster.pools if pool in teacher or pool in student
    )


def _launch_problems(spec: Spec, cluster: Cluster) -> Iterator[str]:
    wanted = spec.launch
    if wanted == "auto" or cluster.scheduler == "local":
        return
    if wanted != "ranks" and spec.placement == "colocated":
        yield f"launch: {wanted} gives roles nodes of their own, but placement is colocated; set launch: auto or ranks"
    if wanted in ("hetjob", "two_steps") and not cluster.hetjobs:
        yield f"launch: {wanted} needs het jobs, which the cluster refuses (hetjobs: false); set launch: auto"
    if wanted in ("hetjob", "hetstep") and not cluster.hetjob_steps:
        yield f"launch: {wanted} needs a step of two parts, which the cluster refuses (hetjob_steps: false); set auto"
    if wanted in ("hetstep", "ranks") and not _common_pools(spec, cluster):
        yield (
            f"launch: {wanted} takes both roles from one pool, but teacher.pool is {spec.teacher.pool} and "
            f"student.pool is {spec.student.pool}; set launch: hetjob"
        )


def _common_pools(spec: Spec, cluster: Cluster) -> list[Pool]:
    """That both roles may use."""
    teacher, student = allowed_pools(spec, cluster)
    return [pool for pool in student if pool in teacher]

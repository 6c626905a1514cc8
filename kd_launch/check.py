"""Preflight: what can be found out here that would otherwise fail inside the job. One Finding each."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kd_launch.architecture import Architecture
from kd_launch.cluster import Pool
from kd_launch.commands import Runner
from kd_launch.errors import KdLaunchError, SpecError
from kd_launch.local.machine import GIB, Machine
from kd_launch.plan import Layout, describe_role
from kd_launch.preparation import Inputs, interpreter_problem
from kd_launch.scripts.script import decide
from kd_launch.sources import ModelFiles, cached_commit, model_sources, source_files
from kd_launch.spec import HubDataset, Source
from kd_launch.submission import planned_run_dir
from kd_launch.tokens import expected_stores, is_complete

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    what: str
    says: str
    """Where it was found; for what failed also the way out."""

    def line(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'} {self.what}: {self.says}"


@dataclass(frozen=True)
class Place:
    """Where the check is made."""

    machine: Machine
    environ: Mapping[str, str]
    cwd: Path
    run: Runner

    @property
    def is_offline(self) -> bool:
        return self.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def check(inputs: Inputs, choose: Callable[[], Layout], place: Place) -> Iterator[Finding]:
    """Looks at everything, one finding after another, so that all errors show at once.

    Args:
        choose: plans, and returns the chosen layout; raises what planning raises.
    """
    yield from _models(inputs, place)
    yield from _sequence_length(inputs)
    data = list(_data(inputs, place))
    yield from data
    if all(finding.ok for finding in data):
        yield _tokens(inputs)
    yield _run_root(inputs)
    try:
        layout = choose()
    except KdLaunchError as error:
        yield Finding(False, "layout", "; ".join(str(error).splitlines()))
        return
    yield Finding(True, "layout", _describe(layout))
    pools = [inputs.cluster.pool(name) for name in dict.fromkeys((layout.teacher.pool, layout.student.pool))]
    if inputs.cluster.scheduler == "local":
        yield _machine(pools[0], layout, place.machine)
    script = _script(inputs, layout, place)
    yield script
    if script.ok:
        yield from (_interpreter(inputs, pool, place) for pool in pools)


def _describe(layout: Layout) -> str:
    teacher, student = layout.teacher, layout.student
    return (
        f"{layout.placement}, teacher on {teacher.gpus} ({describe_role(teacher)}), "
        f"student on {student.gpus} ({describe_role(student)}) of pool {student.pool}"
    )


# Models


def _models(inputs: Inputs, place: Place) -> Iterator[Finding]:
    student, teacher = model_sources(inputs.spec)
    yield _model(inputs, teacher, True, place)
    if student != teacher:
        yield _model(inputs, student, inputs.spec.student.start_from == "pretrained", place)


def _model(inputs: Inputs, model: ModelFiles, needs_weights: bool, place: Place) -> Finding:
    try:
        folder = model.folder()
        missing = _missing(model, folder, needs_weights, inputs.spec.data.format != "tokens") if folder else "all of it"
    except KdLaunchError as error:
        return Finding(False, model.where, str(error))
    if missing is None:
        return Finding(True, model.where, str(folder))
    if model.is_folder:
        return Finding(
            False, model.where, f"{folder}: has no {missing}; a model folder holds what save_pretrained writes"
        )
    return _to_fetch(inputs, model.where, f"{model.model}: {missing} is not in the Hugging Face cache", place)


def _missing(model: ModelFiles, folder: Path, needs_weights: bool, needs_tokenizer: bool) -> str | None:
    """What a model's folder lacks."""
    if needs_weights and (weights := _missing_weights(folder)):
        return weights
    if needs_tokenizer and not model.tokenizer_files():
        return "tokenizer files"
    return None


def _missing_weights(folder: Path) -> str | None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return None if any(folder.glob("*.safetensors")) else "*.safetensors"
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise SpecError(f"{index}: cannot be read: {error}") from error
    return next((name for name in sorted(names) if not (folder / name).is_file()), None)


def _to_fetch(inputs: Inputs, what: str, words: str, place: Place) -> Finding:
    """What `prepare` brings from the hub: submit does it on a local cluster, where there is network."""
    if place.is_offline:
        return Finding(False, what, f"{words}, and HF_HUB_OFFLINE forbids to fetch it; unset it, or name a folder")
    if inputs.cluster.scheduler == "local":
        return Finding(True, what, f"{words}; submit fetches it")
    return Finding(False, what, f"{words}; give `kd-launch prepare` where there is network")


# Data


def _sequence_length(inputs: Inputs) -> Iterator[Finding]:
    length = inputs.spec.data.sequence_length
    models: list[tuple[str, Architecture]] = [("teacher", inputs.teacher), ("student", inputs.student)]
    short = [(role, model.max_positions) for role, model in models if (model.max_positions or length) < length]
    for role, most in short:
        yield Finding(
            False, "data.sequence_length", f"is {length} but the {role} takes {most} tokens at most; set {most} or less"
        )
    if not short:
        yield Finding(True, "data.sequence_length", f"{length} tokens")


def _data(inputs: Inputs, place: Place) -> Iterator[Finding]:
    for where, source in (("data.train", inputs.spec.data.train), ("data.eval", inputs.spec.data.eval)):
        if source is not None:
            yield _source(inputs, where, source, place)


def _source(inputs: Inputs, where: str, source: Source, place: Place) -> Finding:
    if isinstance(source, HubDataset):
        if cached_commit(source) is None:
            return _to_fetch(inputs, where, f"{source.hub} is not in the Hugging Face cache", place)
        return Finding(True, where, f"{source.hub} is in the Hugging Face cache")
    try:
        files = source_files(source, where, inputs.spec.data.format)
    except SpecError as error:
        return Finding(False, where, str(error).removeprefix(f"{where}: "))
    return Finding(True, where, f"{len(files)} files" if len(files) > 1 else str(files[0]))


def _tokens(inputs: Inputs) -> Finding:
    try:
        stores = expected_stores(inputs.spec, Path(inputs.cluster.run_root))
    except SpecError as error:
        return Finding(False, "tokens", str(error))
    missing = [store for store in (stores.train, stores.eval) if store is not None and not is_complete(Path(store))]
    if not missing:
        return Finding(True, "tokens", stores.train)
    if inputs.cluster.scheduler == "local":
        return Finding(True, "tokens", f"{missing[0]} is not prepared yet; submit prepares it")
    return Finding(False, "tokens", f"{missing[0]} is not prepared; give `kd-launch prepare`")


# The place


def _run_root(inputs: Inputs) -> Finding:
    root = Path(inputs.cluster.run_root)
    there = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".kd-launch-check-", dir=there) as trial:
            (Path(trial) / "file").write_bytes(b"x" * 4096)
        free = shutil.disk_usage(there).free / GIB
    except OSError as error:
        problem = f"{there}: {error.strerror}" if there.is_dir() else f"{there}: is not a folder"
        return Finding(False, "run_root", f"{problem}; set run_root in the cluster file to a folder you may write")
    needed = inputs.student.parameters * DTYPE_BYTES[inputs.spec.student.dtype] / GIB
    if free < needed:
        return Finding(
            False,
            "run_root",
            f"{there}: {_size(free)} are free, but the student alone takes {_size(needed)}; "
            "free space there, or set run_root in the cluster file to another disk",
        )
    return Finding(True, "run_root", str(root))


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"


def _script(inputs: Inputs, layout: Layout, place: Place) -> Finding:
    run = planned_run_dir(inputs, None, place.cwd, datetime.now(UTC))
    try:
        decide(inputs.spec, inputs.cluster, layout, run.path, run.name, sys.executable)
    except SpecError as error:
        return Finding(False, "script", str(error))
    return Finding(True, "script", f"launch {layout.launch or 'on this machine'}")


def _machine(pool: Pool, layout: Layout, machine: Machine) -> Finding:
    """Whether this machine is what the local pool says, as far as the layout uses it."""
    what, roles = f"pool {pool.name}", (layout.student,) if layout.colocated else (layout.teacher, layout.student)
    if not pool.is_cpu and len(machine.gpus) < layout.gpus:
        return Finding(False, what, f"the layout takes {layout.gpus} GPUs but this machine shows {len(machine.gpus)}")
    needed = sum(role.memory_gib * role.gpus for role in roles) if pool.is_cpu else 0.0
    if needed > machine.memory_gib:
        return Finding(
            False, what, f"the layout takes {needed:.1f} GiB but this machine has {machine.memory_gib:.1f}; "
            "correct memory_gib in the cluster file"
        )  # fmt: skip
    return Finding(True, what, f"{machine.cores} cores, {machine.memory_gib:.1f} GiB, {len(machine.gpus)} GPUs here")


def _interpreter(inputs: Inputs, pool: Pool, place: Place) -> Finding:
    problem = interpreter_problem(inputs.cluster, pool, place.run, place.environ)
    python = pool.python or inputs.cluster.python or sys.executable
    return Finding(problem is None, "python", problem or f"{python} of pool {pool.name}")

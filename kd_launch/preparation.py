"""From the files to what a command works on: spec and cluster, the plan for them, and the prepared tokens."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_launch import __version__
from kd_launch.architecture import Architecture
from kd_launch.calibration.applied import apply
from kd_launch.cluster import Cluster, Pool, SiteFacts, resolve
from kd_launch.commands import Completed, Runner
from kd_launch.errors import CheckError, DoesNotFitError, KdLaunchError, SpecError
from kd_launch.local.surroundings import with_setup, without_launchers
from kd_launch.model_source import find_architecture
from kd_launch.plan import Calibrated, Plan, TokenStores
from kd_launch.planner.search import make_plan
from kd_launch.reading.spec_file import Loaded, load
from kd_launch.scripts.rank_command import site_of
from kd_launch.spec import Spec, TeacherLayers
from kd_launch.tokens import expected_stores, is_complete

PROBE_S = 60.0
INTERRUPTED = 130
# Whether transformers knows a model type stands in its table, which is read as text: its import takes seconds.
_PROBE = """
import importlib.util as u, json, pathlib, sys
names = ["kd_launch", "torch", "transformers", "datasets", "numpy", "safetensors"]
missing = [name for name in names if u.find_spec(name) is None]
version = None if "kd_launch" in missing else __import__("kd_launch").__version__
tables = []
if "transformers" not in missing:
    tables = list(pathlib.Path(u.find_spec("transformers").origin).parent.glob("models/auto/*.py"))
text = "".join(table.read_text(errors="replace") for table in tables)
unknown = [name for name in sys.argv[1:] if text and f'"{name}"' not in text]
print(json.dumps({"missing": missing, "version": version, "unknown": unknown}))
"""


AskSite = Callable[[], SiteFacts]
"""What asks the site about itself, where a command may; `SiteFacts` itself asks nothing."""


@dataclass(frozen=True)
class Source:
    """Where a command finds its input, and what surrounds it."""

    config: Path
    settings: Sequence[str]
    """The --set arguments."""
    cluster: Path | None
    """--cluster."""
    environ: Mapping[str, str]
    cwd: Path


@dataclass(frozen=True)
class Inputs:
    """A spec on a cluster, with the shapes of both models."""

    loaded: Loaded
    cluster: Cluster
    """Without `auto` in what the site allows."""
    notes: tuple[str, ...]
    """What was assumed."""
    teacher: Architecture
    student: Architecture
    calibrated: Calibrated | None = None
    """What the predicted times are calibrated with."""
    warnings: tuple[str, ...] = ()
    """Of the calibration."""

    @property
    def spec(self) -> Spec:
        return self.loaded.spec

    @property
    def name(self) -> str:
        assert self.spec.name is not None, "set by load"
        return self.spec.name


def load_inputs(source: Source, ask_site: AskSite = SiteFacts) -> Inputs:
    """Reads the files and both models' config.json.

    Args:
        ask_site: what the site answers about itself; called where the cluster is Slurm's and leaves that open.

    Raises:
        SpecError: something in them is wrong.
    """
    loaded = load(source.config, source.settings, source.cluster, environ=source.environ, cwd=source.cwd)
    cluster = loaded.cluster
    is_open = cluster.scheduler == "slurm" and "auto" in (cluster.hetjobs, cluster.hetjob_steps)
    cluster, notes = resolve(cluster, ask_site() if is_open else SiteFacts())
    applied = apply(loaded.spec, cluster, loaded.cluster_path)
    cluster = applied.cluster
    loaded = replace(loaded, spec=loaded.spec.model_copy(update={"cluster": cluster}))
    teacher = _architecture("teacher", loaded.spec.teacher.model, loaded.spec.teacher.revision, source.environ)
    student = _student_architecture(loaded.spec, teacher, source.environ)
    return Inputs(loaded, cluster, notes, teacher, student, applied.calibrated, applied.warnings)


def load_and_plan(source: Source, top: int = 20, ask_site: AskSite = SiteFacts) -> tuple[Inputs, Plan]:
    """Reads the files and plans; the plan holds the `top` best layouts.

    Raises:
        SpecError: something in them is wrong.
        DoesNotFitError: no layout is possible.
    """
    inputs = load_inputs(source, ask_site)
    return inputs, plan_inputs(inputs, top)


def plan_inputs(inputs: Inputs, top: int = 20) -> Plan:
    """The plan for what was read. Raises SpecError and DoesNotFitError."""
    plan = make_plan(inputs.spec, inputs.cluster, inputs.teacher, inputs.student, top=top)
    warnings = [*inputs.warnings, *plan.warnings]
    return plan.model_copy(update={"calibrated": inputs.calibrated, "warnings": warnings})


def _architecture(role: str, model: str, revision: str | None, environ: Mapping[str, str]) -> Architecture:
    try:
        return find_architecture(model, revision, environ)
    except SpecError as error:
        raise SpecError(f"{role}.model: {error}") from error


def _student_architecture(spec: Spec, teacher: Architecture, environ: Mapping[str, str]) -> Architecture:
    kept = spec.student.start_from
    if not isinstance(kept, TeacherLayers):
        assert spec.student.model is not None, "checked by Student"
        return _architecture("student", spec.student.model, spec.student.revision, environ)
    beyond = [layer for layer in kept.teacher_layers if layer >= teacher.layers]
    if beyond:
        raise SpecError(
            f"student.start_from.teacher_layers: {', '.join(map(str, beyond))} do not exist: "
            f"{spec.teacher.model} has layers 0 to {teacher.layers - 1}"
        )
    return teacher.with_layers(len(kept.teacher_layers))


# The interpreter of the job, and the tokens


class Prepared(BaseModel):
    """What `python -m kd_launch.runtime.prepare` answers."""

    model_config = ConfigDict(frozen=True, extra="allow")  # the headers of the stores are the runtime's

    train: str
    eval: str | None
    created: bool
    """Whether anything was built."""

    @property
    def stores(self) -> TokenStores:
        return TokenStores(train=self.train, eval=self.eval)


def interpreter_problem(
    cluster: Cluster, pool: Pool, run: Runner, environ: Mapping[str, str], model_types: Sequence[str] = ()
) -> str | None:
    """What is wrong with the interpreter of a pool's ranks, with the way out; None when it can run the runtime.

    Args:
        model_types: of the models that its transformers must know.
    """
    place = _Place.of(cluster, pool, environ)
    done = place.run([place.python, "-c", _PROBE, *model_types], run, timeout=PROBE_S)
    try:
        answer = json.loads(done.stdout.splitlines()[-1] if done.ok else "")
        missing, version, unknown = answer["missing"], answer["version"], answer.get("unknown", [])
    except (ValueError, LookupError, TypeError):
        return f"{place.python}: {done.why()}; set python in the cluster file to one that has kd-launch[runtime]"
    if missing:
        return (
            f"{place.python}: has no {', '.join(missing)}; give it `{place.python} -m pip install 'kd-launch[runtime]'`"
        )
    if version != __version__:
        return f"{place.python}: has kd-launch {version} but this is {__version__}; give both the same version"
    if unknown:
        return (
            f"{place.python}: its transformers has no model type {', '.join(map(repr, unknown))}, which config.json "
            "says; take a newer transformers, or trust_remote_code: true where the model brings its own code"
        )
    return None


def prepare(inputs: Inputs, pool: Pool, run: Runner, environ: Mapping[str, str]) -> Prepared:
    """Runs the preparation in the interpreter of a pool's ranks; its progress and its errors go to our stderr.

    Raises:
        CheckError: the interpreter cannot run it.
        KdLaunchError: it failed; of the branch whose exit code it had.
    """
    problem = interpreter_problem(inputs.cluster, pool, run, environ)
    if problem is not None:
        raise CheckError(problem)
    place = _Place.of(inputs.cluster, pool, environ)
    request = {"spec": inputs.spec.model_dump(mode="json"), "cluster": inputs.cluster.model_dump(mode="json")}
    argv = [place.python, "-m", "kd_launch.runtime.prepare"]
    done = place.run(argv, run, timeout=None, stdin=json.dumps(request), pass_stderr=True)
    if not done.ok:
        raise _preparation_error(done, site_speaks=bool(place.setup))
    try:
        return Prepared.model_validate_json(done.stdout)
    except ValidationError as error:
        raise CheckError(f"{shlex.join(argv)} gave no answer that this version understands") from error


@dataclass(frozen=True)
class _Place:
    """Where a rank of a pool would find its software, but with the network, which ranks are denied."""

    python: str
    setup: str
    environ: Mapping[str, str]

    @staticmethod
    def of(cluster: Cluster, pool: Pool, environ: Mapping[str, str]) -> "_Place":
        site = site_of(cluster, pool, sys.executable)
        given = {**without_launchers(environ), **cluster.environment, **pool.environment}
        # An interpreter inside a container cannot be called from outside: ours takes its place.
        return _Place(sys.executable, "", given) if site.container else _Place(site.python, site.setup, given)

    def run(
        self, argv: Sequence[str], run: Runner, *, timeout: float | None, stdin: str = "", pass_stderr: bool = False
    ) -> Completed:
        line = with_setup(self.setup, argv)
        return run(line, timeout=timeout, stdin=stdin, env=self.environ, pass_stderr=pass_stderr)


def prepared_stores(inputs: Inputs, config: Path) -> TokenStores:
    """The stores of the spec's tokens, which `prepare` has made: where a job is sent from, nothing is downloaded.

    Raises:
        CheckError: they are not there.
        SpecError: the data or a model is missing or unreadable.
    """
    stores = expected_stores(inputs.spec, Path(inputs.cluster.run_root))
    for store in filter(None, (stores.train, stores.eval)):
        if not is_complete(Path(store)):
            raise CheckError(
                f"tokens: {store} is not prepared; give `kd-launch prepare {shlex.quote(str(config))}` where there is "
                "network, with the same --set and --cluster"
            )
    return stores


def _preparation_error(done: Completed, *, site_speaks: bool) -> KdLaunchError:
    """Without words where the preparation wrote its own; the site's setup may end with the same codes and say less."""
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    kinds = {kind.exit_code: kind for kind in (SpecError, DoesNotFitError, CheckError)}
    kind = kinds.get(done.returncode or 0)
    if kind is not None and not site_speaks:
        return kind("")
    words = done.problem or f"preparing models and data ended with exit code {done.returncode}; it said why above"
    return (kind or CheckError)(words)

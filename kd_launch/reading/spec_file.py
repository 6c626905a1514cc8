"""A YAML file becomes a Spec and a Cluster, with absolute paths; or every error of both files at once."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from kd_launch.cluster import Cluster
from kd_launch.errors import SpecError, printable
from kd_launch.reading.document import Document, Key, KeyPath, parse, parse_value
from kd_launch.reading.field_errors import describe
from kd_launch.secret_names import is_secret
from kd_launch.spec import Spec

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Loaded:
    """The files of one run, checked."""

    spec: Spec
    """Paths are absolute; `cluster` in it is the mapping itself; `name` is set."""
    cluster: Cluster
    """Paths are absolute; `name` is set."""
    spec_text: str
    """The spec file as given."""
    cluster_text: str | None
    """The cluster file as given; None where the spec holds the cluster itself."""
    cluster_path: Path
    """The file that the cluster stands in: the cluster file, or the spec itself."""


def load(
    path: Path, overrides: Sequence[str] = (), cluster: Path | None = None, *, environ: Mapping[str, str], cwd: Path
) -> Loaded:
    """Reads a spec and its cluster file.

    Args:
        path: the spec.
        overrides: "--set" arguments such as "training.steps=10"; "cluster.x=y" reaches into the cluster file.
        cluster: a cluster file instead of the one that the spec names.
        environ: for $NAME and ~ in paths.
        cwd: the folder that `run_root` and the arguments themselves are relative to.

    Raises:
        SpecError: one line for each thing that is wrong.
    """
    spec_text = _read(path, "the spec")
    document = parse(str(path), spec_text)
    settings = [_parse_override(argument) for argument in overrides]
    document = _override(document, [s for s in settings if s[0][0] != "cluster" or len(s[0]) == 1])
    inner = [
        (keys[1:], value, argument) for keys, value, argument in settings if keys[0] == "cluster" and len(keys) > 1
    ]
    named = str(cluster) if cluster is not None else document.data.get("cluster")
    if isinstance(named, str):
        where = "--cluster" if cluster is not None else f"{document.where(('cluster',))}: cluster"
        cluster_path = cwd / named if cluster is not None else _cluster_path(named, path, where, environ)
        return _load_two(path, document, spec_text, cluster_path, where, inner, environ, cwd)
    document = _override(document, [(("cluster", *keys), value, argument) for keys, value, argument in inner])
    return _load_one(path, document, spec_text, environ, cwd)


def load_cluster(path: Path, *, environ: Mapping[str, str], cwd: Path) -> Cluster:
    """Reads a cluster file alone. Raises SpecError as `load` does."""
    document = parse(str(path), _read(path, "the cluster file"))
    problems: list[str] = []
    document = _expand_cluster(document, (), path.parent, environ, cwd, problems)
    found = _validate(Cluster, document, (), problems)
    if found is None or problems:
        raise SpecError("\n".join(problems))
    return found if found.name else found.model_copy(update={"name": _stem(path)})


def _load_two(
    path: Path,
    document: Document,
    spec_text: str,
    cluster_path: Path,
    where: str,
    inner: Sequence[tuple[KeyPath, Any, str]],
    environ: Mapping[str, str],
    cwd: Path,
) -> Loaded:
    cluster_text = _read(cluster_path, "the cluster file", f"{where}: ")
    cluster_document = _override(parse(str(cluster_path), cluster_text), inner)
    problems: list[str] = []
    document = replace(document, data={**document.data, "cluster": str(cluster_path)})
    document = _expand_spec(document, path.parent, environ, cwd, problems)
    cluster_document = _expand_cluster(cluster_document, (), cluster_path.parent, environ, cwd, problems)
    spec = _validate(Spec, document, (), problems)
    cluster = _validate(Cluster, cluster_document, (), problems)
    return _finish(path, cluster_path, spec, cluster, problems, spec_text, cluster_text)


def _load_one(path: Path, document: Document, spec_text: str, environ: Mapping[str, str], cwd: Path) -> Loaded:
    problems: list[str] = []
    document = _expand_spec(document, path.parent, environ, cwd, problems)
    if isinstance(document.data.get("cluster"), dict):
        document = _expand_cluster(document, ("cluster",), path.parent, environ, cwd, problems)
    spec = _validate(Spec, document, (), problems)
    cluster = spec.cluster if spec is not None and isinstance(spec.cluster, Cluster) else None
    return _finish(path, path, spec, cluster, problems, spec_text, None)


def _finish(
    path: Path,
    cluster_path: Path,
    spec: Spec | None,
    cluster: Cluster | None,
    problems: Sequence[str],
    spec_text: str,
    cluster_text: str | None,
) -> Loaded:
    if spec is None or cluster is None or problems:
        raise SpecError("\n".join(problems))
    if cluster.name is None:
        cluster = cluster.model_copy(update={"name": _stem(cluster_path)})
    spec = spec.model_copy(update={"name": spec.name or _stem(path), "cluster": cluster})
    return Loaded(spec, cluster, spec_text, cluster_text, cluster_path)


def _stem(path: Path) -> str:
    """A legal name from a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.")[:128] or "run"


def _read(path: Path, what: str, prefix: str = "") -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{prefix}{path}: is no UTF-8 text (byte {error.start}); {what} is a YAML file") from error
    except FileNotFoundError as error:
        raise SpecError(
            f"{prefix}{path}: no such file; {what} is a YAML file, and `kd-launch init` writes one"
        ) from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{prefix}{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _cluster_path(named: str, path: Path, where: str, environ: Mapping[str, str]) -> Path:
    try:
        return (path.parent / expand(named, environ)).absolute()
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error


# --set


def _parse_override(argument: str) -> tuple[KeyPath, Any, str]:
    dotted, equals, text = argument.partition("=")
    argument = f"{dotted}=***" if is_secret(dotted.rpartition(".")[2], text) else printable(argument, 200)
    if not equals or not dotted.strip():
        raise SpecError(f"--set {argument}: must be key=value, such as --set training.steps=10")
    keys: list[Key] = [int(part) if part.isdigit() else part for part in dotted.strip().split(".")]
    if "" in keys:
        raise SpecError(f"--set {argument}: '{printable(dotted, 80)}' has an empty part between its dots")
    return tuple(keys), parse_value(argument, text), argument


def _override(document: Document, settings: Sequence[tuple[KeyPath, Any, str]]) -> Document:
    data = copy.deepcopy(document.data)
    for keys, value, argument in settings:
        _put(data, keys, value, argument)
    given = {keys: argument for keys, _, argument in settings}
    return replace(document, data=data, overrides={**document.overrides, **given})


def _put(data: Any, keys: KeyPath, value: Any, argument: str) -> None:
    """Sets a value in nested mappings and lists, making the mappings that are missing."""
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(data, list) and isinstance(key, int) and key < len(data):
            if last:
                data[key] = value
        elif isinstance(data, dict):
            key = str(key)
            if last:
                data[key] = value
            elif not isinstance(data.get(key), dict | list):
                data[key] = {}
        else:
            raise SpecError(f"--set {argument}: '{key}' does not exist in the list there")
        data = data[key] if not last else None


# Paths


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replaces a leading ~ and each $NAME or ${NAME}.

    Raises:
        SpecError: a name is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environ:
            raise SpecError(
                f"'{text}' names ${name}, which is not set in the environment; export it or write the path out"
            )
        return environ[name]

    expanded = re.sub(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})", value, text)
    if text == "~" or text.startswith("~/"):
        if "HOME" not in environ:
            raise SpecError(f"'{text}' begins with ~ but HOME is not set in the environment; write the path out")
        return environ["HOME"] + expanded[1:]
    return expanded


def _model_path(text: str, base: Path) -> str:
    """A folder as an absolute path, anything else (a hub id) as it is."""
    path = base / text
    looks_like_path = text.startswith((".", "/")) or text.count("/") > 1
    return str(path) if looks_like_path or path.exists() else text


def _expand_spec(
    document: Document, base: Path, environ: Mapping[str, str], cwd: Path, problems: list[str]
) -> Document:
    base = cwd / base
    data = copy.deepcopy(document.data)
    for role in ("teacher", "student"):
        _expand_at(data, (role, "model"), lambda text: _model_path(text, base), environ, document, problems)
    for split in ("train", "eval"):
        source = data.get("data", {}).get(split) if isinstance(data.get("data"), dict) else None
        keys: list[KeyPath] = [("data", split)]
        if isinstance(source, list):
            keys = [("data", split, index) for index in range(len(source))]
        for key in keys:
            _expand_at(data, key, lambda text: str(base / text), environ, document, problems)
    return replace(document, data=data)


def _expand_cluster(
    document: Document, at: KeyPath, base: Path, environ: Mapping[str, str], cwd: Path, problems: list[str]
) -> Document:
    base = cwd / base
    data = copy.deepcopy(document.data)
    inner = data["cluster"] if at else data
    if isinstance(inner, dict):
        inner.setdefault("run_root", "runs")
    _expand_at(data, (*at, "run_root"), lambda text: str(cwd / text), environ, document, problems)
    _expand_at(data, (*at, "template"), lambda text: str(base / text), environ, document, problems)
    pools = inner.get("pools") if isinstance(inner, dict) else None
    owners: list[KeyPath] = [at, *((*at, "pools", i) for i in range(len(pools) if isinstance(pools, list) else 0))]
    for owner in owners:
        _expand_at(
            data,
            (*owner, "python"),
            lambda text: str(base / text) if "/" in text else text,
            environ,
            document,
            problems,
        )
    return replace(document, data=data)


def _expand_at(
    data: Any, keys: KeyPath, place: Any, environ: Mapping[str, str], document: Document, problems: list[str]
) -> None:
    """Expands and places the text at `keys`, where there is one."""
    for key in keys[:-1]:
        if isinstance(data, dict):
            data = data.get(str(key))
        else:
            data = data[key] if isinstance(data, list) and isinstance(key, int) else None
    last = keys[-1]
    exists = last in data if isinstance(data, dict) else isinstance(data, list) and isinstance(last, int)
    if not exists or not isinstance(data[last], str) or not data[last]:
        return
    try:
        data[last] = place(expand(data[last], environ))
    except SpecError as error:
        problems.append(f"{document.where(keys)}: {'.'.join(map(str, keys))}: {error}")


def _validate(model: type[Model], document: Document, at: KeyPath, problems: list[str]) -> Model | None:
    """JSON's strict mode takes lists for tuples but no text for a number, which is what YAML needs too."""
    try:
        return model.model_validate_json(to_json(document.data, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        problems += describe(error.errors(), document, model, at)
    except (ValueError, TypeError) as error:
        problems.append(f"{document.name}: {error}")
    return None

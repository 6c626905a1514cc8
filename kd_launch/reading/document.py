"""YAML text with the line of every key: so that a wrong value is answered with file:line, whoever finds it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.reader import ReaderError

from kd_launch.errors import SpecError

Key = str | int
KeyPath = tuple[Key, ...]

# YAML 1.2's core schema. PyYAML's own rules are 1.1's: there `no` is false, 10:00:00 is 36000 and 1e-5 is a string.
_SCALARS = {
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
}

# A few nested anchors make a small file a huge one; no spec is this long.
_MOST_VALUES = 10_000

# What PyYAML raises for scalars that are not what their tag says, such as `!!int _` and `!!bool x`.
_VALUE_ERRORS = (ValueError, OverflowError, LookupError, TypeError, AttributeError)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name; a fresh table instead of 1.1's


def _add_scalars() -> None:
    import re

    for tag, (pattern, first) in _SCALARS.items():
        _Loader.add_implicit_resolver(tag, re.compile(pattern), first)


_add_scalars()


@dataclass(frozen=True)
class Document:
    """One YAML mapping and where each of its values stands."""

    name: str
    """The file, as errors name it."""
    data: dict[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    """Line of each key or list item, from 1."""
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """The --set argument that gave a value, where one did."""

    def where(self, path: KeyPath) -> str:
        """`file:line` of a value, or of the nearest thing around it; "--set x=y" where that gave it."""
        for length in range(len(path), -1, -1):
            for given, argument in self.overrides.items():
                if path[:length] == given[:length] and length == len(given):
                    return f"--set {argument}"
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return f"{self.name}:1"


def parse(name: str, text: str) -> Document:
    """Reads one YAML mapping.

    Raises:
        SpecError: not YAML, not a mapping, or a key that stands twice.
    """
    try:
        with _loading(text) as loader:
            node = loader.get_single_node()
            if node is None:
                raise SpecError(f"{name}: is empty; `kd-launch init` writes one to start from")
            if not isinstance(node, yaml.MappingNode):
                raise SpecError(f"{name}:{_line(node)}: must be a mapping of keys to values")
            lines: dict[KeyPath, int] = {}
            _collect(name, node, (), lines, 0)
            return Document(name, loader.construct_document(node), lines)
    except yaml.YAMLError as error:
        raise SpecError(_yaml_message(name, text, error)) from error
    except RecursionError as error:
        raise SpecError(f"{name}: is nested too deeply") from error
    except _VALUE_ERRORS as error:
        raise SpecError(f"{name}: cannot be read as YAML: {error}") from error


def parse_value(argument: str, text: str) -> Any:
    """The value on the right of `--set key=value`, read as YAML."""
    try:
        with _loading(text) as loader:
            node = loader.get_single_node()
            if node is None:
                return None
            _collect(f"--set {argument}", node, (), {}, 0)
            return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, *_VALUE_ERRORS) as error:
        raise SpecError(
            f"--set {argument}: the value is no YAML; quote it for YAML too, such as --set name='\"x: y\"'"
        ) from error


@contextmanager
def _loading(text: str) -> Iterator[_Loader]:
    loader = _Loader(text)  # raises, too, at a control character
    try:
        yield loader
    finally:
        loader.dispose()


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _collect(name: str, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], depth: int) -> None:
    """Fills `lines` from a node tree. Anchors may make it a graph, merged keys are refused: a spec needs neither."""
    if depth > 20:
        raise SpecError(f"{name}:{_line(node)}: is nested more than 20 levels deep")
    if len(lines) > _MOST_VALUES:
        raise SpecError(f"{name}:{_line(node)}: holds more than {_MOST_VALUES} values, those behind anchors included")
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise SpecError(f"{name}:{_line(key_node)}: keys must be plain words")
            child = (*path, str(key_node.value))
            if child in lines:
                dotted = ".".join(str(part) for part in child)
                raise SpecError(
                    f"{name}:{_line(key_node)}: {dotted}: stands twice; the first is at line {lines[child]}"
                )
            lines[child] = _line(key_node)
            _collect(name, value_node, child, lines, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = _line(item)
            _collect(name, item, (*path, index), lines, depth + 1)


def _yaml_message(name: str, text: str, error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{name}:{mark.line + 1}: is no YAML: {error.problem} (column {mark.column + 1})"
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{name}:{line}: is no YAML: holds the control character {chr(error.character)!r}; leave it out"
    return f"{name}: is no YAML: {' '.join(str(error).split())}"

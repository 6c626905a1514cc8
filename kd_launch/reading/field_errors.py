"""pydantic's findings in words for people: one line each, file:line: field: what is wrong, the value, the legal."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from kd_launch.errors import nearest, printable
from kd_launch.reading.document import Document, KeyPath

MOST_SHOWN = 80
"""Characters of a value."""

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text (quote it if it looks like a number)",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}
_PATTERNS = {
    r"^[A-Za-z0-9_][A-Za-z0-9._-]*$": "letters, digits, '.', '_' and '-', not '.' or '-' first",
    r"^[^\x00-\x1f\x7f]*$": "one line of text without control characters",
    r"^[^\x00]*$": "text without NUL characters",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "a variable name: letters, digits and '_'",
    r"^[A-Za-z0-9.-]*$": "letters, digits, '.' and '-'",
}


def describe(errors: Sequence[ErrorDetails], document: Document, model: type[BaseModel], at: KeyPath = ()) -> list[str]:
    """The lines for all errors of validating `document`'s value at path `at` against `model`, in the file's order."""
    groups: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        groups.setdefault(_data_path(error["loc"], error, _value_at(document.data, at)), []).append(error)
    kept = {path: group for path, group in groups.items() if not _shadowed(path, group, groups)}
    lines = [_describe_one((*at, *path), group, document, model, path) for path, group in kept.items()]
    order = {line: index for index, line in enumerate(lines)}
    return sorted(lines, key=lambda line: (_line_number(line), order[line]))


def _line_number(line: str) -> int:
    digits = line.split(":")[1] if line.count(":") else ""
    return int(digits) if digits.isdigit() else 0


def _value_at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data


def _data_path(loc: Sequence[str | int], error: ErrorDetails, data: Any) -> KeyPath:
    """`loc` without the union tags that pydantic puts between keys: only what stands, or is missing, in the data."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        in_mapping = isinstance(data, Mapping) and part in data
        if in_mapping or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
        elif not (last and error["type"] == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _shadowed(path: KeyPath, group: Sequence[ErrorDetails], groups: Mapping[KeyPath, Sequence[ErrorDetails]]) -> bool:
    """Whether a union's other branch failed deeper in: then the user meant that branch."""
    deeper = (other for other in groups if len(other) > len(path) and other[: len(path)] == path)
    return any(True for _ in deeper) and all(error["type"] not in ("value_error", "extra_forbidden") for error in group)


def _describe_one(
    where: KeyPath, group: Sequence[ErrorDetails], document: Document, model: type[BaseModel], path: KeyPath
) -> str:
    field = ".".join(printable(str(part), MOST_SHOWN) for part in where) or "the file"
    first = group[0]
    if first["type"] == "missing":
        return f"{document.where(where[:-1])}: {field}: is missing{_hint(model, path)}"
    if first["type"] == "extra_forbidden":
        legal = sorted(_fields_of(model, path[:-1]))
        suggestion = nearest(str(path[-1]), legal)
        return f"{document.where(where)}: {field}: is no key here{suggestion}; legal keys: {', '.join(legal)}"
    broken_rule = next((error for error in group if error["type"] == "value_error"), None)
    if broken_rule is not None:  # of a union's branches, the one whose shape the value has
        text = str(broken_rule.get("ctx", {}).get("error", broken_rule["msg"]))
        return f"{document.where(where)}: {text}"
    expected = " or ".join(dict.fromkeys(_expected(error) for error in group))
    suggestion = nearest(str(first["input"]), _literals(group)) if isinstance(first["input"], str) else ""
    return f"{document.where(where)}: {field}: is {_shown(first['input'])} but must be {expected}{suggestion}"


def _shown(value: Any) -> str:
    text = {True: "true", False: "false", None: "null"}.get(value) if value is None or isinstance(value, bool) else None
    if text is None:
        text = f"'{value}'" if isinstance(value, str) else str(value)
    return printable(text, MOST_SHOWN)


def _literals(group: Sequence[ErrorDetails]) -> list[str]:
    return [
        word.strip().strip("'")
        for error in group
        if error["type"] == "literal_error"
        for word in str(error.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(",")
    ]


def _expected(error: ErrorDetails) -> str:
    """What one branch would have taken."""
    context = error.get("ctx", {})
    kind = error["type"]
    match kind:
        case "literal_error":
            return str(context["expected"]).replace("'", "")
        case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
            sign = {"greater_than_equal": ">=", "less_than_equal": "<=", "greater_than": ">", "less_than": "<"}[kind]
            return f"{sign} {next(iter(context.values()))}"
        case "string_pattern_mismatch":
            pattern = str(context["pattern"])
            return _PATTERNS.get(pattern, 'a time of Slurm\'s, quoted: "90" (minutes), "08:00:00" or "2-00:00:00"')
        case "string_too_short":
            return "text that is not empty"
        case "string_too_long":
            return f"text of at most {context['max_length']} characters"
        case "too_short":
            return f"a list of at least {context['min_length']} items"
        case "too_long":
            return f"a list of {context['max_length']} items"
    return _EXPECTED.get(kind, error["msg"])


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _models_at(model: type[BaseModel], path: KeyPath) -> list[type[BaseModel]]:
    """The models that could stand at a path."""
    models = [model]
    for key in path:
        if isinstance(key, str):
            models = [
                inner
                for outer in models
                if key in outer.model_fields
                for inner in _models_in(outer.model_fields[key].annotation)
            ] or models
    return models


def _fields_of(model: type[BaseModel], path: KeyPath) -> set[str]:
    return {name for at in _models_at(model, path) for name in at.model_fields}


def _hint(model: type[BaseModel], path: KeyPath) -> str:
    """The meaning of a missing field."""
    for outer in _models_at(model, path[:-1]):
        description = outer.model_fields[str(path[-1])].description if str(path[-1]) in outer.model_fields else None
        if description:
            return f": {' '.join(description.split()).rstrip('.')}"
    return ""

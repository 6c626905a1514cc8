"""Node features: whether a node's satisfy a --constraint, as far as this can be said of one node alone."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_MARKS = "&|()[]"
_TOKEN = re.compile(r"\s*([&|()\[\]]|[^&|()\[\]\s]+)")


class UnreadableConstraintError(ValueError):
    """An expression that this module does not understand."""


def satisfies(features: Iterable[str], constraint: str) -> bool:
    """Whether a node with these features may be among a job's nodes.

    A count (`a*2`) asks for nodes with the feature among others, and brackets ask for the same feature on all nodes:
    of one node each says no more than that it has one of them.

    >>> satisfies(["a100", "ib"], "a100&ib"), satisfies(["a100"], "[v100|h100]"), satisfies(["x"], "(x|y)&z")
    (True, False, False)

    Raises:
        UnreadableConstraintError: it is no expression that this understands.
    """
    found = _expression(list(_tokens(constraint)), frozenset(features))
    if found.rest:
        raise UnreadableConstraintError(constraint)
    return found.value


def names_in(constraint: str) -> tuple[str, ...]:
    """The features that a constraint names."""
    return tuple(dict.fromkeys(_name(token) for token in _tokens(constraint) if token not in _MARKS))


class _Parsed(NamedTuple):
    value: bool
    rest: list[str]
    is_counted: bool = False


def _tokens(text: str) -> Iterable[str]:
    end = 0
    while end < len(text.rstrip()):
        found = _TOKEN.match(text, end)
        if found is None:  # pragma: no cover - every character is a token's
            raise UnreadableConstraintError(text)
        end = found.end()
        yield found[1]


def _expression(tokens: list[str], features: frozenset[str]) -> _Parsed:
    """Parts between & and |, which bind alike, from left to right. With counts, & joins nodes: then it is an or."""
    left = _part(tokens, features)
    while left.rest and left.rest[0] in "&|":
        operator = left.rest[0]
        right = _part(left.rest[1:], features)
        counted = left.is_counted or right.is_counted
        both = operator == "&" and not counted
        left = _Parsed(left.value and right.value if both else left.value or right.value, right.rest, counted)
    return _Parsed(left.value, left.rest)


def _part(tokens: list[str], features: frozenset[str]) -> _Parsed:
    if not tokens or tokens[0] in "&|)]":
        raise UnreadableConstraintError(" ".join(tokens))
    if tokens[0] not in "([":
        return _Parsed(_name(tokens[0]) in features, tokens[1:], "*" in tokens[0])
    inner = _expression(tokens[1:], features)
    if not inner.rest or inner.rest[0] not in ")]":
        raise UnreadableConstraintError(" ".join(tokens))
    rest = inner.rest[1:]
    if rest and re.fullmatch(r"\*\d+", rest[0]):  # (a&b)*2
        return _Parsed(inner.value, rest[1:], is_counted=True)
    return _Parsed(inner.value, rest)


def _name(token: str) -> str:
    return token.partition("*")[0]

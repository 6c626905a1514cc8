"""Slurm's node lists, such as `gpu[01-03],login1`, become names."""

import re
from collections.abc import Iterable

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetParseError

# How Slurm's programs and versions say that a job has no nodes.
_NONE = {"", "(null)", "none", "none assigned", "n/a", "unknown"}
_COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")


def expand(nodes: str) -> tuple[str, ...]:
    """The single names of a node list; none where Slurm says that there are none, or where the list is torn.

    In Slurm's order, which is that of the ranks: part by part, since a NodeSet sorts its names.

    >>> expand("gpu[08-10],cpu1")
    ('gpu08', 'gpu09', 'gpu10', 'cpu1')
    """
    text = nodes.strip()
    if text.lower() in _NONE:
        return ()
    try:
        parts = [NodeSet(part, resolver=RESOLVER_NOGROUP) for part in _COMMA_OUTSIDE_BRACKETS.split(text)]
    except NodeSetParseError:
        return ()
    return tuple(name for part in parts for name in part)


def fold(names: Iterable[str]) -> str:
    """Names as a node list, for people.

    >>> fold(["gpu1", "gpu2", "gpu3", "login1"])
    'gpu[1-3],login1'
    """
    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))

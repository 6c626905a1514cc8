"""What a script asks Slurm for: the #SBATCH lines of each of its components, read as sbatch reads them."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kd_launch.errors import SpecError
from kd_launch.slurm.fields import count_of, mib_of, seconds_of, words
from kd_launch.slurm.gres import Gpus, parse_request
from kd_launch.slurm.inventory import Memory, unfold

# Those of sbatch's short options that say what a job needs.
_SHORT = {
    "A": "account", "C": "constraint", "G": "gpus", "N": "nodes", "c": "cpus-per-task", "n": "ntasks",
    "p": "partition", "q": "qos", "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip
_SEPARATOR = re.compile(r"#SBATCH\s+(hetjob|packjob)\s*$")
_NODES_OF_STEP = ("gpus-per-node", "gres")


@dataclass(frozen=True)
class Request:
    """One component, in sbatch's words; of what is said twice the last word counts."""

    options: Mapping[str, str]
    """Long name -> value, "" for an option without one; in the order in which they were last given."""

    def get(self, name: str) -> str:
        return self.options.get(name, "")

    @property
    def partitions(self) -> tuple[str, ...]:
        """Any one of them may take the job; none: the site's default."""
        return words(self.get("partition"))

    @property
    def nodes(self) -> int:
        """The least."""
        return count_of(self.get("nodes")) or 1

    @property
    def tasks_per_node(self) -> int:
        per_node = count_of(self.get("ntasks-per-node"))
        tasks = count_of(self.get("ntasks"))
        return per_node or (-(-tasks // self.nodes) if tasks else 1)

    @property
    def cpus_per_node(self) -> int:
        return self.tasks_per_node * (count_of(self.get("cpus-per-task")) or 1)

    @property
    def gpus_per_node(self) -> tuple[Gpus, ...]:
        """Of --gpus-per-node or --gres, else a share of --gpus or --gpus-per-task."""
        for name in _NODES_OF_STEP:
            if name in self.options and (found := parse_request(self.get(name))):
                return found
        shares = [Gpus(kind, -(-count // self.nodes)) for kind, count in parse_request(self.get("gpus"))]
        per_task = [Gpus(kind, count * self.tasks_per_node) for kind, count in parse_request(self.get("gpus-per-task"))]
        return tuple(shares or per_task)

    @property
    def memory(self) -> Memory | None:
        """None: it does not say, and gets the site's default. 0 stands for all of a node's."""
        if "mem" in self.options:
            return Memory(per_node=mib_of(self.get("mem")))
        if "mem-per-cpu" in self.options:
            return Memory(per_cpu=mib_of(self.get("mem-per-cpu")))
        per_gpu = mib_of(self.get("mem-per-gpu"))
        return None if per_gpu is None else Memory(per_node=per_gpu * sum(gpus.number for gpus in self.gpus_per_node))

    @property
    def time_s(self) -> int | None:
        """None: it does not say."""
        return seconds_of(self.get("time"))

    @property
    def excluded(self) -> frozenset[str]:
        return unfold(self.get("exclude"))

    @property
    def takes_whole_nodes(self) -> bool:
        return self.options.get("exclusive") in ("", "yes")

    @property
    def requeues(self) -> bool | None:
        """None: it does not say."""
        said = [name for name in self.options if name in ("requeue", "no-requeue")]
        return said[-1] == "requeue" if said else None


def read_requests(script: str) -> tuple[Request, ...]:
    """The components of a script.

    Raises:
        SpecError: a line that sbatch could not read either.
    """
    components: list[dict[str, str]] = [{}]
    for number, line in _directives(script):
        if _SEPARATOR.match(line):
            components.append({})
            continue
        try:
            arguments = shlex.split(line.removeprefix("#SBATCH"), comments=True)
        except ValueError as error:
            raise SpecError(f"line {number} of the script, {line}: {error}") from error
        for name, value in _options(arguments):
            components[-1].pop(name, None)  # so that the order is that of the last words
            components[-1][name] = value
    return tuple(Request(options) for options in components)


def _directives(script: str) -> Iterator[tuple[int, str]]:
    """sbatch stops at the first line that is neither empty nor a comment."""
    for number, line in enumerate(script.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            return
        if re.match(r"#SBATCH(\s|$)", line):
            yield number, line.rstrip()


def _options(arguments: Iterable[str]) -> Iterator[tuple[str, str]]:
    """--name=value, --name value, -n value and -nvalue; a value follows where it does not look like an option."""
    waiting: str | None = None
    for argument in arguments:
        if waiting is not None:
            taken = not argument.startswith("-")
            yield waiting, argument if taken else ""
            waiting = None
            if taken:
                continue
        name, is_long, value = argument.removeprefix("--"), argument.startswith("--"), ""
        if is_long:
            name, equals, value = name.partition("=")
        else:
            name, value, equals = _SHORT.get(argument[1:2], argument[:2]), argument[2:], argument[2:]
        if equals:
            yield name, value
        else:
            waiting = name
    if waiting is not None:
        yield waiting, ""

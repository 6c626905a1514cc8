"""A site as the test cluster once described itself, for tests that need no Slurm; parts of it can be changed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_launch.commands import Completed, run
from kd_launch.slurm.site import Site, ask_site

FOLDER = Path(__file__).parent / "slurm_output" / "site"

Change = Callable[[str], str]


def recorded(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text()


class RecordedSlurm:
    """Answers for Slurm's programs and id; anything else really runs."""

    def __init__(self, **changes: Change) -> None:
        """`changes` by the name of what was recorded: config, partitions, nodes, associations, accounts, qos."""
        self.changes = changes
        self.groups = "kdbox\0"
        self.default_account = "kdbox|team\n"
        self.silent: dict[str, str] = {}
        """Program -> what it says to stderr, with exit code 1."""
        self.trial = (
            0,
            "sbatch: Job 9 to start at 2026-11-24T09:00:14 using 32 processors on t[1-2] in partition teach\n",
        )
        self.scripts: list[str] = []
        """What sbatch was given."""

    def __call__(self, argv: Sequence[str], *, timeout: float | None, stdin: str = "", **options: Any) -> Completed:
        assert timeout is not None
        program = argv[0]
        if program in self.silent:
            return Completed(tuple(argv), 1, "", self.silent[program])
        if program == "sbatch":
            self.scripts.append(stdin)
            return Completed(tuple(argv), self.trial[0], "", self.trial[1])
        answer = self._answer(argv)
        if answer is None:
            return run(argv, timeout=timeout, stdin=stdin, **options)
        return Completed(tuple(argv), 0, answer, "")

    def _answer(self, argv: Sequence[str]) -> str | None:
        if argv[0] == "id":
            return self.groups if argv[1] == "-Gnz" else "kdbox\n"
        if argv[0] not in ("scontrol", "sacctmgr"):
            return None
        if "user" in argv:
            return self.default_account
        names = {"config": "config", "partition": "partitions", "node": "nodes", "qos": "qos", "user=": "accounts"}
        name = next((names[word] for word in argv if word in names), "associations")
        text = recorded(f"22.05-{name}")
        return self.changes[name](text) if name in self.changes else text

    def site(self) -> Site:
        return ask_site(self)


def replaced(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change

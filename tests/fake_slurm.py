"""Slurm's programs as a Runner, for what a real Slurm cannot be made to say: odd outputs, refusals and silence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_launch.commands import Completed


@dataclass(frozen=True)
class Says:
    """What one program writes and ends with; returncode None: it gave no answer in time."""

    stdout: str = ""
    stderr: str = ""
    returncode: int | None = 0

    def completed(self, argv: Sequence[str]) -> Completed:
        problem = f"{argv[0]} gave no answer within 1 s" if self.returncode is None else None
        return Completed(tuple(argv), self.returncode, self.stdout, self.stderr, problem)


TIMED_OUT = Says(returncode=None)
LATE = Says(
    stderr="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", returncode=1
)
DOWN = Says(stderr="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", returncode=1)
Step = Says | Callable[[], Says]


@dataclass
class FakeSlurm:
    """Each program says the next of its answers, and its last one from then on; one that was given none says nothing.

    An answer may be a function, for what happens meanwhile.
    """

    answers: Mapping[str, Sequence[Step]]
    calls: list[tuple[str, ...]] = field(default_factory=list)
    environ: Mapping[str, str] = field(default_factory=dict)
    """Of the latest call."""

    def __call__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **_: Any) -> Completed:
        steps = self.answers.get(argv[0], [Says()])
        step = steps[min(len(self.called(argv[0])), len(steps) - 1)]
        self.calls.append(tuple(argv))
        self.environ = env or {}
        return (step if isinstance(step, Says) else step()).completed(argv)

    def called(self, program: str) -> list[tuple[str, ...]]:
        return [argv for argv in self.calls if argv[0] == program]

"""The application that the commands join: errors become words and exit codes here, and nowhere else."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from kd_launch import __version__
from kd_launch.errors import KdLaunchError, SpecError, printable

if TYPE_CHECKING:
    from kd_launch.preparation import Source

INTERRUPTED = 130


class Commands(TyperGroup):
    """The group of commands."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _errors_become_words():  # --help and --version answer here
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _errors_become_words():
            return super().invoke(ctx)


@contextmanager
def _errors_become_words() -> Iterator[None]:
    """What ends a command becomes a line on stderr and an exit code; a bug of ours keeps its traceback."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # closed by the caller, `>&-`
                sys.stdout.flush()
    except KdLaunchError as error:
        raise _exit(str(error), error.exit_code) from None
    except BrokenPipeError:
        _drop_stdout()
        raise typer.Exit(0) from None  # whoever read us has read enough
    except OSError as error:
        _drop_stdout()
        raise _exit(f"{error.filename or 'the answer cannot be written'}: {error.strerror or error}", 2) from None
    except UnicodeEncodeError as error:
        _drop_stdout()
        words = f"the answer holds {error.object[error.start]!r}, which stdout's encoding, {error.encoding}, lacks"
        raise _exit(f"{words}; give LC_ALL=C.UTF-8, or --output where the command has it", 2) from None
    except KeyboardInterrupt:
        raise _exit("interrupted", INTERRUPTED) from None


def _exit(message: str, code: int) -> typer.Exit:
    for line in message.split("\n") if message else ():
        say(f"error: {line}")
    return typer.Exit(code)


def say(line: str) -> None:
    """One line on stderr, in which no value can move the cursor or pass for a line of its own."""
    print(printable(line, 4000), file=sys.stderr, flush=True)


def _drop_stdout() -> None:
    """What is still in stdout's buffer goes nowhere: the interpreter would fail to write it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


app = typer.Typer(
    name="kd-launch",
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Plan, launch and follow the distillation of a large language model into a small one.",
    epilog="A first run: init, prepare, plan, check, submit. Exit codes: 0 done; 2 spec or usage is wrong; 3 does not "
    "fit, or check failed; 4 Slurm refused; 5 the run failed; 6 Slurm does not answer; 130 interrupted.",
)

# Arguments and options that several commands have.
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The spec: what to distill.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Overrides one value: training.steps=10; cluster.x=y reaches into the cluster file. Repeatable.",
    ),
]
ClusterFile = Annotated[
    Path | None, typer.Option("--cluster", metavar="FILE", help="A cluster file instead of the one the spec names.")
]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON document, for programs.")]
NewRunDir = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="The run's folder; else <run_root>/<name>-<UTC time>."),
]
RunRoot = Annotated[
    Path | None,
    typer.Option("--run-root", metavar="DIR", help="The folder of the runs; else $KD_LAUNCH_RUNS, else ./runs."),
]
_RUN = "A run's folder, its name or the beginning of it, a job id, or latest."
OneRun = Annotated[str, typer.Argument(metavar="RUN", help=_RUN, show_default=False)]
LatestRun = Annotated[str, typer.Argument(metavar="[RUN]", help=_RUN)]
AnyRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help=f"{_RUN} Without it, all runs are listed.")]
OneRole = Annotated[Literal["teacher", "student"] | None, typer.Option("--role", help="Of that role's ranks only.")]


def source_of(config: Path, settings: list[str] | None, cluster: Path | None) -> "Source":
    """The input of a command, and what surrounds it."""
    from kd_launch.preparation import Source

    return Source(config, settings or [], cluster, os.environ, current_folder())


def current_folder() -> Path:
    """Raises SpecError where somebody has removed it."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise SpecError("the current folder was removed; cd to another one") from error


def _show_version(asked: bool) -> None:
    if asked:
        print(f"kd-launch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...

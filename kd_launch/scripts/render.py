"""A plan becomes the text of its script: `script` decides, a template shows, this fills one in."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from kd_launch.cluster import Cluster
from kd_launch.errors import SpecError
from kd_launch.plan import Layout
from kd_launch.scripts.script import Script, decide
from kd_launch.spec import Spec

_PACKAGE = Path(__file__).parents[1]
PACKAGED = _PACKAGE / "slurm_templates"
BESIDE_THE_PACKAGE = _PACKAGE.with_name("slurm_templates")


def render(spec: Spec, cluster: Cluster, layout: Layout, run_dir: Path, run_name: str, python: str) -> str:
    """The script that starts a run: for sbatch, or, on a local cluster, for bash.

    Args:
        layout: of a plan for this spec and cluster.
        run_dir: absolute; need not exist.
        run_name: names the job.
        python: the interpreter inside the job, where neither pool nor cluster names one.

    Raises:
        SpecError: a value or a layout that no script can hold, or the site's own template is wrong.
    """
    script = decide(spec, cluster, layout, run_dir, run_name, python)
    own = None if cluster.template is None else Path(cluster.template)
    text = fill(own or find_template(template_name(cluster, layout)), script)
    return without_empty_lines(text) if len(script.components) > 1 else text


def without_empty_lines(text: str) -> str:
    """The text with a blank in each empty line: sbatch drops those of a heterogeneous job, even inside quotes."""
    return re.sub(r"\n(?=\n)", "\n ", text)


def template_name(cluster: Cluster, layout: Layout) -> str:
    """The file in slurm_templates that shows this layout."""
    if cluster.scheduler == "local":
        return "local.sh.j2"
    assert layout.launch is not None, "only a local layout has none"
    # Colocated ranks all have the same role: a step of one part, and none that finds its role by its rank.
    return "hetstep.sbatch.j2" if layout.colocated else f"{layout.launch}.sbatch.j2"


def find_template(name: str) -> Path:
    """A template in the installed package, else beside the source tree's package (an editable install)."""
    folder = PACKAGED if PACKAGED.is_dir() else BESIDE_THE_PACKAGE
    return folder / name


def fill(template: Path, script: Script) -> str:
    """The template's text with the script's values.

    Raises:
        SpecError: it is missing, is no Jinja2, or names a value that `Script` does not have.
    """
    # Sandboxed: to look at what a colleague's cluster file would start must not run his template's Python.
    environment = SandboxedEnvironment(
        loader=jinja2.FileSystemLoader(find_template(".")),  # for the parts that templates have in common
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = quote
    try:
        return environment.from_string(template.read_text(encoding="utf-8")).render(job=script)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{template}: cannot be read: {reason}; see `template` in the cluster file") from error
    except jinja2.TemplateSyntaxError as error:
        raise SpecError(f"{template}:{error.lineno}: {error.message}; see `template` in the cluster file") from error
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        words = f"{template}: {error}; a template's values are those of `job`, see kd_launch.scripts.script"
        raise SpecError(words) from error


def quote(value: str | int | Sequence[str]) -> str:
    """A word, or several, as bash reads them back.

    >>> print(quote("two words"), quote(["a", "$HOME"]), quote("one\\n\\nthree"))
    'two words' a '$HOME' $'one\\n\\nthree'
    """
    return " ".join(map(_quoted, value)) if isinstance(value, list | tuple) else _quoted(str(value))


def _quoted(word: str) -> str:
    if "\n\n" not in word:
        return shlex.quote(word)
    # In one line: see `without_empty_lines`.
    return "$'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

"""A plan becomes the text of its script: `script` decides, a template shows, this fills one in."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2

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
    if cluster.template is not None:
        return fill(Path(cluster.template), script)
    return fill(find_template(template_name(cluster, layout)), script)


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
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - the text is no HTML; `quote` is its escaping
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

    >>> print(quote("two words"), quote(["a", "$HOME"]))
    'two words' a '$HOME'
    """
    return shlex.join(value) if isinstance(value, list | tuple) else shlex.quote(str(value))

"""A run that goes on elsewhere: another layout for it, of which nothing changes what is learnt."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_launch import __version__
from kd_launch.decisive import decisive
from kd_launch.errors import SpecError
from kd_launch.plan import RunPlan
from kd_launch.preparation import AskSite, Source, load_and_plan


def replan(
    plan: RunPlan, settings: Sequence[str], cluster: Path | None, environ: Mapping[str, str], cwd: Path,
    ask_site: AskSite,
) -> RunPlan:  # fmt: skip
    """The run's spec, as its plan holds it, planned again.

    Args:
        settings: of --set: what shall be different, such as student.gpus=2.
        cluster: a cluster file instead of the run's.

    Raises:
        SpecError: something in them is wrong, or would change what is learnt.
        DoesNotFitError: no layout is possible.
    """
    values = {**plan.spec.model_dump(mode="json"), "cluster": plan.cluster.model_dump(mode="json")}
    text = json.dumps(values)
    # The plan's paths are expanded already: what looks like a variable in them is a name.
    literal = {name: f"${name}" for name in re.findall(r"\$([A-Za-z_][A-Za-z0-9_]*)", text)}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "spec.yaml"
        config.write_text(text)  # JSON is YAML
        source = Source(config, settings, None if cluster is None else cwd / cluster, {**environ, **literal}, cwd)
        inputs, found = load_and_plan(source, ask_site=ask_site)
    again = RunPlan(
        version=__version__, spec=inputs.spec, cluster=inputs.cluster, layout=found.chosen, tokens=plan.tokens
    )
    _refuse_other_training(plan, again)
    if again.cluster.scheduler != plan.cluster.scheduler:
        words = f"is {again.cluster.scheduler}, but the run began on {plan.cluster.scheduler}"
        raise SpecError(f"cluster.scheduler: {words}")
    return again


def _refuse_other_training(before: RunPlan, after: RunPlan) -> None:
    old, new = decisive(before), decisive(after)
    for key, value in old.items():
        if new.get(key) != value:
            raise SpecError(
                f"{key}: would become {new.get(key)}, but the run began with {value}; --replan changes where a run "
                "goes on, not what it learns: submit another run for that"
            )

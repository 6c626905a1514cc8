"""What check says to a project on a test cluster, asked as the cluster's user."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_launch.checks.finding import Finding, Place
from kd_launch.checks.preflight import check
from kd_launch.commands import Completed
from kd_launch.local.machine import read_machine
from kd_launch.preparation import Inputs, Source, load_inputs, plan_inputs
from kd_launch.run_dir import RunDir
from kd_launch.slurm.site import site_facts
from kd_launch.submission import script_text
from tests.slurm.box import Box
from tests.slurm.projects import Project


def gpu_pool(name: str, partition: str, per_node: int) -> dict[str, Any]:
    figures = {"gpu": "A100-SXM-80", "cpus_per_node": 8, "mem": "0", "inter_node_gb_per_s": 25.0}
    return {"name": name, "partition": partition, "nodes": 2, "gpus_per_node": per_node, **figures}


POOLS = (gpu_pool("big", "teach", 4), gpu_pool("small", "train", 2))
SPEC = {
    "teacher": {"pool": "big", "gpus": 8},
    "student": {"pool": "small", "gpus": 2},
    "training": {"global_batch_size": 16},
}


class Caller:
    """kd-launch's way to programs, on the cluster, as its user."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.probed: dict[tuple[str, ...], Completed] = {}
        """What the interpreter said to a question: it takes longer to start than all of Slurm's programs."""

    def __call__(
        self, argv: Sequence[str], *, timeout: float | None, stdin: str = "", env: Any = None, pass_stderr: bool = False
    ) -> Completed:
        del env, pass_stderr  # the box gives a command its own environment
        if tuple(argv) in self.probed:
            return self.probed[tuple(argv)]
        with tempfile.TemporaryFile("w+") as file:
            file.write(stdin)
            file.seek(0)
            done = self.box.call(*argv, stdin=file, timeout=timeout or 60)
        answer = Completed(tuple(argv), done.returncode, done.stdout, done.stderr)
        if "python" in Path(argv[0]).name:
            self.probed[tuple(argv)] = answer
        return answer


class Checked:
    """A project, and what check says to it with some settings."""

    def __init__(self, project: Project) -> None:
        self.project, self.run = project, Caller(project.box)

    def inputs(self, *settings: str) -> Inputs:
        source = Source(self.project.folder / "distill.yaml", settings, None, {}, self.project.folder)
        return load_inputs(source, lambda: site_facts(self.run))

    def look(self, *settings: str) -> list[Finding]:
        inputs = self.inputs(*settings)
        host = self.project.box.ask("hostname").strip()
        place = Place(read_machine(), {}, self.project.folder, self.run, host, "", lambda name: name)
        return list(check(inputs, lambda: plan_inputs(inputs).chosen, place))

    def script(self, name: str, *settings: str) -> Path:
        """Written as a user would with `render -o`, for a run that is not made."""
        inputs = self.inputs(*settings)
        text = script_text(inputs, plan_inputs(inputs).chosen, RunDir(self.project.folder / "runs" / "unmade"))
        return self.project.write(f"{name}.sbatch", text)


def wrong(found: Sequence[Finding]) -> dict[str, str]:
    return {finding.what: finding.says for finding in found if not finding.ok}

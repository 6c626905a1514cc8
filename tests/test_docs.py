"""The README shows what the tool really prints, names what really exists, and its demo is run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def kd_launch(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kd_launch.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_first_screen_is_a_sentence_a_spec_a_plan_and_the_demo() -> None:
    lines = README.read_text().splitlines()
    top = "\n".join(lines[:60])
    assert blocks("yaml")[0].split("\n", 1)[1] == (ROOT / "configs/qwen3-14b-to-1.7b.yaml").read_text()
    assert top.index("```yaml") < top.index("$ kd-launch plan") < top.index("make demo") < top.index("held-out text")


def test_the_plan_is_what_the_tool_prints_today() -> None:
    block = next(block for block in blocks("console") if block.startswith("$ kd-launch plan"))
    command, shown = block.split("\n", 1)
    done = kd_launch(*shlex.split(command)[2:])
    assert done.returncode == 0, done.stderr
    if UPDATE:
        README.write_text(README.read_text().replace(block, f"{command}\n{done.stdout}"))
    else:
        assert shown == done.stdout, "run UPDATE_GOLDEN=1 make test and read the diff"
    assert len(done.stdout.splitlines()) <= 14
    assert max(map(len, done.stdout.splitlines())) <= 100


FIGURE = r"\d\.\d{3}"


def test_the_demo_ends_as_shown_with_figures_like_those(tmp_path: Path) -> None:
    """The quickstart itself: of its three seeds one, which must beat the text alone; else it exits with 1."""
    seeds = "3" if UPDATE else "1"
    done = subprocess.run(
        [sys.executable, "configs/quickstart/demo.py", "--runs", str(tmp_path / "runs"), "--seeds", seeds],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.splitlines()[-6:]
    folder = Path(last[-1])
    assert folder.parent == tmp_path / "runs"
    assert (folder / "model" / "model.safetensors").is_file()
    shown = next(block for block in blocks("text") if block.startswith("held-out text")).splitlines()
    if UPDATE:
        generic = [*last[:-1], f"/home/you/kd-launch/runs/{folder.name}"]
        README.write_text(README.read_text().replace("\n".join(shown), "\n".join(generic)))
        return
    shown = [re.sub(rf" \+- {FIGURE}", "", line) for line in shown]
    shown = [line.replace("seeds 0, 1, 2", "seeds 0").replace("3 of 3 seeds", "1 of 1 seeds") for line in shown]
    assert [re.sub(FIGURE, "#", line) for line in last[:-1]] == [re.sub(FIGURE, "#", line) for line in shown[:-1]]
    found, expected = (
        [float(figure) for line in lines[:-1] for figure in re.findall(FIGURE, line)] for lines in (last, shown)
    )
    # Another Python brings another standard library, another processor another rounding.
    assert found == [pytest.approx(figure, abs=0.1) for figure in expected]


def test_the_house_shown_is_the_house() -> None:
    tree = next(block for block in blocks("text") if block.startswith("kd_launch/"))
    shown = set(re.findall(r"[a-z_]+(?:\.py|/)", tree)) - {"kd_launch/"}
    real = {path.name for path in (ROOT / "kd_launch").rglob("*.py")} - {"__init__.py"}
    real |= {f"{path.parent.name}/" for path in (ROOT / "kd_launch").rglob("__init__.py")} - {"kd_launch/"}
    assert shown == real


def test_every_command_in_the_readme_exists() -> None:
    listed = kd_launch("--help").stdout
    named = set(re.findall(r"(?:^|`|\$ )kd-launch ([a-z]+)", README.read_text(), re.MULTILINE))
    assert named >= {"init", "prepare", "plan", "check", "submit", "status", "logs", "cancel", "schema"}
    for command in named:
        assert re.search(rf"^│ {command} ", listed, re.MULTILINE), command
        assert kd_launch(command, "--help").returncode == 0


def test_the_first_five_commands_work_on_what_init_writes(tmp_path: Path) -> None:
    lines = [line.split("#")[0] for line in blocks("sh")[1].splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("kd-launch")]
    assert [command[0] for command in commands] == ["init", "prepare", "plan", "check", "submit"]
    init, _, plan, _, submit = commands
    assert kd_launch(*init, "--local", cwd=tmp_path).returncode == 0
    # prepare and check need the models; with small ones they are tested beside their modules.
    small = ["--set", "teacher.model=Qwen/Qwen3-0.6B", "--set", "student.model=HuggingFaceTB/SmolLM2-135M"]
    small += ["--set", "data.sequence_length=64", "--set", "training.global_batch_size=4"]
    done = kd_launch(*plan, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kd_launch(*submit, *small, cwd=tmp_path).stdout.startswith("#!/bin/bash")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target

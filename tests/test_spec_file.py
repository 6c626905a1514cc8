"""YAML's oddities: each is a line with its place, never a traceback and never a long wait."""

import json
from pathlib import Path

import pytest
from conftest import Project

from kd_launch.errors import SpecError
from kd_launch.reading.document import parse
from kd_launch.reading.spec_file import load


def anchors(levels: int) -> str:
    """A few hundred bytes that stand for 9^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "f.yaml: is empty"),
        ("- a", "f.yaml:1: must be a mapping"),
        ("a:\n\tb: 1", "f.yaml:2: is no YAML"),
        ("a: 1\nb: 2\na: 3", "f.yaml:3: a: stands twice; the first is at line 1"),
        ("a: &a {b: *a}", "f.yaml:1: is nested more than 20 levels deep"),
        (anchors(9), "holds more than 10000 values"),
        ("a: 1\nnull: 2", "f.yaml:2: keys must be plain words"),
        ("a: 1\n7: 2", "f.yaml:2: keys must be plain words"),
        ("true: 2", "f.yaml:1: keys must be plain words"),
        ("!!merge <<: {a: 1}", "f.yaml:1: keys must be plain words"),
        ("a: !!python/name:os", "f.yaml:1: is no YAML"),
        ("a: 1\n---\nb: 2", "f.yaml:2: is no YAML"),
    ],
)
def test_what_no_spec_needs_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse("f.yaml", text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.steps=&a [*a]", "nested more than 20 levels deep"),
        ("student={a: 1, a: 2}", "a: stands twice"),
        ("training.steps=[1", "the value is no YAML"),
        ("training={1: 2}", "keys must be plain words"),
        ("training.steps=", "training.steps: is null but must be a whole number"),
    ],
)
def test_odd_values_on_the_command_line(project: Project, setting: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(project.config, [setting], environ={}, cwd=project.folder)
    assert str(caught.value).startswith("--set ")
    assert words in str(caught.value)


def test_a_rule_of_a_unions_branch_is_said_alone(project: Project) -> None:
    kept = ["student.model=null", "student.start_from={teacher_layers: [2, 0]}"]
    with pytest.raises(SpecError) as caught:
        load(project.config, kept, environ={}, cwd=Path("/"))
    assert str(caught.value).endswith(": teacher_layers must increase; they are [2, 0]")


def test_a_cluster_file_is_named_by_who_named_it(project: Project) -> None:
    for option, words in ((Path("nope.yaml"), "--cluster: "), (None, f"{project.config}:1: cluster: ")):
        settings = [] if option else ["cluster=nope.yaml"]
        with pytest.raises(SpecError) as caught:
            load(project.config, settings, option, environ={}, cwd=project.folder)
        start = words if option else "--set cluster=nope.yaml: cluster: "
        assert str(caught.value).startswith(start)
        assert "nope.yaml: no such file" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("name=..", "name: is '..' but must be letters, digits, '.', '_' and '-', not '.' or '-' first"),
        ("name=.", "name: is '.' but"),
        ("name=-x", "name: is '-x' but"),
        ("training.steps=1000000000000000", "is 1000000000000000 but must be <= 1000000000"),
        (f"training.steps={10**400}", "training.steps: is 1000"),
        ("cluster.pools.0.nodes=1000000", "pools.0.nodes: is 1000000 but must be <= 16384"),
        ("cluster.pools.0.name=a\x1b[2J", "the value is no YAML"),
        ('cluster.pools.0.name="a\\e[2J\\n"', r"is 'a\x1b[2J\n' but must be"),
        (f"teacher.{'x' * 5000}=1", f"teacher.{'x' * 77}...: is no key here"),
        ("data.train.x=1", "data.train"),
        ("student=[1]", "student: is [1] but must be a mapping"),
    ],
)
def test_a_value_that_no_run_can_have(project: Project, setting: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(project.config, [setting], environ={}, cwd=project.folder)
    assert words in str(caught.value)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


@pytest.mark.parametrize("good", ["90", "90:30", "08:00:00", "1-12", "2-00:00", "2-00:00:00", "120:00:00"])
def test_times_of_slurm(project: Project, good: str) -> None:
    found = load(project.config, [f"cluster.time_limit='{good}'"], environ={}, cwd=project.folder)
    assert found.cluster.time_limit == good


@pytest.mark.parametrize("bad", ["٩٠", "1:2:3:4", "9" * 30, "-1", "1h", "90\n", "1-", ""])
def test_times_that_slurm_does_not_read(project: Project, bad: str) -> None:
    with pytest.raises(SpecError, match=r"time_limit: is .* but must be a time of Slurm's"):
        load(project.config, [f"cluster.time_limit={json.dumps(bad)}"], environ={}, cwd=project.folder)

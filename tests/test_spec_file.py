"""YAML's oddities: each is a line with its place, never a traceback and never a long wait."""

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

"""The options of plan on the command line: --explain with and without a number, --sweep, --plot."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kd_launch.cli.__main__ import app

QUICKSTART = str(Path(__file__).resolve().parents[1] / "configs/quickstart.yaml")


def plan(*arguments):
    return CliRunner().invoke(app, ["plan", *arguments])


def explained(*arguments):
    return json.loads(plan(*arguments, "--json").stdout)["explanation"]


@pytest.mark.parametrize(
    "arguments",
    [(QUICKSTART, "--explain", "2"), ("--explain", "2", QUICKSTART), ("--explain=2", QUICKSTART)],
)
def test_a_number_may_stand_before_or_after_the_config(arguments):
    assert explained(*arguments)["number"] == 2


@pytest.mark.parametrize("arguments", [(QUICKSTART, "--explain"), ("--explain", QUICKSTART)])
def test_without_a_number_the_choice_is_explained(arguments):
    whole = json.loads(plan(*arguments, "--json").stdout)
    assert whole["explanation"]["layout"] == whole["chosen"]


def test_nothing_is_explained_unasked():
    assert explained(QUICKSTART) is None


def test_wrong_numbers_are_refused():
    for number in ("999", "-1"):
        done = plan(QUICKSTART, "--explain", number)
        assert done.exit_code == 2
        assert f"{number} is no candidate; legal: 1 to " in done.stderr


def test_a_sweep_is_one_document_and_one_drawing(tmp_path):
    done = plan(QUICKSTART, "--sweep", "micro_batch=1..4", "--json", "--plot", str(tmp_path / "a.svg"))
    assert [point["value"] for point in json.loads(done.stdout)["points"]] == [1, 2, 4]
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_a_wrong_sweep_is_refused():
    done = plan(QUICKSTART, "--sweep", "nodes=1..4")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --sweep: a local cluster has one node")

"""Models and data from a hub: downloaded once, safetensors only, and then found without network."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .hub_server import commit_of, hub
from .prepare_requests import Outcome, make_request, run_many, run_one
from .tiny_models import PLAIN, byte_tokenizer, model_folder

HUB_DATA = {"hub": "owner/texts"}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = model_folder(tmp_path_factory.mktemp("hub") / "m", byte_tokenizer(chat_template=PLAIN))
    small = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = {"pytorch_model.bin": b"pickle", "code.py": b"code", "original/consolidated.safetensors": b"twice"}
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    return {
        "models/owner/model": {**small, **other, "model.safetensors": b"weights"},
        "models/owner/pickled": {**small, **other},
        "models/owner/torn": {**small, "one.safetensors": b"weights", "model.safetensors.index.json": index},
        "datasets/owner/texts": {
            "data/train.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
            "data/test.jsonl": b'{"text": "three"}\n',
            "README.md": b"---\nlicense: apache-2.0\n---\n",
        },
        "datasets/owner/numbers": {"train.jsonl": b'{"text": 1}\n'},
    }


@pytest.fixture
def endpoint(repositories: dict[str, dict[str, bytes]]) -> Iterator[str]:
    with hub(repositories) as address:
        yield address


def online(endpoint: str, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def cached(home: Path) -> set[str]:
    """The files of all snapshots of models in the cache."""
    return {path.name for path in (home / "hub").glob("models--*/snapshots/*/**/*") if path.is_file()}


def test_models_and_data_are_brought_once_and_then_found_without_network(
    tmp_path: Path, endpoint: str, repositories: dict[str, dict[str, bytes]]
) -> None:
    home, runs = tmp_path / "home", tmp_path / "runs"
    request = make_request(runs, "owner/model", HUB_DATA, data__eval={**HUB_DATA, "split": "test"})
    first = run_one(request, **online(endpoint, home))
    assert [header["documents"] for header in first.answer["stores"]] == [2, 1]
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= cached(home)
    assert not {"pytorch_model.bin", "code.py", "consolidated.safetensors"} & cached(home)
    references = [path.read_text() for path in (home / "hub").glob("datasets--*/refs/main")]
    assert references == [commit_of(repositories["datasets/owner/texts"])]
    # Offline all is found again; where the hub is only out of reach, too; and another store is built from the cache.
    again = run_one(request, HF_HOME=str(home))
    assert again.answer == {**first.answer, "created": False}
    request["spec"]["data"]["sequence_length"] = 32
    other = run_one(request, **online("http://127.0.0.1:9", home))
    assert other.answer["created"] is True
    assert [header["documents"] for header in other.answer["stores"]] == [2, 1]
    request["spec"]["teacher"]["model"] = "owner/none"
    lost = run_one(request, **online("http://127.0.0.1:9", home))
    assert re.search("'owner/none' is no folder, .* from the hub: http://127.0.0.1:9 does not answer: ", lost.stderr)


def test_a_random_student_needs_no_weights(tmp_path: Path, endpoint: str) -> None:
    data = tmp_path / "x.txt"
    data.write_text("text")
    changes: dict[str, Any] = {"student__model": "owner/pickled", "student__start_from": "random"}
    outcome = run_one(make_request(tmp_path, "owner/model", data, **changes), **online(endpoint, tmp_path / "home"))
    assert outcome.answer["created"] is True


def test_what_the_hub_cannot_give_is_one_line(tmp_path: Path, endpoint: str) -> None:
    data = tmp_path / "x.txt"
    data.write_text("text")
    folder = model_folder(tmp_path / "m", byte_tokenizer())

    def request(model: Any = folder, train: Any = data, **changes: Any) -> dict[str, Any]:
        return make_request(tmp_path / "runs", model, train, **changes)

    cases = {
        "no model": (request("owner/none"), "teacher.model|student.model: 'owner/none' is no folder, .*404"),
        "revision": (
            request(teacher__model="owner/model", teacher__revision="v9"),
            "teacher.model: 'owner/model' at revision 'v9' is no folder, .* does not come from the hub: .*404",
        ),
        "no safetensors": (
            request(teacher__model="owner/pickled"),
            r"teacher.model: 'owner/pickled' has no model.safetensors .*; only safetensors are loaded",
        ),
        "missing part": (request(teacher__model="owner/torn"), "'owner/torn' has no two.safetensors"),
        "no data set": (request(train={"hub": "owner/none"}), "data.train: hub data set 'owner/none' cannot be loaded"),
        "no split": (request(train={**HUB_DATA, "split": "dev"}), "'owner/texts' cannot be loaded: .*dev"),
        "no config": (request(train={**HUB_DATA, "config": "de"}), "'owner/texts' cannot be loaded: .*de"),
        "no field": (
            request(train=HUB_DATA, data__text_field="body"),
            r"owner/texts \(train\): has no field 'body' \(data.text_field\); it has 'text'",
        ),
        "wrong type": (
            request(train={"hub": "owner/numbers"}),
            r"owner/numbers \(train\) row 0: field 'text' is a number, not text",
        ),
    }
    variables = online(endpoint, tmp_path / "home")
    outcomes = run_many(tmp_path, {name: case for name, (case, _) in cases.items()}, **variables)
    for name, (_, words) in cases.items():
        check_refused(name, outcomes[name], words)


def check_refused(name: str, outcome: Outcome, words: str) -> None:
    assert (outcome.exit_code, outcome.stdout) == (2, ""), (name, outcome)
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, (name, outcome)
    assert re.search(words, lines[0]), (name, lines[0])
    assert "Traceback" not in outcome.stderr

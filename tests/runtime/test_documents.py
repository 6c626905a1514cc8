"""Files that no memory holds, and code that nobody asked for."""

import json
from pathlib import Path

import pytest

from kd_launch.errors import SpecError
from kd_launch.runtime import documents
from kd_launch.runtime.documents import read_files
from kd_launch.runtime.models import load_config
from kd_launch.runtime.tokenizer_pair import load_tokenizer
from kd_launch.sources import ModelFiles
from kd_launch.spec import Data, Teacher

from .tiny_models import byte_tokenizer, model_folder

LONG = "x" * 200


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", f'{{"text": "x"}}\n{{"text": "{LONG}"}}', r"a\.jsonl:2: the line is longer than .* line breaks\?"),
        ("a.txt", LONG, r"a\.txt: has .* are read as one piece; split it, or write its documents as JSON lines"),
        ("a.json", f'[{{"text": "{LONG}"}}]', r"a\.json: has .*; write its items as JSON lines"),
    ],
)
def test_one_giant_piece_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, words: str
) -> None:
    monkeypatch.setattr(documents, "MOST_BYTES", 100)
    (tmp_path / name).write_text(content)
    with pytest.raises(SpecError, match=words):
        list(read_files([tmp_path / name], Data(train="x")))


def test_no_code_of_a_model_runs_unless_the_spec_trusts_it(tmp_path: Path) -> None:
    folder, canary = model_folder(tmp_path / "model", byte_tokenizer()), tmp_path / "canary"
    for name in ("configuration_own.py", "tokenization_own.py", "modeling_own.py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    for name, kinds in (
        ("config.json", {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_own.Own", None]}),
    ):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, "auto_map": kinds}))
    load_tokenizer(ModelFiles("teacher.model", str(folder), None, False))
    load_config(Teacher(model=str(folder)), "teacher.model")
    assert not canary.exists()
    with pytest.raises(SpecError, match="cannot be loaded"):
        load_tokenizer(ModelFiles("teacher.model", str(folder), None, True))
    assert canary.exists()

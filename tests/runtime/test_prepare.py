"""prepare from the outside: what it writes for each format, what it refuses and how, and that nothing is half done."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_launch.errors import SpecError
from kd_launch.runtime.data import Rows, Store
from kd_launch.runtime.store_writer import ABANDONED_S, partial_folder, publish, remove_abandoned
from kd_launch.runtime.tokenizer_pair import PROBE, common_tokens, different_token, refuse_different
from kd_launch.spec import Spec
from kd_launch.tokens import expected_stores, is_complete

from .bad_input import TALK, bad_requests
from .prepare_requests import environment, make_request, prepare_here, run_many, run_one, write_lines
from .tiny_models import MARKED, NO_PREFIX, PLAIN, STRICT, byte_tokenizer, model_folder

TEXTS = ["first text", "a second, longer text: " + "lorem ipsum " * 20, "é", "日本語のテキスト", "last"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders, by what is special about them."""
    folder = tmp_path_factory.mktemp("models")
    model_folder(folder / "plain", byte_tokenizer(chat_template=PLAIN))
    model_folder(folder / "marked", byte_tokenizer(chat_template=MARKED))
    model_folder(folder / "no-prefix", byte_tokenizer(chat_template=NO_PREFIX))
    model_folder(folder / "strict", byte_tokenizer(chat_template=STRICT))
    model_folder(folder / "begin", byte_tokenizer(begin=True))
    model_folder(folder / "nameless", byte_tokenizer(named=False))
    model_folder(folder / "swapped", byte_tokenizer(swap=("a", "b")))
    model_folder(folder / "more", byte_tokenizer(more=("<think>",)), vocabulary=400)
    model_folder(folder / "merging", byte_tokenizer(merges=[("t", "h")], merged=("th",)))
    model_folder(folder / "unmerging", byte_tokenizer(merged=("th",)))
    model_folder(folder / "short", byte_tokenizer(chat_template=PLAIN), positions=32)
    model_folder(folder / "bare")
    model_folder(folder / "small", byte_tokenizer(), vocabulary=100)
    (model_folder(folder / "broken", byte_tokenizer()) / "tokenizer.json").write_text("{")
    (model_folder(folder / "no-config", byte_tokenizer()) / "config.json").unlink()
    (model_folder(folder / "broken-config", byte_tokenizer()) / "config.json").write_text('{"model_type": ')
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """TEXTS as JSON lines, with an empty line and an empty text."""
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    return write_lines(tmp_path / "texts.jsonl", *rows, "", '{"text": ""}')


def documents(rows: Rows) -> Iterator[tuple[list[int], list[bool]]]:
    """(ids, loss) of every document of a store's rows, padding too."""
    for ids, positions, loss in zip(*rows, strict=True):
        edges = [*np.flatnonzero(positions == 0).tolist(), len(ids)]
        for start, end in pairwise(edges):
            yield ids[start:end].tolist(), loss[start:end].tolist()


def texts_of(folder: str) -> list[str]:
    """The documents of a store as text, sorted, without padding."""
    store, tokenizer = Store.open(Path(folder)), byte_tokenizer()
    found = documents(store.rows(np.arange(len(store))))
    return sorted(tokenizer.decode(ids) for ids, _ in found if set(ids) != {tokenizer.pad_token_id})


def pieces_of(text: str) -> list[str]:
    """A text, of one byte a character where it is long, as the documents that it becomes in rows of 64 tokens."""
    tokens = [*text, "<|end|>"]
    return ["".join(tokens[start : start + 64]) for start in range(0, len(tokens), 64)]


PIECES = sorted(piece for text in TEXTS for piece in pieces_of(text))
TOKENS = sum(len(text.encode()) + 1 for text in TEXTS)


def folders(path: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones too."""
    return sorted(inner.name for inner in path.iterdir() if inner.is_dir())


def run_program(program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, **options)


def request_file(folder: Path, request: dict[str, Any]) -> str:
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    return str(path)


# --- what is written


@pytest.mark.parametrize("packing", [True, False])
def test_a_text_becomes_documents_that_end_and_are_cut_where_they_are_long(
    tmp_path: Path, models: Path, texts: Path, packing: bool
) -> None:
    answer = prepare_here(make_request(tmp_path, models / "plain", texts, data__packing=packing))
    assert texts_of(answer["train"]) == PIECES
    (header,) = answer["stores"]
    assert (answer["created"], answer["eval"], header["kind"]) == (True, None, "text")
    assert (header["documents"], header["dropped"], header["truncated"]) == (len(TEXTS) + 1, 1, 0)
    assert (header["tokens"], header["loss_tokens"]) == (TOKENS, TOKENS - len(PIECES))
    assert (header["sequences"] == len(PIECES)) == (not packing)
    store = Store.open(Path(answer["train"]))
    for ids, loss in documents(store.rows(np.arange(len(store)))):
        padding = set(ids) == {byte_tokenizer().pad_token_id}
        assert loss == [not padding] * (len(ids) - 1) + [False]


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path, models: Path, texts: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "mark.jsonl").write_bytes(b"\xef\xbb\xbf" + texts.read_bytes())
    (tmp_path / "list.json").write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    (tmp_path / "lines.json").write_bytes(texts.read_bytes())
    pq.write_table(pa.table({"id": range(5), "text": TEXTS}), tmp_path / "rows.parquet", row_group_size=2)
    (tmp_path / "whole").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / f"whole/{i}.{('txt', 'py', 'md')[i % 3]}").write_text(text)
    patterns = [f"{tmp_path}/whole/[0-2]*", f"{tmp_path}/whole/[34]*"]
    for source in ("mark.jsonl", "list.json", "lines.json", "rows.parquet", "whole", patterns):
        train = source if isinstance(source, list) else tmp_path / source
        assert texts_of(prepare_here(make_request(tmp_path, models / "plain", train))["train"]) == PIECES, source


def test_the_tokenizer_decides_about_the_beginning_and_the_end(tmp_path: Path, models: Path, texts: Path) -> None:
    begun = texts_of(prepare_here(make_request(tmp_path, models / "begin", texts))["train"])
    assert sum(text.startswith("<|begin|>") for text in begun) == len(TEXTS)
    assert sum(text.endswith("<|end|>") for text in begun) == len(TEXTS)
    nameless = texts_of(prepare_here(make_request(tmp_path, models / "nameless", texts))["train"])
    # Padding is id 0 there, which is <|end|>: no text of its own ends with it.
    assert {text for text in nameless if text.strip("<|end>")} == {piece.removesuffix("<|end|>") for piece in PIECES}


def test_the_text_field_is_the_specs(tmp_path: Path, models: Path) -> None:
    data = write_lines(tmp_path / "x.jsonl", {"body": "xyz", "text": "no"})
    answer = prepare_here(make_request(tmp_path, models / "plain", data, data__text_field="body"))
    assert texts_of(answer["train"]) == ["xyz<|end|>"]


@pytest.mark.parametrize("model", ["plain", "marked"])
def test_conversations_are_cut_or_dropped_and_counted(tmp_path: Path, models: Path, model: str) -> None:
    long = [TALK[0], {"role": "assistant", "content": "x" * 90}]
    late = [{"role": "user", "content": "y" * 90}, TALK[1]]
    data = write_lines(tmp_path / "x.jsonl", *({"messages": messages} for messages in (TALK, TALK[:1], long, late)))
    answer = prepare_here(make_request(tmp_path, models / model, data, data__format="chat"))
    asked = "<|user|>what?<|end|><|assistant|>"
    assert texts_of(answer["train"]) == sorted([asked + "this<|end|>", asked + "x" * 56])
    (header,) = answer["stores"]
    assert (header["documents"], header["truncated"], header["dropped"]) == (4, 2, 2)
    assert header["loss_tokens"] == len("this") + 1 + 56


def test_conversations_come_from_parquet_too(tmp_path: Path, models: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    talks = [TALK, [{"role": "system", "content": "s", "name": "n"}, *TALK]]
    pq.write_table(pa.table({"talk": talks, "id": [1, 2]}), tmp_path / "x.parquet")
    changes = {"data__format": "chat", "data__messages_field": "talk"}
    answer = prepare_here(make_request(tmp_path, models / "plain", tmp_path / "x.parquet", **changes))
    whole = "<|user|>what?<|end|><|assistant|>this<|end|>"
    assert texts_of(answer["train"]) == sorted([whole, "<|system|>s<|end|>" + whole])


@pytest.mark.parametrize("model", ["plain", "bare"])
def test_rows_of_tokens_stay_as_they_are(tmp_path: Path, models: Path, model: str) -> None:
    rows = np.arange(300 * 64).reshape(300, 64) % 320
    np.save(tmp_path / "a.npy", rows[:290].astype(np.uint16))
    np.save(tmp_path / "b.npy", rows[290:])
    answer = prepare_here(make_request(tmp_path, models / model, f"{tmp_path}/*.npy", data__format="tokens"))
    store = Store.open(Path(answer["train"]))
    found = store.rows(np.arange(300))
    assert np.array_equal(found.ids, rows)
    assert np.array_equal(found.positions, np.tile(np.arange(64), (300, 1)))
    assert found.loss[:, :-1].all()
    assert not found.loss[:, -1].any()
    assert (store.header.loss_tokens, store.header.tokens, store.header.vocabulary) == (300 * 63, 300 * 64, 320)


def test_held_out_data_has_a_store_of_its_own_unless_it_is_the_same(tmp_path: Path, models: Path, texts: Path) -> None:
    held_out = write_lines(tmp_path / "eval.jsonl", {"text": "held out"})
    answer = prepare_here(make_request(tmp_path, models / "plain", texts, data__eval=held_out))
    assert texts_of(answer["train"]) == PIECES
    assert texts_of(answer["eval"]) == ["held out<|end|>"]
    assert [header["documents"] for header in answer["stores"]] == [len(TEXTS) + 1, 1]
    same = prepare_here(make_request(tmp_path, models / "plain", texts, data__eval=texts))
    assert same["train"] == same["eval"] == answer["train"]
    assert same["stores"] == [answer["stores"][0]] * 2
    assert same["created"] is False


def test_models_that_share_a_tokenizer_share_a_store_of_what_both_know(
    tmp_path: Path, models: Path, texts: Path
) -> None:
    changes: list[dict[str, Any]] = [
        {"student__model": models / "more"},
        {"student__model": None, "student__start_from": {"teacher_layers": [0]}},
        {"student__start_from": "random"},
    ]
    answers = [prepare_here(make_request(tmp_path, models / "plain", texts, **change)) for change in changes]
    assert [texts_of(answer["train"]) for answer in answers] == [PIECES] * 3
    assert [answer["stores"][0]["vocabulary"] for answer in answers] == [262] * 3
    assert answers[1]["train"] == answers[2]["train"] != answers[0]["train"]


# --- what is refused


def test_bad_input_is_one_line_with_exit_code_2_and_leaves_nothing(tmp_path: Path, models: Path) -> None:
    cases = bad_requests(tmp_path, models)
    outcomes = run_many(tmp_path, {name: request for name, (request, _) in cases.items()})
    for name, (_, words) in cases.items():
        outcome = outcomes[name]
        assert outcome.exit_code == 2, (name, outcome)
        assert outcome.stdout == "", name
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("error: "), name
        assert re.search(words, line), (name, line)
        assert len(line) < 600, name
    root = tmp_path / "runs/tokens"
    (left,) = folders(root)  # the training data beside an empty eval file: whole, so it stays
    assert is_complete(root / left)


def test_the_program_answers_and_fails_in_one_line(tmp_path: Path, models: Path, texts: Path) -> None:
    outcome = run_one(make_request(tmp_path / "runs", models / "plain", texts))
    assert outcome.stderr == ""
    assert texts_of(outcome.answer["train"]) == PIECES
    failed = run_one(make_request(tmp_path / "runs", models / "plain", tmp_path / "none.txt"))
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert failed.stderr == f"error: data.train: no file matches '{tmp_path}/none.txt'\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["a", "b"], "usage: .*, but 2 arguments were given"), (["/nowhere"], "/nowhere: No such file or directory")],
)
def test_usage(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "kd_launch.runtime.prepare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {words}\n", done.stderr)


# --- tokenizers


def test_tokenizers_that_differ_by_tokens_at_the_end_go_together() -> None:
    plain, more = byte_tokenizer(), byte_tokenizer(more=("<think>", "</think>"))
    refuse_different(plain, more)
    refuse_different(more, plain)
    assert common_tokens(plain, more) == common_tokens(more, plain) == len(plain) == len(more) - 2


def test_the_first_different_token_is_named() -> None:
    base = {token: i for i, token in enumerate("abcdef")}
    assert different_token(base, base) is None
    assert different_token(base, {**base, "g": 6, "h": 9}) is None
    swapped = different_token({**base, "b": 2, "c": 1}, base)
    assert swapped == "id 1 is 'c' for the student but 'b' for the teacher"
    # A hole below the smaller one's length, and a token of both beyond it.
    hole = different_token({**base, "y": 8}, {**base, "z": 6})
    assert hole == "id 6 is no token for the student but 'z' for the teacher"
    moved = different_token(base, {**base, "f": 8, "g": 5})
    assert moved == "id 5 is 'f' for the student but 'g' for the teacher"
    beyond = different_token({**base, "x": 6, "y": 7}, {**base, "y": 9})
    assert beyond == "id 6 is 'x' for the student but no token for the teacher"
    far = different_token({**base, "y": 9}, {**base, "y": 8})
    assert far == "token 'y' is id 9 for the student but 8 for the teacher"


def test_tokenizers_with_one_vocabulary_are_told_apart_by_what_they_make_of_text() -> None:
    merging, unmerging = byte_tokenizer(merges=[("Ð", "·")], merged=("Ð·",)), byte_tokenizer(merged=("Ð·",))
    with pytest.raises(SpecError, match=r"of a text in many scripts is 'Ð' for the student but 'Ð·' for the teacher"):
        refuse_different(unmerging, merging)


def test_the_probe_text_has_many_scripts() -> None:
    scripts = {unicodedata.name(character, "?").split()[0] for character in PROBE}
    wanted = "LATIN GREEK CYRILLIC HEBREW ARABIC DEVANAGARI THAI CJK HIRAGANA HANGUL"
    assert set(wanted.split()) <= scripts
    assert unicodedata.normalize("NFC", PROBE) != PROBE


# --- whole or not at all


def test_a_second_time_nothing_is_loaded_or_done(tmp_path: Path, models: Path, texts: Path) -> None:
    request = make_request(tmp_path / "runs", models / "plain", texts)
    first = prepare_here(request)
    before = {path: path.stat().st_mtime_ns for path in Path(first["train"]).rglob("*")}
    program = (
        "import sys\nfrom kd_launch.runtime.prepare import main\nassert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)\n"
    )
    done = run_program(program, request_file(tmp_path, request))
    assert done.stderr == ""
    assert json.loads(done.stdout) == {**first, "created": False}
    assert {path: path.stat().st_mtime_ns for path in Path(first["train"]).rglob("*")} == before


def test_the_same_content_gives_the_same_bytes_elsewhere(tmp_path: Path, models: Path) -> None:
    stores = []
    for place in ("one", "two"):
        data = write_lines(tmp_path / place / "x.jsonl", *({"text": text * 3} for text in TEXTS * 200))
        request = make_request(tmp_path / place / "runs", models / "plain", data)
        stores.append(Path(prepare_here(request)["train"]))
        spec = Spec.model_validate_json(json.dumps(request["spec"]))
        assert expected_stores(spec, tmp_path / place / "runs").train == str(stores[-1])
    assert stores[0].name == stores[1].name
    for file in stores[0].iterdir():
        assert file.read_bytes() == (stores[1] / file.name).read_bytes()


def test_a_damaged_store_is_built_again(tmp_path: Path, models: Path, texts: Path) -> None:
    request = make_request(tmp_path / "runs", models / "plain", texts)
    store = Path(prepare_here(request)["train"])
    (store / "ids.npy").write_bytes(b"")
    assert prepare_here(request)["created"] is True
    assert texts_of(str(store)) == PIECES
    assert folders(store.parent) == [store.name]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, models: Path) -> None:
    data = write_lines(tmp_path / "x.jsonl", *({"text": "lorem ipsum " * 500} for _ in range(60)))
    request = make_request(tmp_path / "runs", models / "plain", data)

    def limit() -> None:  # a write beyond this fails as on a full disk, with another reason
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    program = "import sys\nfrom kd_launch.runtime.prepare import main\nsys.exit(main(sys.argv[1:]))"
    done = run_program(program, request_file(tmp_path, request), preexec_fn=limit)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/runs/tokens/")
    assert "File too large; free space there, or set run_root" in line
    assert folders(tmp_path / "runs/tokens") == []


def test_what_a_killed_prepare_leaves_is_hidden_and_removed_by_the_next_one(
    tmp_path: Path, models: Path, texts: Path
) -> None:
    request, root = make_request(tmp_path / "runs", models / "plain", texts), tmp_path / "runs/tokens"
    program = (
        "import os, signal, sys\nfrom kd_launch.runtime import prepare\n"
        "prepare.write_header = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nprepare.main(sys.argv[1:])\n"
    )
    assert run_program(program, request_file(tmp_path, request)).returncode == -signal.SIGKILL
    (partial,) = root.iterdir()
    assert partial.name.startswith(".")
    assert {file.name for file in partial.iterdir()} == {"ids.npy", "positions.npy", "loss.npy", "loss_tokens.npy"}
    store = Path(prepare_here(request)["train"])
    assert folders(root) == [store.name]


def test_partial_folders_of_the_living_stay_and_of_other_machines_go_after_a_day(tmp_path: Path) -> None:
    store = tmp_path / "tokens/abc123"
    with partial_folder(store) as mine:
        now = time.time()
        elsewhere = store.with_name(".abc123.00000000.1.partial")
        elsewhere.mkdir()
        (elsewhere / "ids.npy").touch()
        foreign = store.with_name(".something.partial")
        foreign.mkdir()
        remove_abandoned(store.parent, now)
        assert folders(store.parent) == sorted([mine.name, elsewhere.name, foreign.name])
        remove_abandoned(store.parent, now + ABANDONED_S + 60)
        assert folders(store.parent) == sorted([mine.name, foreign.name])
    assert not mine.exists()


def test_who_finishes_first_wins(tmp_path: Path, models: Path, texts: Path) -> None:
    store = Path(prepare_here(make_request(tmp_path / "runs", models / "plain", texts))["train"])
    with partial_folder(store) as late:
        for file in store.iterdir():
            (late / file.name).write_bytes(file.read_bytes())
        before = store.stat().st_ino
        assert publish(late, store) is False
        assert store.stat().st_ino == before
    assert not late.exists()


def test_two_at_once_give_one_store(tmp_path: Path, models: Path, texts: Path) -> None:
    request = make_request(tmp_path / "runs", models / "plain", texts)
    with ThreadPoolExecutor(2) as pool:
        answers = [outcome.answer for outcome in pool.map(run_one, [request, request])]
    assert answers[0]["stores"] == answers[1]["stores"]
    assert folders(tmp_path / "runs/tokens") == [Path(answers[0]["train"]).name]


def test_data_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, models: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd_launch.runtime import prepare

    build = prepare.build_store

    def slow(*arguments: Any) -> Any:
        counts = build(*arguments)
        with texts.open("a") as file:
            file.write('{"text": "late"}\n')
        return counts

    monkeypatch.setattr(prepare, "build_store", slow)
    with pytest.raises(
        SpecError, match=r"^data\.train: a file of the data or of a tokenizer changed while it was read"
    ):
        prepare_here(make_request(tmp_path / "runs", models / "plain", texts))
    assert folders(tmp_path / "runs/tokens") == []

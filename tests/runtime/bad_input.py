"""Requests that prepare must refuse, by name, with a pattern of what the error says."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .prepare_requests import Request, make_request, write_lines

Cases = dict[str, tuple[Request | str, str]]
Make = Callable[..., Request]

TALK = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "this"}]


def bad_requests(folder: Path, models: Path) -> Cases:
    """All of them; their files are written below `folder`."""

    def request(train: Any, model: str = "plain", **changes: Any) -> Request:
        return make_request(folder / "runs", models / model, train, **changes)

    good = write_lines(folder / "good.jsonl", {"text": "hello"}, {"text": "world"})
    return {
        **of_the_request(folder, request, good),
        **of_json(folder, request),
        **of_files(folder, request, good),
        **of_parquet(folder, request),
        **of_conversations(folder, request, good),
        **of_tokens(folder, request),
        **of_models(folder, request, good, models),
    }


def of_the_request(folder: Path, request: Make, good: Path) -> Cases:
    on_a_file = request(good)
    on_a_file["cluster"]["run_root"] = str(good)
    return {
        "no json": ("{", "the document: Invalid JSON"),
        "no spec": ('{"cluster": {}}', "spec: Field required"),
        "no file": (request(folder / "none.jsonl"), f"data.train: no file matches '{folder}/none.jsonl'"),
        "no eval file": (request(good, data__eval=folder / "none*"), "data.eval: no file matches"),
        "run root": (on_a_file, "tokens/.*: cannot be written: Not a directory; .* set run_root in the cluster file"),
    }


def of_json(folder: Path, request: Make) -> Cases:
    def lines(name: str, *rows: Any) -> Request:
        return request(write_lines(folder / f"{name}.jsonl", *rows))

    def raw(name: str, content: bytes) -> Request:
        (folder / name).write_bytes(content)
        return request(folder / name)

    return {
        "broken line": (lines("broken", {"text": "x"}, '{"text": "y",}'), "broken.jsonl:2: broken JSON: .*column 14"),
        "cut line": (lines("cut", {"text": "x"}, "", '{"text": "y'), "cut.jsonl:3: broken JSON: Unterminated string"),
        "deep line": (lines("deep", "[" * 100_000), "deep.jsonl:1: unreadable JSON"),
        "long number": (lines("number", '{"text": ' + "9" * 5000 + "}"), "number.jsonl:1: unreadable JSON"),
        "list line": (lines("list", ["x"]), "list.jsonl:1: is a list, not an object with the field 'text'"),
        "missing field": (
            lines("missing", {"text": "x"}, {"txt": "y", "id": 1}),
            r"missing.jsonl:2: has no field 'text' \(data.text_field\); it has 'txt', 'id'; did you mean 'txt'\?",
        ),
        "wrong type": (lines("type", {"text": 3}), "type.jsonl:1: field 'text' is a number, not text"),
        "null": (lines("null", {"text": None}), "null.jsonl:1: field 'text' is null, not text"),
        "surrogate": (lines("half", '{"text": "a\\ud800"}'), "half.jsonl:1: .* half of a surrogate pair"),
        "list item": (raw("items.json", b'[{"text": "x"}, 3]'), "items.json: item 1: is a number"),
        "broken list": (raw("broken.json", b'[{"text": "x"},\n}'), "broken.json: broken JSON: .*line 2 column 1"),
    }


def of_files(folder: Path, request: Make, good: Path) -> Cases:
    def raw(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return {
        "binary": (request(raw("x.txt", b"ab\0c")), "x.txt: is not text: it holds NUL bytes"),
        "latin 1": (request(raw("y.txt", b"caf\xe9")), "y.txt: is not UTF-8: byte 3 is 0xe9"),
        "latin 1 line": (request(raw("y.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n')), r"y.jsonl:2: is not UTF-8"),
        "compressed": (request(raw("z.jsonl", b"\x1f\x8b\x08\0\0\0")), "z.jsonl:1: is not text"),
        "empty file": (request(raw("empty.jsonl", b"\n\n")), "data.train: holds no document"),
        "empty list": (request(raw("empty.json", b"[]")), "data.train: holds no document"),
        "empty eval": (
            request(good, data__eval=raw("empty.txt", b"")),
            "data.eval: none of the 1 documents has two tokens",
        ),
    }


def of_parquet(folder: Path, request: Make) -> Cases:
    nothing = folder / "nothing.parquet"
    nothing.write_bytes(b"PAR1 nothing")
    return {
        "no parquet": (request(nothing), "nothing.parquet: is no readable parquet file"),
        "torn parquet": (request(torn_parquet(folder)), "torn.parquet: is damaged"),
        "parquet column": (
            request(parquet(folder, "body", ["x"])),
            "body.parquet: has no field 'text' .*; it has 'body'",
        ),
        "parquet type": (
            request(parquet(folder, "text", [1, 2])),
            "text.parquet: row 0: field 'text' is a number, not text",
        ),
    }


def parquet(folder: Path, column: str, values: list[Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({column: values}), folder / f"{column}.parquet")
    return folder / f"{column}.parquet"


def torn_parquet(folder: Path) -> Path:
    """A parquet file whose schema can be read and whose column cannot."""
    (folder / "torn").mkdir()
    path = parquet(folder / "torn", "text", [str(random.Random(i).random()) * 20 for i in range(2000)])
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    (folder / "torn.parquet").write_bytes(content)
    return folder / "torn.parquet"


def of_conversations(folder: Path, request: Make, good: Path) -> Cases:
    def talk(name: str, *conversations: Any, model: str = "plain") -> Request:
        rows = [{"messages": messages} for messages in conversations]
        return request(write_lines(folder / f"{name}.jsonl", *rows), model, data__format="chat")

    human = [{"role": "human", "content": "x"}, {"role": "gpt", "content": "y"}]
    return {
        "no messages": (
            request(good, data__format="chat"),
            "good.jsonl:1: has no field 'messages' .data.messages_field.; it has 'text'",
        ),
        "messages": (talk("a", "hi"), "a.jsonl:1: field 'messages' is text, not a list of {role, content}"),
        "message": (talk("b", [["user", "x"]]), "b.jsonl:1: .*, message 1 is a list, not {role, content}"),
        "no role": (
            talk("c", [{"from": "human", "value": "x"}]),
            "c.jsonl:1: .*, message 1 has no 'role'; its keys are 'from', 'value'",
        ),
        "no content": (
            talk("d", [TALK[0], {"role": "assistant", "content": None}]),
            "d.jsonl:1: .*, message 2 has no 'content'; its keys are 'role'",
        ),
        "content": (talk("e", [{"role": "user", "content": 3}]), "message 1: 'content' is a number, not text"),
        "no template": (talk("f", TALK, model="begin"), "student.model: its tokenizer has no chat template"),
        "no prefix": (talk("g", TALK, model="no-prefix"), "g.jsonl:1: message 2: .*{% generation %}"),
        "strict": (talk("h", TALK[1:], model="strict"), "h.jsonl:1: .* refuses .*: begin with the user"),
        "other roles": (
            talk("i", human),
            "none of the 1 conversations has a loss token.* roles are 'gpt', 'human', and the one .* is 'assistant'",
        ),
        "all too long": (
            talk("j", *[[{"role": "user", "content": "x" * 99}, TALK[1]]] * 3),
            r"none of the 3 conversations .* first 64 tokens \(data.sequence_length\)",
        ),
        "chat of txt": (
            request(write_lines(folder / "chat.txt", "hi"), data__format="chat"),
            "cannot be read with data.format: chat",
        ),
    }


def of_tokens(folder: Path, request: Make) -> Cases:
    def tokens(name: str, value: Any, **changes: Any) -> Request:
        np.save(folder / f"{name}.npy", value, allow_pickle=True)
        return request(folder / f"{name}.npy", data__format="tokens", **changes)

    ids = np.zeros((3, 64), dtype=np.int64)
    nothing = write_lines(folder / "nothing.npy", "nothing")
    words = r"float.npy: must hold integers \[sequences, 64\], but holds float32 \[3, 64\]"
    return {
        "no array": (request(nothing, data__format="tokens"), "nothing.npy: is no .npy file of numbers"),
        "pickle": (tokens("pickle", np.array([[{}]], dtype=object)), "pickle.npy: is no .npy file of numbers"),
        "float": (tokens("float", ids.astype(np.float32)), words),
        "one axis": (tokens("flat", ids[0]), r"flat.npy: must hold integers .* int64 \[64\]"),
        "length": (
            tokens("length", ids[:, :60]),
            "its rows have 60 tokens but data.sequence_length is 64; set data.sequence_length: 60",
        ),
        "negative": (tokens("low", ids - 1), "low.npy: rows 0 to 2: holds token id -1, but .* from 0 to 319"),
        "too large": (tokens("high", ids + 320), "holds token id 320, but .* from 0 to 319 only"),
        "no rows": (tokens("empty", ids[:0]), "data.train: holds no document"),
        "hub tokens": (
            tokens("hub", ids, data__eval={"hub": "owner/name"}),
            "data.eval: data.format is tokens, which reads .npy files, but this is a hub data set",
        ),
    }


def of_models(folder: Path, request: Make, good: Path, models: Path) -> Cases:
    tags = write_lines(folder / "think.jsonl", {"text": "so <think>"})
    accent = write_lines(folder / "accent.jsonl", {"text": "é"})
    length = "data.sequence_length: is 64 but {}.model takes 32 tokens at most .*; set data.sequence_length to 32 or"
    return {
        "swapped": (
            request(good, student__model=models / "swapped"),
            "different tokenizers: id .* is 'b' for the student but 'a' for the teacher",
        ),
        "merging": (
            request(good, "merging", student__model=models / "unmerging"),
            "different tokenizers: token 0 of the text 'th' is 't' for the student but 'th' for the teacher",
        ),
        "no teacher": (request(good, teacher__model="/nowhere/x"), "teacher.model: '/nowhere/x' is no folder, and no"),
        "no student": (
            request(good, student__model="owner/none"),
            "student.model: 'owner/none' is no folder, is not in the Hugging Face cache, .* HF_HUB_OFFLINE is set",
        ),
        "no config": (request(good, "no-config"), "no-config/config.json: no such file"),
        "broken config": (request(good, "broken-config"), "broken-config/config.json:1: not JSON"),
        "no tokenizer": (request(good, "bare"), "student.model: .* has no tokenizer files"),
        "broken tokenizer": (request(good, "broken"), "student.model: the tokenizer in .* cannot be loaded"),
        "student length": (request(good, student__model=models / "short"), length.format("student")),
        "teacher length": (request(good, teacher__model=models / "short"), length.format("teacher")),
        "small model": (request(accent, "small"), "accent.jsonl:1: holds token id .*, but both models know .* 0 to 99"),
        "unknown token": (
            request(tags, student__model=models / "more"),
            "think.jsonl:1: holds token id 262, but both models know the ids from 0 to 261 only",
        ),
    }

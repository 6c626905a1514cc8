"""Which files a store is made of, what its key depends on, and when it is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kd_launch.errors import SpecError
from kd_launch.sources import FileHashes, model_sources, source_files
from kd_launch.spec import Spec
from kd_launch.tokens import (
    StoreHeader,
    expected_stores,
    file_hashes,
    header_path,
    is_complete,
    read_header,
    store_dir,
    store_key,
)

CONFIG = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def write(path: Path, content: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def make_model(folder: Path, tokenizer: str = "{}", **config: Any) -> Path:
    write(folder / "config.json", json.dumps({**CONFIG, **config}))
    write(folder / "tokenizer.json", tokenizer)
    write(folder / "model.safetensors", "weights")
    return folder


def make_spec(teacher: Path | str, student: Path | str | None, train: Any, **changes: Any) -> Spec:
    document: dict[str, Any] = {
        "teacher": {"model": str(teacher)},
        "student": {"model": str(student)} if student else {"start_from": {"teacher_layers": [0]}},
        "data": {"train": train},
        "training": {"steps": 1},
        "cluster": "cluster.yaml",
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        document[section][field] = value
    return Spec.model_validate_json(json.dumps(document))


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    write(tmp_path / "data/a.txt", "first")
    write(tmp_path / "data/b.txt", "second")
    return make_spec(make_model(tmp_path / "teacher"), make_model(tmp_path / "student"), str(tmp_path / "data"))


def key_of(spec: Spec, run_root: Path) -> str:
    return store_key(spec, spec.data.train, "data.train", FileHashes(run_root / "hashes.json"))


# --- source_files


def test_a_folder_gives_its_files_of_known_kinds_sorted(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.md", "a.txt", "c.py", "d.PARQUET", "e.bin", ".hidden/x.txt", "b/.y.txt", "f.npy"):
        write(tmp_path / name)
    names = [path.relative_to(tmp_path).as_posix() for path in source_files(str(tmp_path), "data.train", "text")]
    assert names == ["a.txt", "b/1.md", "b/2.jsonl", "c.py", "d.PARQUET"]
    chat = [path.name for path in source_files(str(tmp_path), "data.train", "chat")]
    assert chat == ["2.jsonl", "d.PARQUET"]
    assert [path.name for path in source_files(str(tmp_path), "data.train", "tokens")] == ["f.npy"]


def test_patterns_are_sorted_and_a_list_keeps_its_order(tmp_path: Path) -> None:
    for name in ("2.log", "1.log", "sub/3.log", "4.txt", "sub/5.txt"):
        write(tmp_path / name)
    found = source_files(f"{tmp_path}/*.log", "data.train", "text")
    assert [path.name for path in found] == ["1.log", "2.log"]
    found = source_files(f"{tmp_path}/**/*.log", "data.train", "text")
    assert [path.name for path in found] == ["1.log", "2.log", "3.log"]
    listed = source_files((str(tmp_path / "4.txt"), f"{tmp_path}/1*"), "data.train", "text")
    assert [path.name for path in listed] == ["4.txt", "1.log"]
    # A pattern that matches a folder and the files in it gives each file once.
    assert [path.name for path in source_files(f"{tmp_path}/s**", "data.train", "text")] == ["5.txt"]
    assert len(source_files(f"{tmp_path}/sub*/**", "data.train", "text")) == 2


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt")
    assert source_files(str(path), "data.train", "text") == [path]


@pytest.mark.parametrize(
    ("make", "source", "data_format", "words"),
    [
        ((), "x.txt", "text", "data.train: no file matches '{}/x.txt'"),
        ((), "*.jsonl", "text", "data.train: no file matches '{}/*.jsonl'"),
        (("x.bin",), ".", "text", "data.train: folder '{}' holds no .jsonl, .json, .parquet, .txt, .md, .py file"),
        (("x.txt",), "x.txt", "chat", "cannot be read with data.format: chat, which takes .jsonl, .json, .parquet"),
        (("x.txt",), "x.txt", "tokens", "cannot be read with data.format: tokens, which takes .npy files"),
        (("x.npy",), "x.npy", "text", "set data.format: tokens"),
        (("x.txt",), "x.txt/y.txt", "text", "no file matches"),
        ((), "n" * 300, "text", "File name too long"),
    ],
)
def test_a_source_without_files_is_refused(
    tmp_path: Path, make: tuple[str, ...], source: str, data_format: Any, words: str
) -> None:
    for name in make:
        write(tmp_path / name)
    with pytest.raises(SpecError) as error:
        source_files(str(tmp_path / source), "data.train", data_format)
    assert words.format(tmp_path) in str(error.value)
    assert str(error.value).startswith("data.train: ")
    with pytest.raises(SpecError, match=r"^data\.eval\.0: "):
        source_files((str(tmp_path / source),), "data.eval", data_format)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SpecError, match="neither a file nor a folder"):
        source_files(str(tmp_path / "pipe.txt"), "data.train", "text")


# --- hashes


def test_hashes_are_kept_and_a_changed_file_is_read_again(tmp_path: Path) -> None:
    kept, file = tmp_path / "tokens/.hashes.json", write(tmp_path / "x.txt", "one")
    hashes = FileHashes(kept, now=lambda: file.stat().st_mtime + 10)
    first = hashes.of(file)
    hashes.save()
    assert not kept.exists()  # no folder, no trace
    kept.parent.mkdir()
    hashes.save()
    entries = json.loads(kept.read_text())
    assert entries[str(file)][-1] == first
    # The kept hash is what is believed: a forged one comes back.
    entries[str(file)][-1] = "0" * 64
    kept.write_text(json.dumps(entries))
    assert FileHashes(kept).of(file) == "0" * 64
    write(file, "two")
    assert FileHashes(kept).of(file) != first
    assert hashes.of(file) != first


def test_the_hash_of_a_file_touched_just_now_is_not_kept(tmp_path: Path) -> None:
    kept, file = tmp_path / "hashes.json", write(tmp_path / "x.txt")
    hashes = FileHashes(kept, now=lambda: file.stat().st_mtime + 1)
    hashes.of(file)
    hashes.save()
    assert json.loads(kept.read_text()) == {}


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"x": 1}', '{"x": [1, 2, 3, "short"]}', "\0", '{"x": [1]}'])
def test_broken_hashes_are_ignored_and_replaced(tmp_path: Path, broken: str) -> None:
    kept, file = write(tmp_path / "hashes.json", broken), write(tmp_path / "x.txt")
    hashes = FileHashes(kept, now=lambda: file.stat().st_mtime + 10)
    hashes.of(file)
    hashes.save()
    assert str(file) in json.loads(kept.read_text())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"gone\.txt': No such file"):
        FileHashes(tmp_path / "hashes.json").of(tmp_path / "gone.txt")


# --- the key


def test_the_key_is_24_hex_digits_and_stays(spec: Spec, tmp_path: Path) -> None:
    key = key_of(spec, tmp_path)
    assert len(key) == 24
    assert int(key, 16) >= 0
    assert key == key_of(spec, tmp_path / "elsewhere")


def test_names_and_places_do_not_matter(spec: Spec, tmp_path: Path) -> None:
    key = key_of(spec, tmp_path)
    write(tmp_path / "other/1.txt", "first")
    write(tmp_path / "other/sub/2.md", "second")
    models = make_model(tmp_path / "t2"), make_model(tmp_path / "s2", num_hidden_layers=3)
    write(models[0] / "model.safetensors", "other weights")
    assert key_of(make_spec(*models, str(tmp_path / "other")), tmp_path) == key
    files = [str(tmp_path / "other/1.txt"), str(tmp_path / "other/sub/2.md")]
    assert key_of(make_spec(*models, files), tmp_path) == key


def test_content_order_kind_tokenizers_and_settings_matter(spec: Spec, tmp_path: Path) -> None:
    teacher, student, data = tmp_path / "teacher", tmp_path / "student", tmp_path / "data"
    write(tmp_path / "changed/a.txt", "first!")
    write(tmp_path / "changed/b.txt", "second")
    write(tmp_path / "joined/a.txt", "firstsecond")
    for name in ("a", "b"):
        write(tmp_path / f"lines/{name}.jsonl", (data / f"{name}.txt").read_text())
    other = make_model(tmp_path / "other", tokenizer="{ }")
    templated = make_model(tmp_path / "templated")
    write(templated / "chat_template.jinja", "x")
    specs = [
        spec,
        make_spec(teacher, student, str(tmp_path / "changed")),
        make_spec(teacher, student, str(tmp_path / "joined")),
        make_spec(teacher, student, str(tmp_path / "lines")),
        make_spec(teacher, student, [str(data / "b.txt"), str(data / "a.txt")]),
        make_spec(teacher, other, str(data)),
        make_spec(other, student, str(data)),
        make_spec(teacher, templated, str(data)),
        make_spec(teacher, make_model(tmp_path / "small", vocab_size=290), str(data)),
        make_spec(teacher, student, str(data), data__sequence_length=8),
        make_spec(teacher, student, str(data), data__packing=False),
        make_spec(teacher, student, str(data), data__text_field="body"),
        make_spec(teacher, student, {"hub": "owner/name"}),
        make_spec(teacher, student, {"hub": "owner/name", "split": "test"}),
        make_spec("owner/unknown", student, str(data)),
        make_spec("owner/unknown", student, str(data), teacher__revision="v2"),
    ]
    keys = [key_of(one, tmp_path) for one in specs]
    assert len(set(keys)) == len(keys)


def test_what_does_not_reach_the_tokens_does_not_matter(spec: Spec, tmp_path: Path) -> None:
    teacher, student, data = tmp_path / "teacher", tmp_path / "student", str(tmp_path / "data")
    same = [
        make_spec(teacher, student, data, data__shuffle=False, training__seed=3, training__steps=9),
        make_spec(teacher, student, data, data__messages_field="turns"),
        make_spec(teacher, None, data),  # the teacher's tokenizer, which is the same here
    ]
    assert {key_of(one, tmp_path) for one in same} == {key_of(spec, tmp_path)}


def test_code_of_a_trusted_tokenizer_is_part_of_the_key(spec: Spec, tmp_path: Path) -> None:
    write(tmp_path / "student/tokenization_x.py", "1")
    assert key_of(spec, tmp_path) == key_of(spec, tmp_path)
    trusting = make_spec(
        tmp_path / "teacher", tmp_path / "student", str(tmp_path / "data"), student__trust_remote_code=True
    )
    first = key_of(trusting, tmp_path)
    write(tmp_path / "student/tokenization_x.py", "2")
    assert key_of(trusting, tmp_path) != first


@pytest.mark.usefixtures("spec")
def test_missing_models_and_data_are_named(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    for bad, words in (
        (make_spec("/nowhere/model", tmp_path / "student", data), "teacher.model: '/nowhere/model' is no folder"),
        (make_spec(tmp_path / "teacher", tmp_path / "empty", data), "config.json: no such file"),
        (make_spec(tmp_path / "teacher", tmp_path / "student", "/nowhere/*.txt"), "data.train: no file matches"),
    ):
        with pytest.raises(SpecError) as error:
            key_of(bad, tmp_path)
        assert words in str(error.value)


def test_a_student_of_teacher_layers_has_the_teachers_tokenizer() -> None:
    student, teacher = model_sources(make_spec("a/b", None, "x"))
    assert student == teacher
    assert student.where == "teacher.model"


# --- the header


def make_store(folder: Path, **changes: Any) -> StoreHeader:
    folder.mkdir(parents=True)
    (folder / "ids.npy").write_bytes(b"12345")
    header = StoreHeader(
        key="k", kind="text", sequences=1, sequence_length=2, tokens=2, loss_tokens=1, documents=1, truncated=0,
        dropped=0, vocabulary=9, bytes={"ids.npy": 5}, version="0", **changes,
    )  # fmt: skip
    header_path(folder).write_text(header.model_dump_json())
    return header


def test_a_store_is_complete_with_a_header_that_agrees_with_its_files(tmp_path: Path) -> None:
    store = store_dir(tmp_path, "k")
    assert store == tmp_path / "tokens" / "k"
    assert not is_complete(store)
    header = make_store(store)
    assert is_complete(store)
    assert read_header(store) == header


@pytest.mark.parametrize("damage", ["no header", "torn header", "foreign header", "no array", "short array"])
def test_a_damaged_store_is_not_complete_and_the_error_says_what_to_do(tmp_path: Path, damage: str) -> None:
    store = tmp_path / "store"
    make_store(store)
    match damage:
        case "no header":
            header_path(store).unlink()
        case "torn header":
            header_path(store).write_text('{"key": ')
        case "foreign header":
            header_path(store).write_text('{"key": 3}')
        case "no array":
            (store / "ids.npy").unlink()
        case "short array":
            (store / "ids.npy").write_bytes(b"1234")
    assert not is_complete(store)
    with pytest.raises(SpecError) as error:
        read_header(store)
    assert str(store) in str(error.value)
    assert "\n" not in str(error.value)


def test_expected_stores_lie_in_the_run_root(spec: Spec, tmp_path: Path) -> None:
    stores = expected_stores(spec, tmp_path / "runs")
    assert stores.train == str(tmp_path / "runs/tokens" / key_of(spec, tmp_path))
    assert stores.eval is None
    assert not (tmp_path / "runs").exists()
    held_out = make_spec(
        tmp_path / "teacher", tmp_path / "student", str(tmp_path / "data"), data__eval=str(tmp_path / "data/a.txt")
    )
    assert expected_stores(held_out, tmp_path).eval not in (None, stores.train)


def test_a_login_node_needs_neither_numpy_nor_transformers(spec: Spec, tmp_path: Path) -> None:
    request = tmp_path / "spec.json"
    request.write_text(spec.model_dump_json())
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kd_launch.spec import Spec\n"
        "from kd_launch.tokens import expected_stores\n"
        f"spec = Spec.model_validate_json(Path({str(request)!r}).read_bytes())\n"
        f"print(expected_stores(spec, Path({str(tmp_path)!r})).train)\n"
        "assert not {'numpy', 'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules), sys.modules\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.stderr == ""
    assert found.stdout.strip() == str(
        store_dir(tmp_path, store_key(spec, spec.data.train, "x", file_hashes(tmp_path)))
    )

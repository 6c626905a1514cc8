"""Every place that a config.json can come from, in order, and what is said where there is none."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from kd_launch import catalog
from kd_launch.errors import SpecError
from kd_launch.model_source import cache_folder, find_architecture, find_config, read_config

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def never(model: str, revision: str | None) -> Mapping[str, object]:
    raise AssertionError(f"the hub was asked for {model} {revision}")


def offline(_model: str, _revision: str | None) -> Mapping[str, object]:
    raise OSError("no network")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}


def write_config(folder: Path, config: object = LLAMA) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def put_in_cache(hub: Path, hub_id: str, config: object, revision: str = "main", commit: str = "c0ffee") -> Path:
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    snapshot = write_config(repository / "snapshots" / commit, config)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return snapshot / "config.json"


def test_a_folder_and_its_file_are_the_same_model(tmp_path: Path, environ: dict[str, str]) -> None:
    folder = write_config(tmp_path / "a model's $folder")
    expected = (LLAMA, str(folder / "config.json"))
    assert find_config(str(folder), None, environ, never) == expected
    assert find_config(str(folder / "config.json"), None, environ, never) == expected
    assert find_architecture(str(folder), None, environ, never).layers == 2


def test_a_folder_wins_over_a_hub_id_of_that_name(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path / "Qwen" / "Qwen3-8B")
    monkeypatch.chdir(tmp_path)
    assert find_config("Qwen/Qwen3-8B", None, environ, never)[0] == LLAMA


def test_the_cache_wins_over_the_catalog(environ: dict[str, str]) -> None:
    cached = put_in_cache(Path(environ["HF_HUB_CACHE"]), "Qwen/Qwen3-8B", LLAMA)
    assert find_config("Qwen/Qwen3-8B", None, environ, never) == (LLAMA, str(cached))


def test_a_revision_is_looked_up_in_the_cache(environ: dict[str, str]) -> None:
    hub = Path(environ["HF_HUB_CACHE"])
    put_in_cache(hub, "me/model", LLAMA)
    old = put_in_cache(hub, "me/model", {**LLAMA, "num_hidden_layers": 1}, revision="old", commit="0ld")
    assert find_config("me/model", "old", environ, never)[1] == str(old)
    assert find_architecture("me/model", "old", environ, never).layers == 1
    with pytest.raises(SpecError, match="'me/model' at revision 'new'"):
        find_config("me/model", "new", environ, offline)


def test_a_cache_that_knows_the_model_without_config_is_no_source(environ: dict[str, str]) -> None:
    cached = put_in_cache(Path(environ["HF_HUB_CACHE"]), "Qwen/Qwen3-8B", LLAMA)
    cached.unlink()
    assert find_config("Qwen/Qwen3-8B", None, environ, never)[1] == "catalog: Qwen/Qwen3-8B"


def test_the_catalog_answers_without_the_hub(environ: dict[str, str]) -> None:
    keys, where = find_config("Qwen/Qwen3-8B", None, environ, never)
    assert keys == catalog.model_config("Qwen/Qwen3-8B")
    assert where == "catalog: Qwen/Qwen3-8B"
    assert find_architecture("Qwen/Qwen3-8B", None, environ, never).parameters == 8_190_735_360


def test_the_hub_is_asked_last_with_the_revision(environ: dict[str, str]) -> None:
    asked = []

    def hub(model: str, revision: str | None) -> Mapping[str, object]:
        asked.append((model, revision))
        return LLAMA

    assert find_config("me/new", "v2", environ, hub) == (LLAMA, "hub: me/new")
    assert asked == [("me/new", "v2")]


def test_the_error_names_every_place_and_the_way_out(environ: dict[str, str]) -> None:
    with pytest.raises(SpecError) as caught:
        find_config("Qwen/Qwen3-9B", None, environ, offline)
    message = str(caught.value)
    for part in ("folder 'Qwen/Qwen3-9B'", environ["HF_HUB_CACHE"], "the catalog", "the hub (no network)", "prepare"):
        assert part in message
    assert "did you mean 'Qwen/Qwen3-8B'?" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", ["1", "true", "ON", "yes"])
def test_an_offline_hub_is_not_asked(environ: dict[str, str], value: str) -> None:
    with pytest.raises(SpecError, match="HF_HUB_OFFLINE is set"):
        find_config("me/new", None, {**environ, "HF_HUB_OFFLINE": value}, never)


@pytest.mark.parametrize(
    "name", ["", "./missing", "/no/such/folder", "a/b/c", "some model", "a--b", "x" * 5000 + "/", "a\0b"]
)
def test_what_is_no_folder_and_no_hub_id_is_refused(environ: dict[str, str], name: str) -> None:
    with pytest.raises(SpecError, match=r"^model "):
        find_config(name, None, environ, never)


def test_a_folder_without_config_says_so(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(SpecError, match=r"config\.json: no such file"):
        find_config(str(tmp_path), None, environ, never)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "llama",\n "vocab_size": }', r"config\.json:2: not JSON: .* \(column 16\)"),
        (b"", r"config\.json:1: not JSON"),
        (b"[1, 2]", r"config\.json:1: must hold a JSON object of config keys, holds list"),
        (b"\xff\xfe", r"config\.json:1: not JSON"),
        (b"[" * 200_000, r"config\.json:1: not JSON"),
    ],
)
def test_broken_json_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        read_config(path)


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(SpecError, match=r"config\.json: cannot be read: Is a directory"):
        read_config(tmp_path / "config.json")


def test_errors_of_the_architecture_name_the_file(tmp_path: Path, environ: dict[str, str]) -> None:
    folder = write_config(tmp_path / "model", {**LLAMA, "hidden_size": "32"})
    with pytest.raises(SpecError, match=r"model/config\.json: hidden_size: must be a whole number"):
        find_architecture(str(folder), None, environ, never)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c", "HOME": "/d"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_the_cache_lies_where_huggingface_hub_puts_it(environ: dict[str, str], folder: str) -> None:
    assert cache_folder(environ) == Path(folder)


def test_this_processs_cache_is_huggingface_hubs_own() -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    assert cache_folder(os.environ) == Path(HF_HUB_CACHE)


class _Hub(http.server.BaseHTTPRequestHandler):
    """Speaks as much of the hub's protocol as one config.json needs, and refuses as the hub refuses."""

    refusals: ClassVar = {
        "/me/gated/": (403, "GatedRepo"),
        "/me/missing/": (401, "RepoNotFound"),
        "/me/new/resolve/v9/": (404, "RevisionNotFound"),
        "/me/weights/": (404, "EntryNotFound"),
    }

    def do_HEAD(self) -> None:
        refusal = next((answer for path, answer in self.refusals.items() if self.path.startswith(path)), None)
        self.send_response(refusal[0] if refusal else 200)
        self.send_header("X-Error-Code", refusal[1] if refusal else "")
        self.send_header("X-Repo-Commit", "c0ffee" * 6 + "c0ff")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0" if refusal else str(len(json.dumps(LLAMA))))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(json.dumps(LLAMA).encode())

    def log_message(self, *_: object) -> None:
        pass


def ask(endpoint: str, home: Path, model: str, revision: str | None = None) -> subprocess.CompletedProcess[str]:
    """What a process of its own, whose hub is `endpoint`, finds: stdout has the keys or the error."""
    script = (
        "import sys, os; from kd_launch import errors, model_source\n"
        "try: print(*model_source.find_config(sys.argv[1], sys.argv[2] or None, os.environ))\n"
        "except errors.SpecError as error: print(error)"
    )
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", script, model, revision or ""]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True)


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hubs_file_is_read_once_and_then_lies_in_the_cache(endpoint: str, tmp_path: Path) -> None:
    assert ask(endpoint, tmp_path, "me/new").stdout == f"{LLAMA} hub: me/new\n"
    again = ask("http://127.0.0.1:9", tmp_path, "me/new").stdout
    assert again.startswith(f"{LLAMA} {tmp_path}/hub/models--me--new/snapshots/")


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    answer = ask("http://127.0.0.1:9", tmp_path, "me/new")
    assert "the hub ([Errno 111] Connection refused)" in answer.stdout
    assert answer.stderr == ""


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("me/gated", None, "the hub (gated: accept its terms on the hub, then log in (`hf auth login`))"),
        ("me/missing", None, "the hub (no such model, or a private one: log in (`hf auth login`))"),
        ("me/new", "v9", "the hub (no such revision)"),
        ("me/weights", None, "the hub (it has no config.json)"),
    ],
)
def test_the_hubs_refusals_are_put_in_words(
    endpoint: str, tmp_path: Path, model: str, revision: str | None, words: str
) -> None:
    answer = ask(endpoint, tmp_path, model, revision).stdout
    assert answer.startswith(f"model '{model}'")
    assert words in answer

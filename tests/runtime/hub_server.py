"""A hub of our own on this machine: the few answers that huggingface_hub and datasets ask for."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

Repositories = Mapping[str, Mapping[str, bytes]]
"""models/owner/name or datasets/owner/name -> file -> content."""

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, content."""


def commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


@contextmanager
def hub(repositories: Repositories) -> Iterator[str]:
    """Serves the repositories; gives the value of HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(*answer(repositories, self.path))

        do_HEAD = do_GET  # noqa: N815 - the base class's name

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(*answer(repositories, self.path, body))

        def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(repositories: Repositories, address: str, body: bytes = b"") -> Answer:
    """What the hub says to one request."""
    url = urlsplit(address)
    parts = unquote(url.path).strip("/").split("/")
    in_api, kind = parts[0] == "api", "datasets" if "datasets" in parts[:2] else "models"
    owner, name, *rest = [part for part in parts if part not in ("api", "models", "datasets")] + ["", ""]
    files = repositories.get(f"{kind}/{owner}/{name}")
    if files is None:
        return missing("RepoNotFound")
    rest = [part for part in rest if part]
    if rest[1:] and rest[1] not in ("main", commit_of(files)):
        return missing("RevisionNotFound")
    if in_api:
        return _api(f"{owner}/{name}", files, rest, body, "recursive=true" in url.query.lower())
    return _file(files, "/".join(rest[2:]))


def _file(files: Mapping[str, bytes], name: str) -> Answer:
    commit = {"X-Repo-Commit": commit_of(files)}
    if name not in files:
        status, headers, content = missing("EntryNotFound")
        return status, {**headers, **commit}, content
    return 200, {"ETag": f'"{_digest(files[name])}"', **commit}, files[name]


def missing(code: str) -> Answer:
    return 404, {"X-Error-Code": code, "X-Error-Message": code}, b""


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _api(repo: str, files: Mapping[str, bytes], rest: list[str], body: bytes, recursive: bool) -> Answer:
    match rest:
        case [] | ["revision", *_]:
            siblings = [{"rfilename": file} for file in sorted(files)]
            return _json({"id": repo, "sha": commit_of(files), "siblings": siblings, "private": False, "tags": []})
        case ["tree", _, *folder]:
            entries = _tree(files, "".join(f"{part}/" for part in folder), recursive)
            return _json(entries) if entries else missing("EntryNotFound")
        case ["paths-info", *_]:
            wanted = set(json.loads(body)["paths"])
            return _json([entry for entry in _tree(files, "", True) if entry["path"] in wanted])
    return missing("EntryNotFound")


def _tree(files: Mapping[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """The entries below `folder`, which is empty or ends with a slash."""
    inside = {name: content for name, content in files.items() if name.startswith(folder)}
    folders = {folder + name.removeprefix(folder).split("/")[0] for name in inside if "/" in name.removeprefix(folder)}
    found = [{"type": "directory", "path": name, "size": 0, "oid": _digest(name.encode())} for name in sorted(folders)]
    return found + [
        {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
        for name, content in sorted(inside.items())
        if recursive or "/" not in name.removeprefix(folder)
    ]


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

"""Requests to prepare, and running it: many in one process, since loading transformers takes seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Request = dict[str, Any]

MANY = """
import contextlib, io, json, sys
from kd_launch.runtime.prepare import main
for path in sys.stdin.read().splitlines():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([path])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON of a success."""
        assert self.exit_code == 0, self.stderr
        (line,) = self.stdout.splitlines()
        answer: dict[str, Any] = json.loads(line)
        return answer


def make_request(run_root: Path, model: Path | str, train: Any, **changes: Any) -> Request:
    """A request; `changes` are the spec's fields with "__" for ".", such as data__format="chat"."""
    spec: dict[str, Any] = {
        "teacher": {"model": str(model)},
        "student": {"model": str(model)},
        "data": {"train": train if isinstance(train, dict | list) else str(train), "sequence_length": 64},
        "training": {"steps": 1},
        "cluster": "cluster.yaml",
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        spec[section][field] = str(value) if isinstance(value, Path) else value
    pool = {"name": "p", "nodes": 1, "gpus_per_node": 1, "gpu": "CPU"}
    return {"spec": spec, "cluster": {"scheduler": "local", "run_root": str(run_root), "pools": [pool]}}


def write_lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def environment(**changes: str) -> dict[str, str]:
    """This process's variables, away from the network unless `changes` say otherwise."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **changes}


def run_many(folder: Path, requests: Mapping[str, Request | str], **variables: str) -> dict[str, Outcome]:
    """Runs prepare on each request (or raw text), in one process; outcomes by name."""
    paths = []
    for i, request in enumerate(requests.values()):
        path = folder / f"request-{i}.json"
        path.write_text(request if isinstance(request, str) else json.dumps(request))
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        env=environment(**variables),
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths), done.stderr
    return {name: Outcome(*json.loads(line)) for name, line in zip(requests, lines, strict=True)}


def run_one(request: Request | str, **variables: str) -> Outcome:
    """`python -m kd_launch.runtime.prepare` with the request on standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "kd_launch.runtime.prepare"],
        input=request if isinstance(request, str) else json.dumps(request),
        capture_output=True,
        text=True,
        env=environment(**variables),
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def prepare_here(request: Request) -> dict[str, Any]:
    """What prepare answers, in this process; only for what succeeds, and needs no network."""
    from kd_launch.runtime.prepare import Request as Checked
    from kd_launch.runtime.prepare import prepare

    return prepare(Checked.model_validate_json(json.dumps(request)), lambda _: None).model_dump()

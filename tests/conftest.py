"""A project that a user could have written, with models too small to load and ranks that only pretend."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

# A shell's background job ignores Ctrl-C, and so would everything that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

NOW = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
FAKE_INTERPRETER = Path(__file__).parent / "fake_runtime" / "interpreter.py"
TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 128,
    "max_position_embeddings": 256,
}  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A folder with models, data, spec and cluster file."""

    folder: Path
    environ: dict[str, str]

    @property
    def config(self) -> Path:
        return self.folder / "distill.yaml"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def ranks(self, **actions: list[Any]) -> str:
        """The --set argument that tells ranks what to do: rank0=[...], rank1=[...], or every=[...]."""
        keys = {name: "*" if name == "every" else name.removeprefix("rank") for name in actions}
        text = json.dumps({keys[name]: todo for name, todo in actions.items()})
        return f"--set=cluster.environment.FAKE_RANKS={json.dumps(text)}"

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        argv = [sys.executable, "-m", "kd_launch.cli", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(argv, cwd=self.folder, env=self.environ, **options)

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Runs kd-launch in the project."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def submit(self, *arguments: str, **actions: list[Any]) -> Path:
        """Submits a run of pretended ranks and returns its folder."""
        done = self.call("submit", "distill.yaml", self.ranks(**actions), *arguments)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.splitlines()[-1])

    def submit_impatiently(self, now: datetime = NOW, **actions: list[Any]) -> Path:
        """The same without the command line, and with ranks that get little time to end."""
        # Not above: every test would wait for the planner.
        from kd_launch.commands import run
        from kd_launch.local.supervisor import Patience
        from kd_launch.plan import TokenStores
        from kd_launch.preparation import Source, load_and_plan
        from kd_launch.submission import Caller, submit_local

        source = Source(self.config, [self.ranks(**actions).removeprefix("--set=")], None, self.environ, self.folder)
        inputs, plan = load_and_plan(source)
        caller = Caller(now, ["test"], self.folder, self.environ)
        patience = Patience(peers=0.3, cancel=0.5, record=0.1)
        tokens = TokenStores(train="/nothing")
        return Path(submit_local(inputs, plan.chosen, tokens, None, caller, run, patience).run_dir)

    def status(self, run: Path, *arguments: str) -> dict[str, Any]:
        done = self.call("status", str(run), "--json", *arguments)
        assert done.returncode in (0, 5), done.stderr
        return dict(json.loads(done.stdout))

    def processes(self) -> dict[int, str]:
        """Every process with the project's runs on its command line or in its environment: number -> command."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes()
                told = words + (entry / "environ").read_bytes()
            except (OSError, NotADirectoryError):
                continue
            if entry.name.isdigit() and int(entry.name) != os.getpid() and os.fsencode(self.runs) in told:
                found[int(entry.name)] = words.replace(b"\0", b" ").decode(errors="replace")
        return found


def shapes_of(layers: int, hidden: int = 32) -> dict[str, tuple[int, ...]]:
    """Some of a tiny Llama's matrices, by which its config.json is recognised."""
    names = {f"model.layers.{i}.mlp.down_proj.weight": (hidden, 64) for i in range(layers)}
    return {"model.embed_tokens.weight": (128, hidden), **names}


def write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", size: int = 2) -> None:
    """A safetensors file of zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + math.prod(shape) * size]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


def write_model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**TINY, **changes}))
    config = {**TINY, **changes}
    write_weights(folder / "model.safetensors", shapes_of(config["num_hidden_layers"], config["hidden_size"]))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_project(folder: Path, gpus_per_node: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "teacher")
    write_model(folder / "student", num_hidden_layers=1)
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_text('{"text": "hello"}\n')
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(FAKE_INTERPRETER))} "$@"\n')
    python.chmod(0o755)
    cluster = {"scheduler": "local", "python": "./python", "environment": {"FAKE_RANKS": "{}"}}
    pool = {"name": "here", "nodes": 1, "gpus_per_node": gpus_per_node, "gpu": "CPU", "cpus_per_node": 2}
    # JSON is YAML.
    (folder / "cluster.yaml").write_text(json.dumps({**cluster, "pools": [{**pool, "memory_gib": 2.0}]}))
    spec = {
        "teacher": {"model": "./teacher", "gpus": 1}, "student": {"model": "./student", "gpus": 1},
        "data": {"train": "data/*.jsonl", "sequence_length": 64}, "placement": "disjoint",
        "training": {"steps": 10, "global_batch_size": 4}, "cluster": "cluster.yaml",
    }  # fmt: skip
    (folder / "distill.yaml").write_text(json.dumps(spec))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project in a folder whose name needs quoting. Whatever its runs leave behind is ended with the test."""
    folder = tmp_path / 'it\'s a $HOME "place"'
    write_project(folder)
    environ = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    made = Project(folder, {name: value for name, value in environ.items() if name != "KD_LAUNCH_RUNS"})
    yield made
    for pid in made.processes():
        with suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(pid, signal.SIGKILL)

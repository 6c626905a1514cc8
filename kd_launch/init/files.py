"""Writes cluster.yaml and distill.yaml, both or none, and never over anything."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kd_launch.errors import SpecError
from kd_launch.reading.spec_file import load
from kd_launch.run_dir import write_whole

CLUSTER_FILE = "cluster.yaml"
SPEC_FILE = "distill.yaml"

SPEC_TEXT = """\
# What to distill. `kd-launch plan distill.yaml` shows how it would run, `kd-launch schema` every key there is.
teacher: {model: Qwen/Qwen3-14B}          # a folder with config.json and safetensors, or a hub id
student: {model: Qwen/Qwen3-1.7B}
data: {train: data/*.jsonl, format: chat} # lines {"messages": [...]}; format text: lines {"text": "..."}, or plain text
training: {steps: 1000}
cluster: cluster.yaml
"""


def write_first_files(
    folder: Path, cluster_text: str, environ: Mapping[str, str], spec_text: str = SPEC_TEXT
) -> tuple[Path, Path]:
    """Writes both files, after reading them as every other command would. Returns the cluster's and the spec's path.

    Raises:
        SpecError: one of them exists; then nothing is written.
    """
    wanted = {folder / CLUSTER_FILE: cluster_text, folder / SPEC_FILE: spec_text}
    for path in wanted:
        if os.path.lexists(path):
            raise SpecError(f"{path}: exists, and init never overwrites; name another folder, or move it away")
    with tempfile.TemporaryDirectory() as trial:
        for path, text in wanted.items():
            (Path(trial) / path.name).write_text(text)
        load(Path(trial) / SPEC_FILE, environ=environ, cwd=Path(trial))
    folder.mkdir(parents=True, exist_ok=True)
    cluster, spec = wanted
    write_whole(cluster, cluster_text.encode())
    try:
        write_whole(spec, spec_text.encode())
    except OSError:
        cluster.unlink()  # both or none
        raise
    return cluster, spec

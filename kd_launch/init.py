"""The first two files of a newcomer: cluster.yaml as this machine or Slurm describes itself, and distill.yaml."""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_launch.catalog import find_gpu, gpu_ids
from kd_launch.commands import Runner
from kd_launch.errors import SlurmRefusedError, SlurmSilentError, SpecError, UnknownNameError
from kd_launch.local.machine import Machine
from kd_launch.reading.spec_file import load
from kd_launch.run_dir import write_whole

CLUSTER_FILE = "cluster.yaml"
SPEC_FILE = "distill.yaml"
SLURM_S = 20.0
SINFO = ("sinfo", "-h", "-o", "%R|%D|%G|%c|%m")

SPEC_TEXT = """\
# What to distill. `kd-launch plan distill.yaml` shows how it would run, `kd-launch schema` every key there is.
teacher: {model: Qwen/Qwen3-14B}          # a folder with config.json and safetensors, or a hub id
student: {model: Qwen/Qwen3-1.7B}
data: {train: data/*.jsonl, format: chat} # lines {"messages": [...]}; format text: lines {"text": "..."}, or plain text
training: {steps: 1000}
cluster: cluster.yaml
"""


@dataclass(frozen=True)
class FoundPool:
    """A pool as it was found."""

    name: str
    partition: str | None
    nodes: int
    gpus_per_node: int
    gpu: str
    note: str
    """Behind `gpu`, as a comment; "" for none."""
    cpus_per_node: int
    memory_gib: int


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


def local_cluster(machine: Machine, host: str) -> str:
    """cluster.yaml of this machine: its GPUs, where it has any, else processes on its cores."""
    cores, memory = machine.cores, max(1, int(machine.memory_gib))
    if machine.gpus:
        gpu, note = _gpu_id(machine.gpus[0])
        pool = FoundPool("gpu", None, 1, len(machine.gpus), gpu, note, cores, memory)
    else:
        # Two at least, so that teacher and student can be processes of their own.
        processes = max(2, min(8, cores // 2))
        pool = FoundPool("cpu", None, 1, processes, "CPU", "gpus_per_node counts processes", cores, memory)
    head = ["# This machine, as `kd-launch init` found it.", f"name: {_scalar(_name(host))}", "scheduler: local"]
    return _text(head, [pool])


def slurm_cluster(run: Runner) -> str:
    """cluster.yaml as Slurm describes its partitions.

    Raises:
        SlurmSilentError: sinfo or scontrol gives no answer.
        SlurmRefusedError: it answers with an error, or with no partition.
    """
    pools = parse_sinfo(_ask(run, SINFO))
    config = parse_config(_ask(run, ("scontrol", "show", "config")))
    head = [
        "# The partitions, as `kd-launch init` found them. Remove the pools that you do not use.",
        f"name: {_scalar(_name(config.get('ClusterName', 'cluster')))}",
        "scheduler: slurm",
        "run_root: runs                # on a file system that every node sees",
        '# time_limit: "08:00:00"      # of a job',
        *_refused_by(config),
    ]
    return _text(head, pools, slurm_gres=not config.get("SelectType", "").endswith("cons_tres"))


def parse_sinfo(text: str) -> list[FoundPool]:
    """Pools of `sinfo -o "%R|%D|%G|%c|%m"`: those with GPUs; where no partition has any, all of them."""
    found = [_pool_of_line(line) for line in text.splitlines() if line.count("|") == 4]
    if not found:
        raise SlurmRefusedError("sinfo names no partition; is this cluster up?")
    with_gpus = [pool for pool in found if pool.gpu != "CPU"]
    return _named_apart(with_gpus or found)


def parse_config(text: str) -> dict[str, str]:
    """Keys and values of `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _ask(run: Runner, argv: Sequence[str]) -> str:
    done = run(argv, timeout=SLURM_S)
    if done.returncode is None:
        raise SlurmSilentError(done.why())
    if not done.ok:
        words = f"{' '.join(argv[:2])}: {done.why()}"
        raise SlurmRefusedError(f"{words}; `kd-launch init --local` describes this machine alone")
    return done.stdout


def _refused_by(config: Mapping[str, str]) -> list[str]:
    """Lines for what this Slurm's configuration rules out."""
    lines = []
    if config.get("SchedulerType") == "sched/builtin":
        lines.append("hetjobs: false                # SchedulerType is sched/builtin")
    if "disable_hetjob_steps" in config.get("SchedulerParameters", ""):
        lines.append("hetjob_steps: false           # SchedulerParameters has disable_hetjob_steps")
    return lines


def _pool_of_line(line: str) -> FoundPool:
    partition, nodes, gres, cpus, memory_mb = line.strip().split("|")
    count, kind = _gpus_of(gres)
    cores, memory = _number(cpus), max(1, _number(memory_mb) // 1024)
    if count == 0:
        note = "gpus_per_node counts processes"
        return FoundPool(partition, partition, _number(nodes), max(1, min(8, cores // 2)), "CPU", note, cores, memory)
    gpu, note = _gpu_id(kind)
    return FoundPool(partition, partition, _number(nodes), count, gpu, note, cores, memory)


def _gpus_of(gres: str) -> tuple[int, str]:
    """GPUs of a node and their type in Slurm's words, of `gpu:a100:4(S:0-1),nvme:1`; the type may be missing."""
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *parts = item.split(":")
        if name == "gpu":
            count = int(parts[-1]) if parts and parts[-1].isdigit() else 1
            return count, ":".join(part for part in parts if not part.isdigit())
    return 0, ""


def _gpu_id(name: str) -> tuple[str, str]:
    """The catalog's id of a GPU and a comment; what the catalog does not know is left to the user."""
    try:
        return find_gpu(name).id, "" if not name else f"found as {name}"
    except UnknownNameError:
        known = ", ".join(gpu for gpu in gpu_ids() if gpu != "CPU")
        return name or "UNKNOWN", f"write one of: {known}"


def _named_apart(pools: Sequence[FoundPool]) -> list[FoundPool]:
    """A partition with several kinds of nodes gives several pools: they are numbered."""
    named: list[FoundPool] = []
    for pool in pools:
        name, taken = _name(pool.name), {other.name for other in named}
        number = next(i for i in range(1, len(pools) + 1) if (name if i == 1 else f"{name}-{i}") not in taken)
        named.append(FoundPool(**{**vars(pool), "name": name if number == 1 else f"{name}-{number}"}))
    return named


def _text(head: Sequence[str], pools: Sequence[FoundPool], slurm_gres: bool = False) -> str:
    lines = [*head, "pools:"]
    for pool in pools:
        lines.append(f"  - name: {_scalar(pool.name)}")
        if pool.partition is not None:
            lines.append(f"    partition: {_scalar(pool.partition)}")
        lines += [f"    nodes: {pool.nodes}", f"    gpus_per_node: {pool.gpus_per_node}"]
        lines.append(f"    gpu: {_scalar(pool.gpu)}" + (f"  # {pool.note}" if pool.note else ""))
        if slurm_gres and pool.gpu != "CPU":
            lines.append('    gpu_directive: "--gres=gpu:{n}"')
        lines += [f"    cpus_per_node: {pool.cpus_per_node}", f"    memory_gib: {pool.memory_gib}"]
    return "\n".join(lines) + "\n"


def _number(text: str) -> int:
    """The digits that sinfo begins with: it writes 96+ where nodes differ."""
    found = re.match(r"\d+", text)
    return max(1, int(found[0])) if found else 1


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "cluster"


def _scalar(text: str) -> str:
    """Text as YAML reads it back: quoted where it could be anything else."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text) and text.lower() not in ("null", "true", "false", "nan")
    return text if plain else json.dumps(text)

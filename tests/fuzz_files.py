"""Spec and cluster files that somebody, or something, has spoilt: a valid pair of files, and what may happen to it."""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
CANARY = "canary.was.here"
"""The file that a string makes when a shell runs it."""
PRODUCT = "{{ 99991 * 7 }}", "699937"
"""What Jinja2 would make of a string that it took for a template."""

BOTH = {"tp": 1, "pp": 1}
LOCAL: dict[str, Any] = {
    "name": "here",
    "scheduler": "local",
    "run_root": "runs",
    "time_limit": "01:00:00",
    "pools": [{"name": "here", "nodes": 1, "gpus_per_node": 3, "gpu": "CPU", "cpus_per_node": 6, "memory_gib": 16}],
    "environment": {"NOTE": "two words", "OMP_NUM_THREADS": "1"},
    "setup": "export DONE=1\n",
    "stall_timeout_s": 400,
}
SLURM: dict[str, Any] = {
    "name": "site",
    "scheduler": "slurm",
    "hetjobs": True,
    "hetjob_steps": True,
    "run_root": "$KD_FUZZ/runs",
    "time_limit": "08:00:00",
    "account": "team",
    "python": "env/bin/python",
    "pools": [
        {
            "name": "a100", "partition": "a100", "nodes": 2, "gpus_per_node": 2, "gpu": "A100-SXM-80",
            "cpus_per_node": 64, "memory_gib": 900, "inter_node_gb_per_s": 100, "intra_node_gb_per_s": 300,
            "gpu_directive": "--gres=gpu:a100:{n}", "mem": "0", "qos": "long", "sbatch": ["--exclusive"],
            "srun": ["--cpu-bind=none"], "setup": "module load old\n", "environment": {"NCCL_SOCKET_IFNAME": "ib1"},
        },
        {
            "name": "h100", "partition": "h100", "nodes": 2, "gpus_per_node": 2, "gpu": "H100-SXM-80",
            "cpus_per_node": 96, "memory_gib": 900, "account": "team-h", "constraint": "ib&fast",
            "python": "/opt/python",
        },
    ],
    "same_fabric": True,
    "environment": {"NCCL_SOCKET_IFNAME": "ib0", "HF_HOME": "/shared/hugging face"},
    "setup": "module load cuda\n",
    "host_suffix": "i",
    "signal_before_end_s": 60,
    "heartbeat_timeout_s": 30.0,
    "max_failures_without_progress": 2,
    "max_requeues": 5,
}  # fmt: skip
CONTAINERS: list[Any] = [
    None,
    {"runtime": "pyxis", "image": "/shared/kd.sqsh", "mounts": ["/shared", "/scratch:/tmp"]},
    {"runtime": "apptainer", "image": "kd.sif", "mounts": ["/shared"]},
    {"runtime": "container_engine", "image": "kd.toml"},
]
SPEC: dict[str, Any] = {
    "name": "chat",
    "teacher": {"model": "./teacher", "dtype": "bfloat16", "pool": "auto", "gpus": 1, "trust_remote_code": False},
    "student": {"model": "./student", "start_from": "random", "reshard_after_forward": True, "gpus": 1},
    "distillation": {"beta": 0.5, "temperature": 1.0, "cross_entropy_weight": 0.1},
    "data": {"train": ["data/*.jsonl", "more"], "eval": "held-out", "format": "text", "sequence_length": 64},
    "training": {"steps": 10, "global_batch_size": 4, "learning_rate": 1e-4, "warmup_steps": 2, "seed": 1},
    "checkpoint": {"every_steps": 5, "keep": 1},
    "placement": "disjoint",
    "objective": "throughput",
    "max_nodes": 4,
    "slurm": {
        "account": "mine", "qos": "short", "reservation": "monday", "dependency": "afterok:12",
        "mail_user": "a@b.org", "comment": "Ann's 1st", "time_limit": "30",
    },
    "cluster": "cluster.yaml",
}  # fmt: skip

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 128,
    "max_position_embeddings": 256, "layer_types": ["full_attention", "full_attention"], "head_dim": 8,
    "sliding_window": 16, "tie_word_embeddings": True, "rope_theta": 1e4, "torch_dtype": "bfloat16",
}  # fmt: skip

RUN = (f"$(touch {CANARY})", f"`touch {CANARY}`", f";touch {CANARY};", f"\ntouch {CANARY}\n", f"|>{CANARY}")
BREAK = ("'", '"', "\\", "'\"'", "\\'", '\\"', "$'", "${", "$((", "\n\n", "EOF\n", "#", " ", "\t", "-", "--", "!", "*")
CODE_KEYS = frozenset(("setup", "BASH_ENV", "ENV", "PS4", "PROMPT_COMMAND", "LD_PRELOAD", "template"))
"""What is code by its meaning, so that a canary in it may sing."""


FREE_KEYS = frozenset(
    ("account", "qos", "reservation", "dependency", "mail_user", "comment", "partition", "mem", "constraint", "image",
     "python", "train", "eval", "run_root")
)  # fmt: skip


def texts(rng: random.Random) -> str:
    """One hostile string."""
    match rng.randrange(8):
        case 0:
            return rng.choice(RUN)
        case 1:
            return rng.choice(BREAK) + rng.choice(RUN)
        case 2:
            return rng.choice(BREAK) + rng.choice(RUN) + rng.choice(BREAK)
        case 3:
            return PRODUCT[0] + rng.choice(("", "{% raw %}", "{#", "{% include 'x' %}"))
        case 4:
            return "".join(rng.choice((*BREAK, *RUN, "a", "/", ":", ",", "..", "~", "$HOME")) for _ in range(6))
        case 5:
            return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) for _ in range(8))
        case 6:
            return rng.choice((".", "..", "../..", "/", "~", "$NOWHERE", "/dev/null", "/proc/self/mem", "%j", "hetjob"))
        case _:
            return rng.choice(("x" * 5000, "", "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "\x1b[2J", "👩‍👩‍👧", "\r"))


def numbers(rng: random.Random) -> Any:
    sizes = (0, -1, 1, 2, 3, 7, 64, 1000, 10**6, 2**31, 2**63, 10**30, 10**400)
    odd = (float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, -0.0, 0.1, 1e-30, 1e6)
    return rng.choice((rng.choice(sizes), rng.choice(odd)))


def values(rng: random.Random, depth: int = 0) -> Any:
    """Any value that YAML can hold."""
    kinds = 8 if depth < 3 else 5
    match rng.randrange(kinds):
        case 0 | 1:
            return texts(rng)
        case 2 | 3:
            return numbers(rng)
        case 4:
            return rng.choice((None, True, False, "auto", "null", "1", "1e3", "0x10", "08:00", [], {}))
        case 5 | 6:
            return [values(rng, depth + 1) for _ in range(rng.randrange(4))]
        case _:
            return {rng.choice(("name", "model", "x", "gpus", texts(rng))): values(rng, depth + 1) for _ in range(2)}


Path = tuple[Any, ...]


def paths(data: Any, at: Path = ()) -> list[Path]:
    """Of every value in a document."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [found for key, value in items for found in ((*at, key), *paths(value, (*at, key)))]


def at(data: Any, path: Path) -> Any:
    for key in path:
        data = data[key]
    return data


def spoil(data: dict[str, Any], rng: random.Random) -> None:
    """One change to a document, in place."""
    every = paths(data)
    if not every:
        return
    path = rng.choice(every)
    holder, key = at(data, path[:-1]), path[-1]
    match rng.randrange(12):
        case 0 | 1 | 2 | 3 | 4:  # most often what may well pass
            strings = [one for one in every if isinstance(at(data, one), str)]
            if strings:
                path = rng.choice(strings)
                at(data, path[:-1])[path[-1]] = texts(rng)
        case 5:
            holder[key] = values(rng)
        case 6:
            holder[key] = numbers(rng)
        case 7:
            del holder[key]
        case 8 if isinstance(holder, dict):
            holder[texts(rng)] = values(rng)
        case 9 if isinstance(holder, dict):
            holder[str(key)[:-1] + rng.choice(("", "s", "x"))] = holder.pop(key)
        case 10:
            holder[key] = copy.deepcopy(at(data, rng.choice(every)))
        case _ if isinstance(holder, list):
            holder.extend([copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 2, 40)))])
        case _:
            holder[key] = [holder[key]]


def insert_canary(data: dict[str, Any], rng: random.Random) -> None:
    """One string that would be run by whoever forgets to quote it, where free text is legal."""
    free = [path for path in paths(data) if path[-1] in FREE_KEYS or path[-2:-1] in (("environment",), ("mounts",))]
    if free:
        path = rng.choice(free)
        text = rng.choice(BREAK) + rng.choice(RUN) + rng.choice(BREAK)
        at(data, path[:-1])[path[-1]] = text if rng.random() < 0.02 else text.replace("\n", " ").replace("\t", "")


def without_code(data: Any) -> Any:
    """The document with harmless words where code belongs."""
    if isinstance(data, dict):
        return {
            key: "true" if key in CODE_KEYS and isinstance(value, str) and CANARY in value else without_code(value)
            for key, value in data.items()
        }
    return [without_code(value) for value in data] if isinstance(data, list) else data


# --- what may happen to the text of a file


def _bomb(levels: int) -> str:
    lines = ["b0: &b0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


def _noise(rng: random.Random) -> bytes:
    return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 60)))


def _cut_in(text: bytes, rng: random.Random, new: bytes) -> bytes:
    place = rng.randrange(len(text) + 1)
    return text[:place] + new + text[place + rng.choice((0, 0, 1, 20)) :]


def _twice(text: bytes, rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join([*lines, rng.choice(lines)]) if lines else text


ODDITIES = (
    "\n? [a, b]\n: c\n", "\n<<: {a: 1}\n", "\n*nothing\n", "\na: &a [*a]\n",
    "\na: !!python/object/apply:os.system [ls]\n",
    "\na: !!binary aGk=\n", "\na: !!set {x, y}\n", "\na: !!timestamp 2001-01-01\n", "\na: !mine x\n", "\n---\nb: 1\n",
    "\n...\n", "\n%YAML 9.9\n---\n", "\na: |\n  x\n y\n", "\n\ta: 1\n", "\na: 'open\n",
    '\na: "\\ud800"\n', '\na: "\\x00"\n',
    "\na: !!float 1e999999\n", "\na: !!int 0b2\n", "\na: !!bool x\n", "\na: !!null x\n", "\nnull: 1\n", "\n1: 1\n",
    "\n? " + "k" * 2000 + "\n: 1\n", "\n: 1\n", "\n- 1\n", "\n@a\n", "\n`a`\n", "\na: 1 : 2\n", "\na: [1, 2\n", "\n}\n",
    "\na: !!int " + "9" * 5000 + "\n", "\na: " + "9" * 5000 + "\n", "\na: -" + "_" * 50 + "\n", "\na: 1_000_\n",
    "\na: !!int _\n", "\na: !!omap [x]\n", "\na: !!pairs [x]\n", "\na: !!float x\n", "\n\u2028a: 1\n",
)  # fmt: skip


def _garble(text: bytes, rng: random.Random) -> bytes:
    changes: list[Callable[[], bytes]] = [
        lambda: text + rng.choice(ODDITIES).encode("utf-8", "surrogatepass"),
        lambda: rng.choice(ODDITIES).encode("utf-8", "surrogatepass") + text,
        lambda: _cut_in(text, rng, rng.choice(ODDITIES).encode("utf-8", "surrogatepass")),
        lambda: _cut_in(text, rng, _noise(rng)),
        lambda: _cut_in(text, rng, rng.choice((b"\0", b"\x1b", b"\t", b"\r", b"\xff", b": ", b"- ", b"#", b"{", b"]"))),
        lambda: text[: rng.randrange(len(text) + 1)],
        lambda: _twice(text, rng),
        lambda: text + b"\n" + _bomb(rng.choice((3, 9, 30))).encode(),
        lambda: text + b"\ndeep: " + rng.choice((b"[", b"{a: ")) * rng.choice((10, 25, 1000, 20_000)),
        lambda: text + b"\ndeep:\n" + b"".join(b" " * i + b"a:\n" for i in range(rng.choice((15, 30, 400)))),
        lambda: rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf\xef\xbb\xbf")) + text,
        lambda: text.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32")), "replace"),
        lambda: rng.choice((b"", b"\n", b" ", b"#", b"null", b"[]", b"{}", b"x", b"\0" * 100, b"&a", b"%")),
        lambda: _noise(rng) * rng.choice((1, 30)),
        lambda: text.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", b""))),
    ]
    return rng.choice(changes)()


def _dump(data: Any, rng: random.Random) -> bytes:
    """In one of the shapes that people write YAML in."""
    match rng.randrange(3):
        case 0:
            return json.dumps(data).encode()
        case 1:
            shape: dict[str, Any] = {"default_flow_style": True, "width": 10**6, "allow_unicode": True}
        case _:
            shape = {"allow_unicode": rng.random() < 0.5}
    try:
        text = yaml.dump(data, Dumper=DUMPER, sort_keys=False, **shape)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say
        text = json.dumps(data)
    return str(text).encode("utf-8", "surrogatepass")


# --- one case


@dataclass(frozen=True)
class Case:
    """Two files, a command on them, and the variable that their paths may name."""

    number: int
    spec: bytes
    cluster: bytes
    arguments: tuple[str, ...]
    variable: str = "/shared"
    model: bytes | None = None
    """The teacher's config.json; None: a sound one."""


def _settings(rng: random.Random) -> list[str]:
    """--set arguments, spoilt or not."""
    given = []
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        prefix, document = rng.choice((("", SPEC), ("cluster.", SLURM)))
        path = rng.choice(paths(document))
        if CODE_KEYS.isdisjoint(path):
            value = values(rng)
            text = value if isinstance(value, str) else json.dumps(value)
            given.append(f"--set={prefix}{'.'.join(map(str, path))}={text}".replace("\0", ""))
    return given + ([f"--set={texts(rng)}".replace("\0", "")] if rng.random() < 0.02 else [])


def case_of(seed: int, number: int) -> Case:
    """The case of that number: the same every time."""
    rng = random.Random(f"{seed}/{number}")
    spec = copy.deepcopy(SPEC)
    cluster = copy.deepcopy(rng.choice((LOCAL, SLURM, SLURM)))
    if container := copy.deepcopy(rng.choice(CONTAINERS)):
        rng.choice([cluster, *cluster["pools"]])["container"] = container
    if cluster["scheduler"] == "slurm":
        spec["launch"] = rng.choice(("auto", "hetjob", "two_steps", "hetstep", "ranks"))
        one_pool = spec["launch"] in ("hetstep", "ranks")
        spec["placement"] = "colocated" if spec["launch"] == "ranks" and rng.random() < 0.5 else "disjoint"
        cluster["hetjob_steps"] = spec["launch"] != "two_steps"
        spec["teacher"]["pool"], spec["student"]["pool"] = ("h100" if one_pool else "a100"), "h100"
    quiet = rng.random() < 0.4  # nothing but canaries where text is free: most of these become scripts
    for _ in range(0 if quiet else rng.choice((1, 1, 1, 2, 3))):
        spoil(rng.choice((spec, cluster)), rng)
    for _ in range(rng.choice((1, 3, 6)) if quiet else 0):
        insert_canary(rng.choice((spec, cluster)), rng)
    spec, cluster = without_code(spec), without_code(cluster)
    if rng.random() < 0.1 and spec.get("cluster") == "cluster.yaml":
        spec["cluster"] = cluster
    files = [_dump(spec, rng), _dump(cluster, rng)]
    if not quiet and rng.random() < 0.4:
        which = rng.randrange(2)
        files[which] = _garble(files[which], rng)
    command = rng.choice(("render",) * 6 + ("plan", "plan --json", "plan --explain"))
    arguments = [*command.split()[:1], "distill.yaml", *command.split()[1:], *([] if quiet else _settings(rng))]
    if command == "render" and rng.random() < 0.9:
        arguments += ["--run-dir", "run" if rng.random() < 0.6 else texts(rng).replace("\0", "") or "run"]
    if rng.random() < 0.05:
        arguments += ["--cluster", rng.choice(("cluster.yaml", "nothing.yaml", "distill.yaml", ".", texts(rng)))]
    variable = "/shared" if rng.random() < 0.8 else texts(rng)
    model = _config(rng) if not quiet and rng.random() < 0.1 else None
    return Case(number, files[0], files[1], tuple(map(_word, arguments)), _word(variable), model)


def _config(rng: random.Random) -> bytes:
    """A model's config.json, spoilt."""
    config = copy.deepcopy(CONFIG)
    for _ in range(rng.choice((0, 1, 2))):
        spoil(config, rng)
    text = json.dumps(config).encode()
    return _garble(text, rng) if rng.random() < 0.3 else text


def _word(text: str) -> str:
    """As a program's arguments and variables can be: without NUL, and what is no UTF-8 as Python shows it."""
    return text.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")

"""Stands in for srun in tests: notes its words, then starts every rank of every `:` part, as one step does."""

import json
import os
import subprocess
import sys
from pathlib import Path


def parts_of(words: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Options and command of each part."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == ":":
            parts.append([])
        else:
            parts[-1].append(word)
    return [split(part) for part in parts]


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    count = next(i for i, word in enumerate(words) if not word.startswith("--"))
    options = dict(word[2:].partition("=")[::2] for word in words[:count])
    return options, words[count:]


def main() -> int:
    record = Path(os.environ["FAKE_RECORD"])
    (record / "srun.json").write_text(json.dumps(sys.argv[1:]))
    (record / f"srun-{os.getpid()}").touch()
    print("srun: warning: words of its own", file=sys.stderr)
    sys.stderr.flush()
    parts = parts_of(sys.argv[1:])
    rank, status = 0, 0
    second_step = len(parts) == 1 and parts[0][0].get("het-group") == "1"
    world_size = sum(int(options["ntasks"]) for options, _ in parts)
    for options, command in parts:
        target = open(options["output"], "ab") if "output" in options else sys.stdout.buffer  # noqa: SIM115
        for _ in range(int(options["ntasks"])):
            env = {**os.environ, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world_size)}
            env["FAKE_NUMBER"] = str(rank + 1000 * second_step)  # of its notes: each of two steps counts from 0
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            for line in done.stdout.splitlines():
                target.write(b"%*d: %s\n" % (len(str(world_size - 1)), rank, line))
            target.flush()
            status = max(status, done.returncode)
            rank += 1
    return status


if __name__ == "__main__":
    sys.exit(main())

"""kd-launch against TRL's GKDTrainer on this machine: same models, tokens, precision, optimizer and learning rate.

    python -m benchmarks.against_trl [--steps 10] [--rounds 2] [--all]

Teacher 60M, student 20M, vocabulary 49,152, 4 x 128 tokens a step, float32. TRL runs with one process on all cores and
with one process per core, activations kept; kd-launch with the layout that `plan` chooses for one process per core
(--all: with other layouts, too). Rounds take turns; the best of each side counts. The last lines
are the ratios to TRL's faster way. Raw figures go to benchmarks/results/against_trl.json.
"""

import argparse
import importlib.metadata
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.material import Material, make_material, write_spec
from benchmarks.measuring import Figures, best, keep, measure, show, submit

COLOCATED = ("placement=colocated",)
OTHERS = {
    "kd-launch 1 process": (*COLOCATED, "teacher.gpus=1", "student.gpus=1"),
    "kd-launch 1 + 1 hidden": ("placement=disjoint", "distillation.payload=hidden_states"),
    "kd-launch 1 + 1 logits": ("placement=disjoint", "distillation.payload=logits"),
    "kd-launch 2 DDP": (*COLOCATED, "student.parallelism={replicas: 2, fsdp: 1}"),
}


def run_trl(material: Material, processes: int, cores: int, folder: Path) -> Figures:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
               "-m", "benchmarks.trl_gkd", *map(str, (material.teacher, material.student, material.tokens)),
               str(folder / "metrics.jsonl"), "--batch", str(material.batch)]  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(cores // processes)}
    name = f"TRL {processes} process{'es' if processes > 1 else ''}"
    return measure(name, command, folder / "metrics.jsonl", material.batch, threads)


def sides(material: Material, cores: int, everything: bool) -> dict[str, Callable[[Path], Figures]]:
    """Name -> what runs it in a folder."""
    spec = write_spec(material, processes=cores, cores=cores)
    made: dict[str, Callable[[Path], Figures]] = {
        "trl-1": lambda folder: run_trl(material, 1, cores, folder),
        "trl-all": lambda folder: run_trl(material, cores, cores, folder),
        "plan": lambda folder: submit("kd-launch as planned", spec, folder, material.batch),
    }
    if everything:
        one = write_spec(material, processes=1, cores=cores)
        for name, settings in OTHERS.items():
            used = one if "1 process" in name else spec
            made[name.replace(" ", "-")] = lambda folder, name=name, used=used, settings=settings: submit(  # type: ignore[misc]
                name, used, folder, material.batch, settings
            )
    return made


def equal_losses(trl: Figures, ours: Figures, processes: int) -> str:
    """Of TRL's reported losses, which its processes divide by their number once more."""
    apart = max(abs(processes * a - b) / b for a, b in zip(trl.losses, ours.losses, strict=True))
    return f"losses of each step: at most {apart:.1e} apart from TRL's"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--all", action="store_true", help="other layouts than the planned one, too")
    parser.add_argument("--skip-one-process", action="store_true", help="TRL with one process per core only")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    found: dict[str, list[Figures]] = defaultdict(list)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        material = make_material(Path(place), steps=asked.steps)
        for number in range(asked.rounds):
            for name, run in sides(material, cores, asked.all).items():
                if name == "trl-1" and asked.skip_one_process:
                    continue
                found[name].append(run(Path(place) / f"{name}-{number}"))
                show(found[name][-1:])
    figures = [best(rounds) for rounds in found.values()]
    facts = {"trl": importlib.metadata.version("trl"), "torch": importlib.metadata.version("torch")}
    path = keep("against_trl", facts, [one for rounds in found.values() for one in rounds])
    print()
    show(figures)
    rivals = [best(rounds) for name, rounds in found.items() if name.startswith("trl")]
    trl, ours = max(rivals, key=lambda one: one.samples_per_second), best(found["plan"])
    print(f"\n{equal_losses(rivals[0], ours, 1 if asked.skip_one_process is False else cores)}; all in {path.name}")
    print(f"samples/s: {ours.samples_per_second / trl.samples_per_second:.2f} times {trl.name}")
    print(f"CPU time of a step: {ours.cpu_seconds_per_step / trl.cpu_seconds_per_step:.2f} of {trl.name}")
    print(f"peak memory per process: {ours.peak_gib / trl.peak_gib:.2f} of {trl.name}")


if __name__ == "__main__":
    main()

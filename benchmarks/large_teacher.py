"""A teacher three times larger than a process may hold distils: python -m benchmarks.large_teacher

Under fsdp, tp and pp, over four ranks. Every rank sets RLIMIT_DATA, once everything is imported, to what it then holds
and a third of the teacher's weights. First a whole teacher is tried under this limit, which must fail. The figures are
the most anonymous memory of each rank, above that after the imports, beside what the plan's memory model says.
"""

import argparse
import ctypes
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MIB = 2**20
_M_ARENA_MAX = -8  # malloc.h
WAYS: dict[str, dict[str, int]] = {"whole": {}, "fsdp": {"fsdp": 4}, "tp": {"tp": 4}, "pp": {"pp": 4}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--folder", type=Path, default=None, help="keep everything there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.folder or Path(folder)
        place.mkdir(exist_ok=True)
        shape = {"hidden_size": arguments.hidden, "intermediate_size": 4 * arguments.hidden,
                 "num_hidden_layers": arguments.layers, "num_attention_heads": 8, "num_key_value_heads": 8,
                 "initializer_range": 0.02}  # fmt: skip
        material, size = _material(place, shape)
        print(f"teacher: {size / MIB:.0f} MiB of weights; limit: {size / 3 / MIB:.0f} MiB above what imports take")
        for way in arguments.ways:
            _try(place, way, material, size // 3)


def _material(place: Path, shape: dict[str, Any]) -> tuple[dict[str, Path], int]:
    from tests.runtime.harness import make_model, make_store

    folders = {
        "teacher": make_model(place / "teacher", seed=1, **shape),
        "student": make_model(place / "student", seed=2),
        "train": make_store(place / "train", 32),
    }
    return folders, (folders["teacher"] / "model.safetensors").stat().st_size


def _try(place: Path, way: str, material: dict[str, Path], allowance: int) -> None:
    from kd_launch.plan import TokenStores
    from tests.runtime.forked import AT_IMPORT, fork_rank
    from tests.runtime.harness import make_layout, make_run, variables_of

    split = WAYS[way]
    layout = make_layout(teachers=4 if split else 1, replicas=1, micro_batch=4, accumulation=2, split=split)
    tokens = TokenStores(train=str(material["train"]))
    run_dir = make_run(place / way, layout, material["teacher"], material["student"], tokens, training__steps=5)
    processes = []
    for rank in range(layout.world_size):
        variables = os.environ | AT_IMPORT | variables_of("torchrun", rank, layout.world_size)
        program = ("-m", "benchmarks.large_teacher_rank", str(allowance))
        arguments = [str(run_dir.path), "--role", layout.role_of(rank)]
        processes.append(fork_rank(program, arguments, variables, run_dir.path / f"rank-{rank}.txt"))
    codes = [process.wait(600) for process in processes]
    print(f"{way}: exit codes {codes}")
    if any(codes):
        words = [line for line in (run_dir.path / "rank-0.txt").read_text().splitlines() if "emory" in line]
        print(f"  {words[-1] if words else 'see the logs'}")
        return
    peaks = [json.loads((run_dir.path / f"peak-{rank}.json").read_text())["peak"] for rank in layout.teacher_ranks]
    predicted = _predicted(material["teacher"], split)
    for rank, peak in enumerate(peaks):
        print(
            f"  teacher rank {rank}: {peak / MIB:.0f} MiB; the plan says {predicted / MIB:.0f} ({peak / predicted:.2f})"
        )
    losses = [json.loads(line)["loss"] for line in run_dir.metrics.read_text().splitlines()]
    print(f"  losses: {', '.join(f'{loss:.4f}' for loss in losses)}")


def _predicted(teacher: Path, split: dict[str, int]) -> float:
    """Bytes of a teacher rank by the plan's memory model."""
    from kd_launch.architecture import from_config
    from kd_launch.catalog import find_engine
    from kd_launch.cost.constants import load_constants
    from kd_launch.cost.memory import teacher_buffer_bytes, teacher_memory
    from kd_launch.cost.setting import Setting, TeacherDegrees
    from tests.runtime.harness import SEQUENCE

    model = from_config(json.loads((teacher / "config.json").read_text()), "config.json")
    engine, constants = find_engine("kd-launch"), load_constants()
    setting = Setting(
        teacher=model, student=model, sequence_length=SEQUENCE, teacher_dtype="float32", student_dtype="float32",
        top_k=64, compiled=False, engine=engine, constants=constants,
    )  # fmt: skip
    degrees, tokens = TeacherDegrees(split.get("fsdp", 1), split.get("tp", 1), split.get("pp", 1)), 4 * SEQUENCE
    buffers = 2 * teacher_buffer_bytes(setting, degrees, tokens, "hidden_states")
    return teacher_memory(setting, degrees, tokens).total + buffers


def anonymous_bytes() -> int:
    """Of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


class Peak:
    """The most anonymous memory since it was made, above that at the start, sampled every two milliseconds."""

    def __init__(self) -> None:
        self._start = self._most = anonymous_bytes()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self._most = max(self._most, anonymous_bytes())
            time.sleep(0.002)

    @property
    def bytes(self) -> int:
        return self._most - self._start


def limit_data(allowance: int) -> None:
    """Lets this process hold `allowance` bytes more than now.

    The limit counts the stack of a thread as large as it may become, 8 MiB for each of gloo's two dozen: so these are
    kept small, and so are the address spaces that malloc sets aside for threads.
    """
    libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_attr_init(attributes)
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(MIB))
    libc.pthread_setattr_default_np(attributes)
    libc.mallopt(_M_ARENA_MAX, 1)
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1]) for line in lines if line.startswith("VmData:")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (held + allowance, held + allowance))


if __name__ == "__main__":
    main()

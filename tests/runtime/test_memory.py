"""Memory that the design promises, measured by the kernel in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.harness import make_model

PEAK = '''
import json, sys, threading, time
from pathlib import Path
import torch
torch.set_num_threads(2)

def anon():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

class Peak:
    """The most anonymous memory between enter and exit, sampled every millisecond, above that at the start."""
    def __enter__(self):
        self.start = self.most = anon()
        self.ended = False
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self
    def sample(self):
        while not self.ended:
            self.most = max(self.most, anon())
            time.sleep(0.001)
    def __exit__(self, *_):
        self.most = max(self.most, anon())
        self.ended = True
        self.thread.join()
        self.bytes = self.most - self.start
'''

LOSS = (
    PEAK
    + """
from kd_launch.runtime import losses
from kd_launch.runtime.losses import ChunkedLoss, Head, LossInputs, Objective
from kd_launch.runtime.payload import HiddenStates
tokens, vocabulary, width = int(sys.argv[1]), 512, 64
losses.CPU_CHUNK_BYTES = 4 * 1024 * vocabulary  # even 1,024 tokens fill one
weight = torch.randn(vocabulary, width, requires_grad=True)
teacher = Head(torch.randn(vocabulary, width))

def run(tokens):
    hidden = torch.randn(tokens, width, requires_grad=True)
    signal = HiddenStates(torch.randn(tokens, width), teacher, vocabulary)
    labels = torch.zeros(tokens, dtype=torch.long)
    inputs = LossInputs(signal, labels, Objective(0.5, 1.0, 0.0), 1.0, Head)
    ChunkedLoss.apply(hidden, weight, None, inputs)[0].backward()
    return sum(t.numel() * t.element_size() for t in (hidden, signal.values, labels, hidden.grad))

run(200)
weight.grad = None
with Peak() as peak:
    inputs = run(tokens)
print(json.dumps({"peak": peak.bytes, "inputs": inputs}))
"""
)

TEACHER = (
    PEAK
    + """
from kd_launch.spec import Teacher
from kd_launch.runtime.models import load_teacher
from kd_launch.runtime.parallel import MicroBatch
from kd_launch.runtime.payload import PayloadForm
from kd_launch.runtime.teacher import FrozenTeacher
from transformers import AutoModelForCausalLM, LlamaForCausalLM
folder, dtype = sys.argv[1:3]
form = PayloadForm("hidden_states", 512, 97, 64, getattr(torch, dtype), 1.0)
ids = torch.zeros(2, 32, dtype=torch.long)
batch = MicroBatch(ids, torch.arange(32).repeat(2, 1), torch.arange(64), ids.flatten())
with Peak() as peak:
    model = load_teacher(Teacher(model=folder, dtype=dtype), torch.device("cpu"))
    teacher = FrozenTeacher(model, form)
    for _ in range(3):
        parts = teacher.payload(batch)
weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
import gc
tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if torch.is_tensor(t)}
print(json.dumps({
    "peak": peak.bytes, "weights": sum(weights.values()), "all_tensors": sum(tensors.values()),
    "parameters": sum(p.numel() for p in model.parameters()),
    "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
    "gradients": sum(p.requires_grad or p.grad is not None for p in model.parameters()),
    "graph": any(part.requires_grad for part in parts),
}))
"""
)

ALLOCATION = (
    PEAK
    + """
from kd_launch.plan import Role
from kd_launch.runtime.allocator import choose_allocation
from tests.runtime.harness import make_layout
split, role = {sys.argv[1]: 2}, Role(sys.argv[2])
choose_allocation(make_layout(teachers=2, replicas=2, micro_batch=1, accumulation=1, split=split), role)

def huge():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:")) * 1024

def freed(number, mib, keep):
    before = anon()
    pairs = [(torch.ones(mib * 2**18), torch.ones(256)) for _ in range(number)]
    kept = [small for _, small in pairs] if keep else []
    held, large = anon() - before, huge()
    del pairs
    return {"held": held, "huge": large, "left": anon() - before}

# More than is asked for below: the kernel counts a process's pages a few late.
print(json.dumps({"large": freed(5, 16, False), "between": freed(72, 1, True)}))
"""
)

# Activations of one layer, torch's allocator and its thread pools: what a teacher needs beside its weights.
WORKSPACE = 16 * 2**20


def run(script: str, *arguments: str) -> dict[str, Any]:
    # A malloc arena per thread and its thresholds would blur the figure.
    environment = {"OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_loss_grows_with_tokens_by_its_inputs_alone() -> None:
    small, large = run(LOSS, "1024"), run(LOSS, "65536")  # both are chunks of the same number of rows
    grown, inputs = large["peak"] - small["peak"], large["inputs"] - small["inputs"]
    assert inputs > 20 * 2**20
    assert grown == pytest.approx(inputs, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_holds_its_weights_once(tmp_path: Path, dtype: str) -> None:
    folder = make_model(tmp_path / "teacher", seed=1, hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    figures = run(TEACHER, str(folder), dtype)
    size = 4 if dtype == "float32" else 2
    assert figures["parameters"] > 30e6
    assert figures["weights"] == figures["parameters"] * size
    assert figures["dtypes"] == [f"torch.{dtype}"]
    assert figures["gradients"] == 0
    assert figures["graph"] is False
    assert figures["all_tensors"] <= 1.02 * figures["weights"]
    assert figures["peak"] <= 1.15 * figures["weights"] + WORKSPACE


@pytest.mark.parametrize("split", ["fsdp", "tp"])
def test_large_tensors_lie_on_huge_pages_and_go_back_when_they_are_freed(split: str) -> None:
    large = run(ALLOCATION, split, "teacher")["large"]
    assert large["held"] >= 64 * 2**20
    assert large["left"] < 4 * 2**20
    if "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        assert large["huge"] > 0.8 * large["held"]


@pytest.mark.parametrize(("split", "role"), [("fsdp", "student"), ("tp", "teacher")])
def test_smaller_ones_are_kept_but_where_layers_are_gathered(split: str, role: str) -> None:
    gathering, other = (run(ALLOCATION, *of)["between"] for of in (("fsdp", "teacher"), (split, role)))
    assert gathering["held"] >= 64 * 2**20 <= other["held"]
    assert gathering["left"] < 4 * 2**20
    assert other["left"] > 16 * 2**20  # that is faster

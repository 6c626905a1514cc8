"""Plans of many ranks build their groups, meshes and shards: in one process, with groups that only pretend."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from plan_cases import setting_of, site
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

from kd_launch.architecture import from_config
from kd_launch.cost.memory import student_buffer_bytes, student_memory
from kd_launch.cost.setting import StudentDegrees, sizes_of
from kd_launch.plan import Layout, RoleLayout, TokenStores, read_run_plan
from kd_launch.runtime import losses
from kd_launch.runtime.environment import Environment
from kd_launch.runtime.links import TeacherPlace, chains, fsdp_groups, lanes, rank_of, tp_groups
from kd_launch.runtime.losses import Objective
from kd_launch.runtime.parallel import MicroBatch, reduce_gradients, shard_student
from kd_launch.runtime.payload import Logits
from kd_launch.runtime.sharding import forget_forwards
from kd_launch.runtime.stage import cut_stage
from kd_launch.runtime.teacher import payload_form
from kd_launch.runtime.world import World, _make_groups
from tests.runtime.harness import make_layout, make_run

LARGE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
SMALLER = {**LARGE, "num_hidden_layers": 6}
TOKENS = 4096
MOST_GROUPS = 6
"""Of a rank: the world's, and of a teacher tp, fsdp, chain and lane; of a student all, shard, replicate and lane."""


def layout_of(world: int) -> Layout:
    """Half for a teacher of tp 8 x fsdp 2 x pp 2, half for a student of fsdp 8."""
    half = world // 2
    split = {"tp": 8, "fsdp": 2, "pp": 2}
    return make_layout(
        teachers=half, replicas=half // 8, fsdp=8, micro_batch=1, accumulation=1, split=split, payload="logits"
    )


@contextmanager
def pretended(layout: Layout, rank: int) -> Iterator[World]:
    """The world as one rank builds it."""
    place = Environment("torchrun", rank, layout.world_size, 0, 1, 1)
    try:
        yield _make_groups(place, layout, layout.role_of(rank), torch.device("cpu"), FakeStore(), "fake")
    finally:
        dist.destroy_process_group()


def groups_of(rank: int) -> int:
    """Groups that this rank is in."""
    return sum(rank in ranks for ranks in dist.distributed_c10d._world.pg_group_ranks.values())


@pytest.mark.parametrize("size", [64, 512, 2048])
def test_a_rank_is_in_few_groups_however_many_ranks_there_are(size: int) -> None:
    layout = layout_of(size)
    assert layout.world_size == size
    for rank in (0, size // 2 - 1, size // 2, size - 1):
        with pretended(layout, rank) as world:
            assert groups_of(rank) <= MOST_GROUPS
            assert dist.distributed_c10d._world.group_count <= size  # calls to make one, the same on every rank
            assert world.lane is not None or world.teacher is not None
            if world.teacher is not None:
                assert world.teacher.mesh is not None
                assert world.teacher.mesh.shape == (2, 8)
                place = world.teacher.place
                assert world.teacher.mesh.get_coordinate() == (place.shard, place.tp_rank)
            else:
                assert world.student_mesh.shape == (size // 16, 8)


@pytest.mark.parametrize("size", [64, 2048])
def test_every_teacher_rank_has_its_place_once(size: int) -> None:
    layout = layout_of(size)
    teacher = layout.teacher
    for rank in layout.teacher_ranks:
        place = TeacherPlace.of(teacher, rank)
        assert rank_of(teacher, place.instance, place.stage, place.tp_rank) == rank
    for groups in (tp_groups(layout), fsdp_groups(layout), chains(layout)):
        assert sorted(rank for group in groups for rank in group) == list(layout.teacher_ranks)
    in_lanes = [rank for teachers, students in lanes(layout) for rank in (*teachers, *students)]
    assert len(in_lanes) == len(set(in_lanes)) == size // 4 + size // 2  # the last stage, and every student


@pytest.mark.parametrize("size", [64, 512, 2048])
def test_a_teacher_rank_holds_what_the_plan_says(tmp_path: Path, size: int) -> None:
    layout = layout_of(size)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(LARGE))
    run_dir = make_run(
        tmp_path / "run", layout, tmp_path / "teacher", tmp_path / "teacher", TokenStores(train=str(tmp_path))
    )
    run = read_run_plan(run_dir.plan)
    sizes = sizes_of(from_config(LARGE, "config.json"))
    split = layout.teacher
    planned = sizes.stage(split.pp) / (split.fsdp * split.tp)
    held = []
    for stage in range(split.pp):
        rank = rank_of(split, instance=1, stage=stage, tp_rank=3)
        with pretended(layout, rank) as world:
            assert world.teacher is not None
            cut = cut_stage(run, payload_form(run, torch.bfloat16), world.teacher)
            held.append(sum(prod(piece.shape) for piece in cut.pieces.values()))
    assert max(held) == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize(("size", "accumulation", "changes"), [
    (64, 1, {"reshard_after_forward": False}),
    (512, 2, {"reshard_after_forward": True}),
    (2048, 2, {"reshard_after_forward": True, "activation_recompute": "full"}),
])  # fmt: skip
def test_a_student_rank_holds_what_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, size: int, accumulation: int, changes: dict[str, Any]
) -> None:
    """At the peak of its second step, when the optimizer has its states; counted by torch, on tensors without data."""
    for name, value in as_on_a_gpu().items():
        monkeypatch.setattr(losses, name, value)
    layout = layout_of(size)
    student = layout.student.model_copy(update=changes)
    with pretended(layout, size - 1) as world, FakeTensorMode():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALLER), dtype=torch.float32)
        objective = Objective(0.5, 1.0, 0.0)
        distilled = shard_student(model, objective, student, world.student_mesh, torch.bfloat16)
        optimizer = torch.optim.AdamW(distilled.parameters(), foreach=False)
        with FSDPMemTracker(distilled, optimizer) as tracker:
            for _ in range(2):
                for micro_batch in range(accumulation):
                    tracker.reset_mod_stats()
                    last = micro_batch == accumulation - 1
                    reduce_gradients(distilled, True, last, bool(student.reshard_after_forward))
                    distilled(*one_batch(), 1.0, False)[0].backward()
                optimizer.step()
                optimizer.zero_grad()
        peak = sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())
    assert peak == pytest.approx(planned_student(student), rel=0.1)


def as_on_a_gpu() -> dict[str, Any]:
    """Of the loss: larger chunks, and a scale that nobody looks at."""

    def scaled(grad: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.mul(grad, by, out=torch.empty_like(grad, dtype=dtype))

    sizes = {f"CPU_{part}_BYTES": getattr(losses, f"GPU_{part}_BYTES") for part in ("CHUNK", "BLOCK")}
    return {"_scaled": scaled, **sizes}


def one_batch() -> tuple[MicroBatch, Logits]:
    ids, vocabulary = torch.zeros(1, TOKENS, dtype=torch.long), int(str(SMALLER["vocab_size"]))
    batch = MicroBatch(ids, torch.arange(TOKENS).unsqueeze(0), torch.arange(TOKENS), ids.flatten())
    return batch, Logits(torch.empty(TOKENS, vocabulary, dtype=torch.bfloat16), vocabulary)


def planned_student(student: RoleLayout) -> float:
    """Bytes, with the payload that arrives."""
    model = from_config(SMALLER, "config.json")
    setting = setting_of(model, model, TOKENS)
    degrees = StudentDegrees(
        student.replicas, student.fsdp, student.activation_recompute == "full", student.reshard_after_forward
    )
    memory = student_memory(setting, site(), degrees, TOKENS, "logits", holds_head=False)
    return memory.total + student_buffer_bytes(setting, TOKENS, "logits")


def test_a_teacher_that_never_learns_does_not_remember_its_forwards() -> None:
    with pretended(layout_of(64), 0) as world:
        assert world.teacher is not None
        assert world.teacher.mesh is not None
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        for part in (*model, model):
            fully_shard(part, mesh=world.teacher.mesh["fsdp"])
        with torch.no_grad():
            model(torch.ones(1, 4))
        order = model._get_fsdp_state()._comm_ctx.post_forward_order
        groups = list(order)
        assert [len(group._post_forward_indices) for group in groups] == [1, 1]  # of one forward
        forget_forwards(model)
        assert not order
        assert not any(group._post_forward_indices for group in groups)

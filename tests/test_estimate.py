"""estimate: its flags, its JSON, what it refuses; and the terms of a step against numbers worked out by hand."""

import json
from dataclasses import replace
from typing import Any

import pytest
from plan_cases import LLAMA_8B, LLAMA_70B, model
from typer.testing import CliRunner

from kd_launch.catalog import find_gpu
from kd_launch.cli.__main__ import app
from kd_launch.errors import SpecError
from kd_launch.estimate.forward import estimate_forward
from kd_launch.estimate.request import Request
from kd_launch.estimate.train import estimate_training

H100 = find_gpu("H100-SXM-80")
KEYS = {
    "step_seconds", "tokens_per_second", "tokens_per_second_per_gpu", "mfu", "memory_gib", "fits", "breakdown"
}  # fmt: skip


def ask(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["estimate", *arguments])


def request(**changes: Any) -> Request:
    values = {"model": LLAMA_8B, "gpu": H100, "gpus": 8, "global_batch_size": 64, "micro_batch_size": 1}
    return Request(**values | changes)


GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}


@pytest.mark.parametrize("kind", ["train", "forward"])
def test_a_model_is_a_hub_id_a_folder_or_its_config(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    answers = []
    for name in ("openai-community/gpt2", str(tmp_path), str(tmp_path / "config.json")):
        done = ask(kind, name, "--gpu", "NVIDIA A100-SXM4-80GB", "--gpus", "4", "--global-batch-size", "32", "--json")
        assert done.exit_code == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert answers[0] == answers[1] == answers[2]
    assert set(answers[0]) >= KEYS
    assert set(answers[0]["step_seconds"]) == {"p10", "p50", "p90"}
    assert answers[0]["parameters"] == 124_439_808


def test_all_flags_of_the_design_are_taken():
    flags = (
        "--gpus 48 --gpus-per-node 8 --tp 2 --pp 3 --zero 1 --sequence-length 8192 --global-batch-size 64 "
        "--micro-batch-size 1 --recompute full --dtype fp8 --attention eager --compile --inter-node-gb-per-s 200 --json"
    )
    for kind in ("train", "forward"):
        done = ask(kind, "meta-llama/Llama-3.1-8B", "--gpu", "H100-SXM-80", *flags.split())
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["data_parallel"] == 8


def test_ranks_without_a_sequence_share_one_and_it_is_said():
    words = (
        "meta-llama/Llama-3.1-8B --gpu H100 --gpus 8 --sequence-length 131072 --global-batch-size 2 --recompute full"
    )
    done = ask("train", *words.split(), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["data_parallel"] == 2
    assert "4 ranks share the tokens of one (--cp)" in done.stderr
    assert ask("forward", *words.split(), "--json").exit_code == 2


def test_people_get_words():
    done = ask("train", "Qwen/Qwen3-14B", "--gpu", "H100", "--gpus", "8", "--micro-batch-size", "8")
    assert done.exit_code == 0
    assert "ZeRO-3" in done.stdout
    assert "does NOT fit" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 140


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": 9, "tp": 2}, "--gpus must be a multiple of tp x pp x cp = 2, is 9"),
        ({"gpus": 0}, "--gpus must be at least 1, is 0"),
        ({"tp": 8, "model": model("openai-community/gpt2")}, "--tp must divide the model's 12 attention heads, is 8"),
        ({"pp": 40, "gpus": 40}, "--pp must be at most the model's 32 layers, is 40"),
        ({"global_batch_size": 12}, "--global-batch-size must be a multiple of the 8 data-parallel ranks, is 12"),
        ({"micro_batch_size": 3}, "--micro-batch-size must divide the 8 sequences of a data-parallel rank, is 3"),
        ({"gpu": find_gpu("A100-SXM-80"), "dtype": "fp8"}, "--dtype fp8: A100-SXM-80 has bf16, fp16, fp32"),
        ({"inter_node_gb_per_s": 0.0}, "--inter-node-gb-per-s must be above 0, is 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value_and_the_way_out(changes, words):
    with pytest.raises(SpecError) as refused:
        estimate_training(request(**changes))
    assert words in str(refused.value)


def test_wrong_names_are_answered_with_exit_2():
    assert ask("train", "Qwen/Qwen3-14B", "--gpu", "H1000", "--gpus", "8").exit_code == 2
    assert ask("train", "no/such/model", "--gpu", "H100", "--gpus", "8").exit_code == 2


def test_a_pipeline_adds_its_bubble():
    # 4 stages, 8 micro-batches: 3 of 8 times one stage's work, when all stages are equal
    found = estimate_training(request(gpus=4, pp=4, global_batch_size=8, zero=0)).breakdown
    work = sum(found[term] for term in ("gemm", "attention", "elementwise", "launch"))
    stage_of_head = found["head"] * 3  # the last stage does all of it, the mean counts a quarter
    assert found["pipeline"] == pytest.approx(3 / 8 * work + stage_of_head, rel=0.05)
    interleaved = estimate_training(request(gpus=4, pp=4, global_batch_size=8, zero=0, interleave=4)).breakdown
    assert interleaved["pipeline"] == pytest.approx(3 / 32 * work + stage_of_head, rel=0.05)


def test_layers_need_not_divide_over_the_stages():
    even, odd = (estimate_training(request(gpus=pp, pp=pp, global_batch_size=64, zero=0)) for pp in (4, 5))
    assert odd.step_seconds.p50 < even.step_seconds.p50
    assert odd.breakdown["pipeline"] / odd.step_seconds.p50 > even.breakdown["pipeline"] / even.step_seconds.p50


def test_full_recomputation_is_one_more_forward_of_the_layers():
    plain, full = (estimate_training(request(recompute=what)).breakdown for what in ("none", "full"))
    assert full["recompute"] == pytest.approx((plain["gemm"] + plain["elementwise"]) / 3 + plain["attention"] / 3.5)
    assert plain["recompute"] == 0


def test_sharded_weights_travel_in_every_micro_batch_and_replicas_reduce_once():
    slow = {"inter_node_gb_per_s": 5.0, "gpus": 16, "sequence_length": 512}
    once, often = (request(zero=zero, global_batch_size=512, **slow) for zero in (0, 3))
    ddp, fsdp = estimate_training(once).breakdown, estimate_training(often).breakdown
    # 4 bytes of gradient twice, against 2 bytes of weights twice and 4 of gradient, 32 times
    assert fsdp["data_parallel"] / ddp["data_parallel"] == pytest.approx(32, rel=0.15)


def test_states_are_divided_as_the_stages_say():
    sizes = []
    for zero in (0, 1, 2, 3):
        memory = estimate_training(request(zero=zero)).memory_parts_gib
        sizes.append(sum(memory[part] for part in ("weights", "gradients", "optimizer")) * 2**30 / LLAMA_8B.parameters)
    assert sizes == pytest.approx([18, 6 + 12 / 8, 2 + 16 / 8, 16 / 8])


def test_the_largest_teacher_gains_by_every_axis():
    whole = estimate_forward(request(model=LLAMA_70B, micro_batch_size=None, zero=0))
    assert not whole.fits
    for split in ({"zero": 3}, {"tp": 8, "zero": 0}, {"pp": 8, "zero": 0}, {"tp": 4, "pp": 2, "zero": 0}):
        assert estimate_forward(request(model=LLAMA_70B, micro_batch_size=None, **split)).fits, split


def test_8_bits_are_faster_and_need_no_less_for_the_states():
    wide, narrow = (estimate_training(request(dtype=dtype, micro_batch_size=2)) for dtype in ("bf16", "fp8"))
    assert 1.2 < wide.step_seconds.p50 / narrow.step_seconds.p50 < 2
    assert narrow.memory_parts_gib["optimizer"] == wide.memory_parts_gib["optimizer"]


def test_without_a_micro_batch_the_fastest_that_fits_is_taken():
    free = estimate_training(request(micro_batch_size=None, loss="plain"))
    assert free.fits
    given = [estimate_training(request(micro_batch_size=size, loss="plain")) for size in (1, 2, 4, 8)]
    assert free.step_seconds.p50 == min(one.step_seconds.p50 for one in given if one.fits)


def test_a_domain_of_the_fast_link_counts_as_one_node():
    gb200 = replace(request(), gpu=find_gpu("GB200"), gpus=16, gpus_per_node=4, inter_node_gb_per_s=10.0)
    apart = replace(gb200, gpu=replace(find_gpu("GB200"), link_domain=None))
    assert estimate_training(gb200).step_seconds.p50 < 0.5 * estimate_training(apart).step_seconds.p50


def test_a_loss_is_computed_in_pieces_where_it_does_not_fit_at_once():
    asked = {"micro_batch_size": 4, "recompute": "full"}
    plain, fused, auto = (estimate_training(request(**asked, loss=loss)) for loss in ("plain", "fused", "auto"))
    assert (plain.fits, fused.fits) == (True, True)
    assert auto == plain
    assert plain.memory_parts_gib["logits"] == pytest.approx(3.5 * fused.memory_parts_gib["logits"])  # 14 bytes, 4
    larger = asked | {"micro_batch_size": 8}
    plain, auto = (estimate_training(request(**larger, loss=loss)) for loss in ("plain", "auto"))
    assert (plain.fits, auto.fits, auto.loss) == (False, True, "pieces")
    assert sum(auto.memory_parts_gib.values()) == pytest.approx(auto.memory_limit_gib)
    assert auto.step_seconds == plain.step_seconds
    words = "meta-llama/Llama-3.1-8B --gpu H100 --gpus 8 --micro-batch-size 8 --recompute full"
    assert "fits, if the loss is computed in pieces" in ask("train", *words.split()).stdout


def test_ranks_divide_experts_and_exchange_tokens():
    asked = {"model": model("Qwen/Qwen3-30B-A3B"), "zero": 1, "global_batch_size": 64}
    whole, split = (estimate_training(request(**asked, ep=ep)) for ep in (1, 8))
    experts = 48 * 128 * 3 * 2048 * 768
    freed = (whole.memory_parts_gib["weights"] - split.memory_parts_gib["weights"]) * 2**30
    assert freed == pytest.approx(2 * experts * 7 / 8)
    assert split.memory_parts_gib["optimizer"] == pytest.approx(whole.memory_parts_gib["optimizer"])
    assert whole.breakdown["expert_parallel"] == 0 < split.breakdown["expert_parallel"]
    with pytest.raises(SpecError, match="--ep must divide the model's 128 experts and a stage's 8 ranks, is 3"):
        estimate_training(request(**asked, ep=3))
    with pytest.raises(SpecError, match="--ep must be 1 for a model without experts, is 2"):
        estimate_training(request(ep=2))

"""Laws of the cost model: what can only help never hurts."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import LLAMA_8B, LLAMA_70B, QWEN_1_7B, model

from kd_launch.catalog import find_gpu
from kd_launch.estimate.forward import estimate_forward
from kd_launch.estimate.request import Request
from kd_launch.estimate.train import estimate_training

MODELS = (LLAMA_8B, LLAMA_70B, QWEN_1_7B, model("openai-community/gpt2"), model("Qwen/Qwen3-30B-A3B"))
GPUS = tuple(find_gpu(name) for name in ("A100-SXM-80", "H100-SXM-80", "GB200", "MI300X"))


@st.composite
def requests(draw):
    """Any layout on up to 128 GPUs."""
    one = draw(st.sampled_from(MODELS))
    tp = draw(st.sampled_from([size for size in (1, 2, 4, 8) if one.heads % size == 0]))
    pp, data = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4, 8]))
    micro, count = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 8]))
    return Request(
        model=one,
        gpu=draw(st.sampled_from(GPUS)),
        gpus=tp * pp * data,
        gpus_per_node=draw(st.sampled_from([4, 8])),
        tp=tp,
        pp=pp,
        zero=draw(st.sampled_from([0, 1, 2, 3])),
        sequence_length=draw(st.sampled_from([512, 4096, 32768])),
        global_batch_size=data * micro * count,
        micro_batch_size=micro,
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        dtype=draw(st.sampled_from(["bf16", "fp16", "fp32"])),
        attention=draw(st.sampled_from(["flash", "eager"])),
        compile=draw(st.booleans()),
        inter_node_gb_per_s=draw(st.sampled_from([None, 5.0, 50.0, 400.0])),
    )


def wider(request, axis):
    """Twice the ranks on one axis, the work of a rank the same."""
    batch = request.global_batch_size * (2 if axis == "data" else 1)
    grown = {"gpus": 2 * request.gpus, "global_batch_size": batch}
    return replace(request, **grown | ({} if axis == "data" else {axis: 2 * getattr(request, axis)}))


@settings(deadline=None, max_examples=60)
@given(requests())
def test_terms_are_not_negative_and_sum_to_the_step(request):
    for estimate in (estimate_training(request), estimate_forward(request)):
        assert min(estimate.breakdown.values()) >= -1e-9 * estimate.step_seconds.p50
        assert abs(sum(estimate.breakdown.values()) - estimate.step_seconds.p50) < 1e-9 * estimate.step_seconds.p50
        assert min(estimate.memory_parts_gib.values()) >= 0
        assert estimate.step_seconds.p10 < estimate.step_seconds.p50 < estimate.step_seconds.p90


@settings(deadline=None, max_examples=60)
@given(requests(), st.sampled_from(["data", "tp"]))
def test_more_shards_never_raise_memory_per_rank(request, axis):
    if axis == "tp" and (request.model.heads % (2 * request.tp) or request.tp == 1):
        return  # a first split of the products needs buffers that no split needs
    before, after = request, wider(request, axis)
    # sharding over nodes that were not there at all: two ranks gather what one rank simply had
    if axis == "data" and before.data_parallel == 1:
        return
    assert estimate_training(after).memory_gib <= estimate_training(before).memory_gib * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(requests(), st.floats(1.0, 100.0), st.floats(1.0, 8.0))
def test_a_faster_link_never_slows_a_step(request, speed, gain):
    slow, fast = (replace(request, inter_node_gb_per_s=value) for value in (speed, gain * speed))
    for estimate in (estimate_training, estimate_forward):
        assert estimate(fast).step_seconds.p50 <= estimate(slow).step_seconds.p50 * (1 + 1e-9)


@settings(deadline=None, max_examples=60)
@given(requests(), st.floats(1.0, 4.0))
def test_more_memory_never_makes_a_fitting_layout_unfit(request, gain):
    gpu = request.gpu
    assert gpu.memory_gib is not None
    larger = replace(request, gpu=replace(gpu, memory_gib=gain * gpu.memory_gib))
    for estimate in (estimate_training, estimate_forward):
        assert estimate(larger).fits or not estimate(request).fits


@settings(deadline=None, max_examples=60)
@given(requests())
def test_recomputation_trades_memory_for_time(request):
    none, full = (estimate_training(replace(request, recompute=what)) for what in ("none", "full"))
    assert full.step_seconds.p50 >= none.step_seconds.p50
    assert full.memory_parts_gib["activations"] <= none.memory_parts_gib["activations"] * 1.5


@settings(deadline=None, max_examples=40)
@given(requests())
def test_zero_stages_never_raise_what_is_kept(request):
    """From DDP to ZeRO-1 and from ZeRO-2 to ZeRO-3 each stage divides more."""
    kept = []
    for stage in (0, 1):
        memory = estimate_training(replace(request, zero=stage)).memory_parts_gib
        kept.append(memory["weights"] + memory["gradients"] + memory["optimizer"])
    assert kept[1] <= kept[0]

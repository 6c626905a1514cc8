"""Time on one device: products, layers and the loss against FLOPs and bytes worked out by hand."""

import pytest
from plan_cases import LLAMA_8B, local, model, pool, slurm

from kd_launch.catalog import find_engine, find_gpu
from kd_launch.cost.compute import (
    beside_host,
    device_of,
    floors,
    gradient_sum_seconds,
    layer_seconds,
    loss_chunk_rows,
    loss_seconds,
    most_loss_rows,
    optimizer_seconds,
)
from kd_launch.cost.constants import load_constants

TIME = load_constants().time


def device(dtype="bfloat16", **changes):
    described = slurm(pool(**changes)).pools[0]
    found = device_of(described, find_gpu(described.gpu), dtype, TIME)
    assert found is not None
    return found


def cpu(cores=1, dtype="float32"):
    described = local(1, cpus_per_node=cores).pools[0]
    found = device_of(described, find_gpu("CPU"), dtype, TIME)
    assert found is not None
    return found


def test_large_product_runs_at_the_efficiency():
    seconds = device().gemm_seconds(8192, 8192, 8192)
    assert seconds == pytest.approx(2 * 8192**3 / (989e12 * find_gpu("H100").gemm_efficiency), rel=0.01)


def test_few_rows_wait_for_the_weights():
    seconds = device().gemm_seconds(1, 8192, 8192)
    assert seconds == pytest.approx(2 * 8192 * 8192 / (3.35e12 * 0.8) + 4e-6, rel=0.01)


def test_512_rows_are_nearly_enough():
    one, all_rows = (device().gemm_seconds(rows, 8192, 8192) / rows for rows in (512, 16384))
    assert 1.0 < one / all_rows < 1.25


def test_layers_cost_their_flops():
    # on CPU cores neither knees nor tensor sizes matter, so that the products' time is FLOPs over speed
    seconds = layer_seconds(cpu(), LLAMA_8B, 4096, 4096, tp=1)
    flops = LLAMA_8B.forward_flops_per_token(4096, with_head=False) * 4096 / LLAMA_8B.layers
    assert seconds.gemms + seconds.attention == pytest.approx(flops / cpu().flops_per_s, rel=0.01)


def test_experts_cost_their_active_flops():
    mixtral = model("mistralai/Mixtral-8x7B-v0.1")
    seconds = layer_seconds(cpu(), mixtral, 4096, 4096, tp=1)
    flops = mixtral.forward_flops_per_token(4096, with_head=False) * 4096 / mixtral.layers
    assert seconds.gemms + seconds.attention == pytest.approx(flops / cpu().flops_per_s, rel=0.02)


def test_backward_is_twice_the_products_and_no_layer_beats_its_floor():
    seconds = layer_seconds(device(), LLAMA_8B, 8192, 4096, tp=1)
    assert seconds.backward == pytest.approx(2 * seconds.forward, rel=0.1)
    assert beside_host(device(), seconds.forward, 1.0) == pytest.approx(1.0)
    assert beside_host(device(), 1.0, 0.0) == 1.0
    assert 1.0 < beside_host(device(), 1.0, 1.0) < 1.1  # small kernels wait for the host before large ones
    assert beside_host(cpu(), 1.0, 1.0) == 1.0


def test_tensor_parallel_layers_split_products_but_not_all_memory_traffic():
    whole, half = (layer_seconds(device(), LLAMA_8B, 8192, 4096, tp=tp) for tp in (1, 2))
    assert half.gemms == pytest.approx(whole.gemms / 2, rel=0.1)
    assert whole.elementwise / 2 < half.elementwise < whole.elementwise


def test_compiled_layers_start_faster():
    engine = find_engine("kd-launch")
    assert floors(engine, device(), compiled=True) == tuple(
        0.4 * floor for floor in floors(engine, device(), compiled=False)
    )


def test_chunk_rows_keep_the_logits_within_the_chunk():
    assert most_loss_rows(100_000, 151936, 64) == 64 * 2**20 // (4 * 151936) == 110
    assert most_loss_rows(10, 151936, 64) == 10
    assert most_loss_rows(10, 10**9, 64) == 1


def test_loss_time_is_three_products_and_traffic_and_one_more_for_hidden_states():
    tokens, rows, vocabulary, hidden = 4096, 4096, 128256, 4096
    product = 2 * tokens * vocabulary * hidden / (989e12 * find_gpu("H100").gemm_efficiency)
    sums = 8 * vocabulary * hidden / (3.35e12 * 0.8)
    elementwise = 50 * tokens * vocabulary / (3.35e12 * 0.8)
    logits = loss_seconds(device(), tokens, rows, vocabulary, hidden, None, 50)
    assert logits == pytest.approx(3 * product + sums + elementwise, rel=0.03)
    assert loss_seconds(device(), tokens, rows, vocabulary, hidden, 8192, 50) - logits == pytest.approx(
        2 * product, rel=0.03
    )


def test_small_chunks_read_the_head_again_and_again():
    large, small = (loss_seconds(device(), 4096, rows, 151936, 2048, None, 50) for rows in (4096, 64))
    assert small > 2 * large


def test_optimizer_moves_its_states():
    seconds = optimizer_seconds(device(), 1e9, find_engine("kd-launch"))
    assert seconds == pytest.approx(34e9 / (3.35e12 * 0.8))


def test_processes_share_the_cores():
    assert cpu(cores=4).flops_per_s == 4 * cpu(cores=1).flops_per_s


def test_unknown_dtype_speed_gives_no_device():
    described = slurm(pool(gpu="V100-SXM-32")).pools[0]
    assert device_of(described, find_gpu("V100-SXM-32"), "bfloat16", TIME) is None


def test_without_sequence_parallelism_every_rank_computes_what_is_as_wide_as_the_hidden_states():
    split, whole, alone = (
        layer_seconds(device(), LLAMA_8B, 8192, 4096, tp=tp, splits_sequence=splits)
        for tp, splits in ((4, True), (4, False), (1, False))
    )
    assert split.gemms == whole.gemms
    assert split.elementwise < whole.elementwise < alone.elementwise


def test_chunks_are_about_alike():
    # 150 rows fit, 200 tokens are there: two chunks of 100
    assert loss_chunk_rows(200, 1000, 150 * 4000 / 2**20) == 100


def test_sums_of_gradients_cost_their_traffic():
    speed = 3.35e12 * 0.8
    once, twice = (gradient_sum_seconds(device(), 1e9, 1000, 100, times, tied=False) for times in (1, 2))
    assert once == pytest.approx(2 * 1000 * 100 / speed)
    assert twice - once == pytest.approx((10e9 + 2 * 1000 * 100) / speed)
    assert gradient_sum_seconds(device(), 1e9, 1000, 100, 1, tied=True) == pytest.approx(4 * once)

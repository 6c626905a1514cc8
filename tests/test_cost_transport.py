"""Payload sizes, and the narrowest place on their way."""

import pytest
from plan_cases import LLAMA_8B, LLAMA_70B, setting_of, site

from kd_launch.cost.roles import columns_seconds
from kd_launch.cost.setting import TeacherDegrees
from kd_launch.cost.transport import Route, payload_bytes_per_token, transport_seconds


def size(payload, hidden=8192, vocabulary=128256, width=2, top_k=64):
    return payload_bytes_per_token(payload, hidden=hidden, vocabulary=vocabulary, width=width, top_k=top_k)


def route(**changes):
    values = {
        "teacher": site().fabric,
        "student": site().fabric,
        "teacher_nodes": 2.0,
        "student_nodes": 2,
        "pairs": 16,
        "same_node": False,
    }
    return Route(**values | changes)


def test_hidden_states_of_70b_are_16_kib():
    assert size("hidden_states") == 16 * 1024


def test_logits_are_the_vocabulary():
    assert size("logits") == 256_512  # Llama 3: 257 KB
    assert size("logits", vocabulary=151936) == 303_872  # Qwen3: 304 KB


def test_top_k_has_ids_values_and_the_missing_mass():
    assert size("top_k") == 64 * 6 + 4


@pytest.mark.parametrize("hidden", [2048, 4096, 8192])
def test_hidden_states_are_smaller_than_top_k_beyond_a_third_of_the_hidden_size(hidden):
    assert (
        size("top_k", top_k=hidden // 3 + 1)
        > size("hidden_states", hidden=hidden)
        > size("top_k", top_k=hidden // 3 - 1)
    )


def test_adapters_of_the_smaller_side_are_the_narrow_place():
    both, more_teachers = route(), route(teacher_nodes=8.0)
    assert both.bytes_per_s() == more_teachers.bytes_per_s() == 2 * 0.75 * 400e9


def test_inside_a_node_every_pair_has_its_own_link():
    assert route(same_node=True, pairs=4).bytes_per_s() == 4 * site().fabric.pair


def test_foreign_fabrics_are_slow():
    assert route(foreign=1.25e9).bytes_per_s() == 2 * 1.25e9


def test_time_is_bytes_over_the_narrow_place_and_latency_per_message():
    assert transport_seconds(route(), 600e9, 0) == pytest.approx(1.0)
    assert transport_seconds(route(), 0, 100) == pytest.approx(100 * 10e-6)


def test_logits_over_tensor_parallel_ranks_are_gathered_where_both_roles_share_gpus() -> None:
    setting, place, split = setting_of(LLAMA_70B, LLAMA_8B), site(), TeacherDegrees(fsdp=1, tp=8, pp=1)
    size = 2 * 4096 * 128256
    seconds = columns_seconds(setting, place, split, 8, 4096, "logits")
    assert size * 7 / 8 / 450e9 < seconds < size / 100e9
    assert columns_seconds(setting, place, split, 8, 8192, "logits") == pytest.approx(2 * seconds, rel=0.1)
    assert columns_seconds(setting, place, split, 8, 4096, "hidden_states") == 0
    assert columns_seconds(setting, place, TeacherDegrees(fsdp=8, tp=1, pp=1), 8, 4096, "logits") == 0

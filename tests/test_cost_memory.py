"""Memory of both roles against numbers worked out by hand."""

from dataclasses import replace

import pytest
from plan_cases import LLAMA_8B, LLAMA_70B, QWEN_1_7B, QWEN_14B, setting_of, site

from kd_launch.cost.activations import saved_of
from kd_launch.cost.constants import GIB
from kd_launch.cost.memory import (
    loss_buffer_bytes,
    student_buffer_bytes,
    student_memory,
    teacher_buffer_bytes,
    teacher_memory,
)
from kd_launch.cost.setting import StudentDegrees, TeacherDegrees
from kd_launch.runtime import losses

PARAMETERS_8B = 8_030_261_248
WHOLE = StudentDegrees(replicas=8, fsdp=1, recompute=False, reshard=None)
SHARDED = StudentDegrees(replicas=1, fsdp=8, recompute=False, reshard=True)


def of_student(degrees=WHOLE, tokens=4096, payload="hidden_states", setting=None, **options):
    setting = setting or setting_of(LLAMA_70B, LLAMA_8B)
    return student_memory(setting, site(), degrees, tokens, payload, **{"holds_head": True} | options)


def test_frozen_teacher_holds_its_weights_once():
    memory = teacher_memory(setting_of(LLAMA_8B, LLAMA_8B), TeacherDegrees(1, 1, 1), 4096)
    assert memory.resident == {"weights": 2 * PARAMETERS_8B}
    assert memory.transient["gathered weights"] == 0


@pytest.mark.parametrize("degrees", [TeacherDegrees(8, 1, 1), TeacherDegrees(1, 8, 1), TeacherDegrees(4, 2, 1)])
def test_teacher_weights_are_divided_by_all_axes(degrees):
    memory = teacher_memory(setting_of(LLAMA_70B, LLAMA_8B), degrees, 4096)
    assert memory.resident["weights"] == pytest.approx(2 * 70_553_706_496 / 8)


def test_largest_pipeline_stage_has_its_layers_and_the_head():
    memory = teacher_memory(setting_of(LLAMA_70B, LLAMA_8B), TeacherDegrees(1, 1, 3), 4096)
    layers = 80 * LLAMA_70B.layer_parameters
    assert memory.resident["weights"] == pytest.approx(2 * (layers * 27 / 80 + 128256 * 8192))


def test_fsdp_teacher_gathers_its_root_and_two_layers():
    memory = teacher_memory(setting_of(LLAMA_70B, LLAMA_8B), TeacherDegrees(8, 1, 1), 4096)
    root = 2 * 128256 * 8192 + 8192  # embedding, head, last norm
    assert memory.transient["gathered weights"] == 2 * (root + 2 * LLAMA_70B.layer_parameters)


def test_training_state_is_16_bytes_a_parameter():
    assert of_student(WHOLE).resident["training state"] == 16 * PARAMETERS_8B
    assert of_student(SHARDED).resident["training state"] == 16 * PARAMETERS_8B / 8


def test_gathered_compute_weights_are_2_bytes_a_parameter_unless_freed():
    kept = SHARDED._replace(reshard=False)
    assert of_student(WHOLE).transient["gathered weights"] == 2 * PARAMETERS_8B
    assert of_student(kept).transient["gathered weights"] == 2 * PARAMETERS_8B
    root = 2 * 128256 * 4096 + 4096
    assert of_student(SHARDED).transient["gathered weights"] == 2 * (root + 2 * LLAMA_8B.layer_parameters)


def test_llama_layer_saves_32_bytes_per_token_and_hidden_unit():
    # 2 norms, inputs and outputs of attention with a quarter of the heads for keys and values, 3 x 3.5 h of the MLP
    assert saved_of(LLAMA_8B, 2).per_rank(1) == 2 * (2 * 4096 + (3 * 4096 + 2 * 1024) + 3 * 14336) == 32 * 4096


def test_activations_grow_with_layers_and_recompute_keeps_one():
    tokens, layer = 4096, 4096 * 4096 * (2 * 8 + 5 * 2 + 4 * 3.5 * 2)  # norms, attention, MLP
    outputs = 2 * 2 * tokens * 4096
    assert of_student().transient["activations"] == pytest.approx(32 * layer + outputs)
    recomputing = WHOLE._replace(recompute=True)
    saved = 32 * 2 * tokens * 4096
    assert of_student(recomputing).transient["activations"] == pytest.approx(saved + layer + outputs)


def test_loss_holds_two_chunks_and_six_blocks_however_many_tokens():
    setting = setting_of(LLAMA_70B, LLAMA_8B)
    rows = 256 * 2**20 // (4 * 128256)
    assert rows == 523
    assert loss_buffer_bytes(setting, site(), 4096) == loss_buffer_bytes(setting, site(), 65536)
    width = setting.student_width
    assert loss_buffer_bytes(setting, site(), 4096) == (2 * width * 523 + 6 * 4 * 130) * 128256
    assert loss_buffer_bytes(setting, site(), 16) == (2 * width + 6 * 4) * 16 * 128256
    on_cpu = loss_buffer_bytes(setting, site(gpu="CPU", gpus_per_node=2), 4096)
    assert 2 * width * 8 * 2**20 * 0.95 < on_cpu <= (2 * width * 8 + 6 * 1) * 2**20


def test_loss_buffers_are_as_large_as_the_runtime_makes_them():
    memory = setting_of(LLAMA_70B, LLAMA_8B).constants.memory
    assert memory.loss_chunk_mib * 2**20 == losses.GPU_CHUNK_BYTES
    assert memory.cpu_loss_chunk_mib * 2**20 == losses.CPU_CHUNK_BYTES
    assert memory.loss_block_mib * 2**20 == losses.GPU_BLOCK_BYTES
    assert memory.cpu_loss_block_mib * 2**20 == losses.CPU_BLOCK_BYTES


def test_head_gradient_is_one_float32_matrix_and_one_product():
    memory = of_student(setting=setting_of(QWEN_14B, QWEN_1_7B))
    float32 = 4 * 151936 * 2048
    assert float32 == pytest.approx(1.24e9, rel=0.01)
    assert memory.resident["head gradient"] == float32 * 1.5


def test_head_of_the_teacher_only_for_hidden_states_from_elsewhere():
    assert of_student().resident["teacher head"] == 2 * 128256 * 8192
    assert "teacher head" not in of_student(payload="logits").resident
    assert "teacher head" not in of_student(holds_head=False).resident


def test_a_spread_head_takes_its_share_and_the_buffers_of_one_chunk():
    whole, spread = of_student(SHARDED), of_student(SHARDED._replace(head_shards=8))
    assert spread.resident["teacher head"] == whole.resident["teacher head"] / 8
    rows = 523  # of a chunk: 256 MiB of float32 logits
    exchanged = 2 * rows * (9 * 8192 + 2 * 128256)
    assert spread.transient["loss buffers"] - whole.transient["loss buffers"] == exchanged


def test_payload_buffers_hold_a_copy_more_where_they_are_sent():
    setting = setting_of(LLAMA_70B, LLAMA_8B)
    assert student_buffer_bytes(setting, 4096, "hidden_states") == 4096 * 2 * 8192
    assert teacher_buffer_bytes(setting, TeacherDegrees(1, 1, 1), 4096, "hidden_states") == 2 * 4096 * 2 * 8192
    assert teacher_buffer_bytes(setting, TeacherDegrees(1, 4, 1), 4096, "logits") == 2 * 4096 * 2 * 128256 / 4


def test_padded_vocabularies_count_their_common_part():
    padded = replace(QWEN_14B, vocabulary=QWEN_14B.vocabulary + 512)
    assert setting_of(padded, QWEN_1_7B).vocabulary == QWEN_1_7B.vocabulary


def test_key_value_cache():
    assert LLAMA_8B.kv_bytes_per_token() == 128 * 1024
    assert LLAMA_70B.kv_bytes_per_token() == 320 * 1024


def test_limit_is_part_of_what_the_device_shows():
    assert site().memory_limit_gib == pytest.approx(0.92 * 79.6)
    assert site(gpu="CPU", gpus_per_node=4, memory_gib=64.0).memory_limit_gib == pytest.approx(0.92 * 16)
    assert pytest.approx(29.9, abs=0.05) == 4 * PARAMETERS_8B / GIB

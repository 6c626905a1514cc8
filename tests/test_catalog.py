"""The catalog's figures agree with each other, with transformers' own classes, and are found under all their names."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from kd_launch import catalog
from kd_launch.architecture import from_config
from kd_launch.errors import UnknownNameError

# How publications and nvidia-smi spell the devices that the cost model is tested on.
SPELLINGS = {
    "A100-SXM": "A100-SXM-80",
    "A100-SXM-40": "A100-SXM-40",
    "A100-SXM-80": "A100-SXM-80",
    "B200": "B200-SXM-180",
    "B200-SXM": "B200-SXM-180",
    "B300-SXM": "B300-SXM-288",
    "GB200": "GB200-186",
    "GB300": "GB300-288",
    "H100 80GB HBM3": "H100-SXM-80",
    "H100 PCIe": "H100-PCIE-80",
    "H100-96(HBM2e,500W)": "H100-SXM-96-500W",
    "H100-SXM-80": "H100-SXM-80",
    "H200-SXM-141": "H200-SXM-141",
    "MI250X": "MI250X-GCD",
    "MI300X": "MI300X-192",
    "NVIDIA A100-SXM4-40GB": "A100-SXM-40",
    "NVIDIA A100-SXM4-80GB": "A100-SXM-80",
    "NVIDIA A100-SXM-64GB": "A100-SXM-64",
    "NVIDIA A100-PCIE-40GB": "A100-PCIE-40",
    "NVIDIA GeForce RTX 4090": "RTX-4090-24",
    "NVIDIA GH200 480GB": "GH200-96",
    "NVIDIA H100 80GB HBM3": "H100-SXM-80",
    "NVIDIA H200": "H200-SXM-141",
    "NVIDIA L40S": "L40S-48",
    "Tesla V100-SXM2-32GB": "V100-SXM-32",
    "nvidia_a100-sxm4-80gb": "A100-SXM-80",
    "cpu": "CPU",
}


@pytest.mark.parametrize(("spelling", "gpu_id"), SPELLINGS.items())
def test_gpus_are_found_under_their_names(spelling: str, gpu_id: str) -> None:
    assert catalog.find_gpu(spelling).id == gpu_id


@pytest.mark.parametrize("gpu_id", catalog.gpu_ids())
def test_every_gpu_is_complete_and_plausible(gpu_id: str) -> None:
    gpu = catalog.find_gpu(gpu_id.lower())
    assert gpu.id == gpu_id
    assert all(catalog.find_gpu(alias) is gpu for alias in gpu.aliases)
    assert gpu.source
    assert gpu.vendor in {"nvidia", "amd", "cpu"}
    assert gpu.link in {"nvlink", "xgmi", "pcie", "loopback"}
    assert all(0 < share <= 1 for share in (gpu.gemm_efficiency, gpu.attention_efficiency, gpu.hbm_efficiency))
    assert gpu.hbm_tb_per_s > 0
    assert gpu.link_gb_per_s > 0
    assert set(gpu.assumed) <= {field.name for field in dataclasses.fields(gpu)}
    assert hash(gpu)


@pytest.mark.parametrize("gpu_id", catalog.gpu_ids())
def test_an_unknown_speed_is_null_and_a_missing_dtype_is_named(gpu_id: str) -> None:
    gpu = catalog.find_gpu(gpu_id)
    for dtype in ("bf16", "fp16", "fp32", "fp8"):
        speed = gpu.peak_flops_per_s(dtype)
        assert (speed is None) == (dtype in gpu.unsupported)
        assert gpu.supports(dtype) == (dtype not in gpu.unsupported)
        assert speed is None or speed > 0


@pytest.mark.parametrize("gpu_id", [gpu_id for gpu_id in catalog.gpu_ids() if gpu_id != "CPU"])
def test_memory_as_shown_is_a_little_under_as_many_gib_as_are_sold_as_gb(gpu_id: str) -> None:
    gpu = catalog.find_gpu(gpu_id)
    assert gpu.memory_gb is not None
    assert gpu.memory_gib is not None
    assert 0.92 * gpu.memory_gb <= gpu.memory_gib <= gpu.memory_gb


def test_measured_collectives_are_slower_than_the_link_times_their_definition() -> None:
    """Bus bandwidth of a ring cannot pass the link; reductions in the switch (NVLS) may, by less than two."""
    for gpu in map(catalog.find_gpu, catalog.gpu_ids()):
        assert [row.gpus for row in gpu.collectives] == sorted({row.gpus for row in gpu.collectives})
        for row in gpu.collectives:
            assert row.all_reduce_gb_per_s < 2 * gpu.link_gb_per_s
            assert row.all_gather_gb_per_s is None or row.all_gather_gb_per_s < gpu.link_gb_per_s


def test_figures_of_the_tables() -> None:
    a100, h100, gcd = (catalog.find_gpu(name) for name in ("A100-SXM-80", "H100-SXM-80", "MI250X"))
    assert a100.peak_flops_per_s("bfloat16") == 312e12
    assert h100.peak_flops_per_s("bf16") == h100.peak_flops_per_s("float16") == 989e12
    assert h100.peak_flops_per_s("float32") == 67e12
    assert (h100.link, h100.link_gb_per_s, h100.gemm_efficiency) == ("nvlink", 450, 0.684)
    assert a100.collectives == (catalog.BusBandwidth(8, 222, 205, 213, 23),)
    assert gcd.peak_flops_per_s("bf16") == 191.5e12  # half of the package
    assert not catalog.find_gpu("V100-SXM-32").supports("bfloat16")


def test_a_cpu_is_counted_by_core_and_its_memory_is_the_pools() -> None:
    cpu = catalog.find_gpu("CPU")
    assert cpu.per_core
    assert cpu.memory_gb is None
    assert cpu.peak_flops_per_s("float32") == 60e9
    assert cpu.peak_flops_per_s("bfloat16") == pytest.approx(60e9 / 4, rel=0.01)


@pytest.mark.parametrize(
    ("name", "suggested"), [("H100-SXM-8", "H100-SXM-80"), ("nvidia h100 pci", "H100-PCIE-80"), ("L40", "L40S-48")]
)
def test_an_unknown_gpu_is_answered_with_the_nearest_and_all_ids(name: str, suggested: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.find_gpu(name)
    message = str(caught.value)
    assert f"unknown GPU '{name}'; did you mean '{suggested}'?" in message
    assert all(gpu_id in message for gpu_id in catalog.gpu_ids())


def test_a_name_like_nothing_gets_no_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown GPU ''; known: "):
        catalog.find_gpu("")


@pytest.mark.parametrize("name", catalog.engine_names())
def test_every_engine_is_complete(name: str) -> None:
    engine = catalog.find_engine(name)
    assert engine.source
    assert 0 <= engine.overlap <= 1
    assert set(engine.assumed) <= {field.name for field in dataclasses.fields(engine)}
    numbers = [value for value in dataclasses.astuple(engine) if isinstance(value, int | float)]
    none_or_more = {engine.tensor_parallel_overlap, engine.straggler}
    assert all(number > 0 or number in none_or_more for number in numbers)
    assert 0 <= engine.tensor_parallel_overlap <= 1
    assert 0 <= engine.straggler < 0.1


def test_engine_factors_of_the_publications() -> None:
    assert catalog.find_engine("trl-zero3").teacher_factor == 3.0
    trl = catalog.find_engine("trl-deepspeed")
    assert (trl.compute_factor, trl.data_parallel_factor, trl.gather_factor) == (2.2, 2.5, 5.0)
    assert catalog.find_engine("kd-launch").overlap == 0.9
    with pytest.raises(UnknownNameError, match="unknown engine 'trl-zero2'; did you mean 'trl-zero3'"):
        catalog.find_engine("trl-zero2")


def test_models_are_many_and_found_whatever_the_case() -> None:
    assert len(catalog.model_ids()) >= 100
    assert catalog.model_config("qwen/qwen3-8b") == catalog.model_config("Qwen/Qwen3-8B")
    assert catalog.model_config("Qwen/Qwen3-9B") is None
    assert catalog.published_parameters("Qwen/Qwen3-9B") is None


def test_no_model_is_listed_twice() -> None:
    entries = yaml.safe_load(resources.files("kd_launch.catalog").joinpath("models.yaml").read_text())
    names = [name for hub_id, entry in entries.items() for name in (hub_id, *entry.get("also", {}))]
    assert len(names) == len(set(map(str.lower, names))) == len(catalog.model_ids())
    assert all(entry["source"].startswith("https://") for entry in entries.values())


def test_a_model_of_the_same_shape_differs_in_its_own_keys_only() -> None:
    base, instruct = catalog.model_config("Qwen/Qwen2.5-7B"), catalog.model_config("Qwen/Qwen2.5-7B-Instruct")
    assert base is not None
    assert instruct == {**base, "max_position_embeddings": 32768}


def test_callers_cannot_change_the_catalog() -> None:
    config = catalog.model_config("gpt2")
    assert isinstance(config, dict)
    config["n_layer"] = 99
    again = catalog.model_config("gpt2")
    assert again is not None
    assert again["n_layer"] == 12


def transformers_count(config: Mapping[str, object]) -> int:
    keys = dict(config)
    model_type = keys.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**keys))
    return sum(parameter.numel() for parameter in model.parameters())


def distinct_shapes() -> list[str]:
    """One id of every shape: ids that differ in the longest sequence or the window have the same parameters."""
    shapes: dict[str, str] = {}
    for hub_id in catalog.model_ids():
        config = catalog.model_config(hub_id)
        assert config is not None
        shape = {key: config[key] for key in config if key not in {"max_position_embeddings", "sliding_window"}}
        shapes.setdefault(json.dumps(shape, sort_keys=True), hub_id)
    return list(shapes.values())


@pytest.mark.parametrize("hub_id", distinct_shapes())
def test_parameters_agree_with_the_publication_and_with_transformers(hub_id: str) -> None:
    config = catalog.model_config(hub_id)
    assert config is not None
    architecture = from_config(config, hub_id)
    assert architecture.parameters == catalog.published_parameters(hub_id) == transformers_count(config)
    assert architecture.head_is_known
    assert architecture.max_positions


def test_every_listed_model_has_an_architecture_of_the_published_size() -> None:
    for hub_id in catalog.model_ids():
        config = catalog.model_config(hub_id)
        assert config is not None
        assert from_config(config, hub_id).parameters == catalog.published_parameters(hub_id)


def test_importing_and_asking_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "huggingface_hub", "pydantic", "submitit", "numpy"}
    script = (
        "import sys; from kd_launch import catalog, model_source\n"
        "catalog.find_gpu('H100-SXM-80')\n"
        "model_source.find_architecture('Qwen/Qwen3-14B', None, {'HOME': '/nonexistent'})\n"
        f"print(*sorted({heavy} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""

"""Weight files by their safetensors headers: whole, in their folder, and of the shapes that config.json says.

A header is 8 bytes of length and JSON, so a login node reads it without torch, and no weight with it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from kd_launch.architecture import Architecture
from kd_launch.errors import SpecError, printable

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST_HEADER_BYTES = 100_000_000
"""As the safetensors library has it."""

BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}
FLOATS = ("F64", "F32", "F16", "BF16")

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
_AGAIN = "copy the model again, or give `kd-launch prepare` for one of the hub"


@dataclass(frozen=True)
class Stored:
    """One tensor, as the header of its file describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def shard_names(folder: Path) -> list[str]:
    """The names of a model folder's weight files, sorted; also of those that are missing.

    Raises:
        SpecError: the index cannot be read, or names a file that is not in the folder itself.
    """
    return sorted(set(read_index(folder).values())) if (folder / INDEX).is_file() else [SINGLE]


def missing_weights(folder: Path) -> str | None:
    """The name of a weight file that a model's folder should have but has not; None when all are there."""
    return next((name for name in shard_names(folder) if not (folder / name).is_file()), None)


def read_weights(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model folder, by name; only headers are read.

    Raises:
        SpecError: a file is missing, cut off or damaged, or lacks a tensor that the index promises.
    """
    tensors: dict[str, Stored] = {}
    for name in shard_names(folder):
        tensors |= read_header(folder / name)
    for tensor, file in (read_index(folder) if (folder / INDEX).is_file() else {}).items():
        if tensor not in tensors or tensors[tensor].file.name != file:
            raise SpecError(f"{folder / file}: has no tensor '{printable(tensor, 80)}', which {INDEX} says; {_AGAIN}")
    return tensors


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file.

    Raises:
        SpecError: it is no such file, or not whole.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
                raise SpecError(f"{path}: is no safetensors file, or cut off: it has {size} bytes; {_AGAIN}")
            entries: Mapping[str, Any] = json.loads(file.read(length))
        tensors = {name: _entry(value) for name, value in entries.items() if name != "__metadata__"}
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}") from error
    except (ValueError, OverflowError, RecursionError, AttributeError, TypeError, LookupError) as error:
        raise SpecError(f"{path}: its safetensors header is damaged; {_AGAIN}") from error
    wanted = 8 + length + max((end for _, _, end in tensors.values()), default=0)
    if size != wanted:
        raise SpecError(
            f"{path}: has {size} bytes but its header describes {wanted}: it is cut off or damaged; {_AGAIN}"
        )
    return {name: Stored(path, dtype, shape) for name, (dtype, shape, _) in tensors.items()}


def _entry(value: Any) -> tuple[str, tuple[int, ...], int]:
    """dtype, shape and end of one entry; any of several errors where it is none."""
    dtype, shape, (begin, end) = str(value["dtype"]), tuple(map(int, value["shape"])), map(int, value["data_offsets"])
    bits = BITS.get(dtype)
    if begin < 0 or min(shape, default=0) < 0 or (bits is not None and (end - begin) * 8 != prod(shape) * bits):
        raise ValueError("its place is not as long as its shape")
    return dtype, shape, end


def read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, as the index of a model folder says.

    Raises:
        SpecError: it cannot be read, or names a file that is not in the folder itself.
    """
    path = folder / INDEX
    try:
        found = {str(tensor): str(name) for tensor, name in json.loads(path.read_bytes())["weight_map"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SpecError(f"{path}: cannot be read: {error}; {_AGAIN}") from error
    for name in found.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SpecError(
                f"{path}: names '{printable(name, 80)}', but only safetensors files of the model's own folder are read"
            )
    return found


# --- weights and config.json


def mismatch(tensors: Mapping[str, Stored], architecture: Architecture) -> str | None:
    """What config.json says and the weights are not, in words; None where they go together as far as names tell."""
    embedding = next((name for name in sorted(tensors) if name.endswith(_EMBEDDINGS)), None)
    if embedding is None:
        return None  # a model with names of its own: transformers finds out
    expected = (architecture.vocabulary, architecture.hidden)
    if tensors[embedding].shape != expected:
        return _differs(tensors[embedding], embedding, expected, "[vocab_size, hidden_size]")
    base = embedding[: embedding.rindex(next(end for end in _EMBEDDINGS if embedding.endswith(end)))]
    layers = _layers(tensors, base)
    # More are there where a model predicts several tokens ahead.
    missing = sorted(set(range(architecture.layers)) - set(layers)) if layers else []
    if missing:
        return (
            f"config.json says num_hidden_layers {architecture.layers} but the weights have no layer {missing[0]}; "
            "transformers would fill it with random numbers"
        )
    return _wrong_shape(tensors, layers.get(0, ()), architecture)


def _layers(tensors: Iterable[str], base: str) -> dict[int, list[str]]:
    """The names of each layer's tensors, of the tower that the embedding belongs to."""
    found: dict[int, list[str]] = {}
    for name in tensors:
        match = re.match(r"(?:layers|h)\.(\d{1,6})\.", name[len(base) :]) if name.startswith(base) else None
        if match:
            found.setdefault(int(match[1]), []).append(name)
    return found


def _wrong_shape(tensors: Mapping[str, Stored], names: Iterable[str], model: Architecture) -> str | None:
    """The matrix of a layer that config.json gives another shape, by the names that Llama's descendants have."""
    if not model.head_is_known:  # a family of which we know nothing
        return None
    expected = {
        "self_attn.q_proj.weight": ((model.heads * model.head_dim, model.hidden), "[heads * head_dim, hidden_size]"),
        "self_attn.k_proj.weight": (
            (model.kv_heads * model.head_dim, model.hidden),
            "[kv heads * head_dim, hidden_size]",
        ),
        "mlp.down_proj.weight": ((model.hidden, model.intermediate), "[hidden_size, intermediate_size]"),
    }
    for name in names:
        for ending, (shape, words) in expected.items():
            if name.endswith(ending) and tensors[name].dtype in FLOATS and tensors[name].shape != shape:
                return _differs(tensors[name], name, shape, words)
    return None


def _differs(stored: Stored, name: str, expected: tuple[int, ...], words: str) -> str:
    return f"{stored.file.name}: {name} is {list(stored.shape)} but config.json says {list(expected)}, {words}"


def foreign_dtype(tensors: Mapping[str, Stored]) -> str | None:
    """A matrix of integers or packed numbers, which is no weight as it stands, in words; None where all are floats."""
    for name, stored in sorted(tensors.items()):
        if len(stored.shape) > 1 and stored.dtype not in FLOATS and name.endswith((".weight", ".qweight")):
            return f"{printable(name, 80)} is {printable(stored.dtype, 20)}"
    return None

"""The weights of a model folder: any piece of any parameter, under the names that transformers' modules give them.

Files are read with plain reads. A mapping would count whole against a limit on memory, however little of it is used.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from kd_launch.errors import SpecError
from kd_launch.runtime.pieces import Piece, Range
from kd_launch.weight_files import INDEX, SINGLE, read_index

_EXPERT_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Of the matrices of one expert in a checkpoint; modules hold those of all experts in two tensors."""


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> safetensors file of a model folder.

    Raises:
        SpecError: no safetensors, or a damaged file.
    """
    if (folder / INDEX).exists():
        return {name: folder / file for name, file in read_index(folder).items()}
    single = folder / SINGLE
    if not single.exists():
        raise SpecError(
            f"{folder}: holds no model.safetensors; only safetensors are read, since other files can run code"
        )
    return dict.fromkeys(open_file(single).keys(), single)


def open_file(file: Path) -> Any:
    """A safetensors file, to be read without mapping it.

    Raises:
        SpecError: it is damaged.
    """
    try:
        return safe_open(file, "pt", backend="pread")
    except Exception as error:  # safetensors raises its own class, outside of any tree
        raise SpecError(f"{file}: is damaged: {error}") from error


class Weights:
    """The checkpoint of one model, open."""

    def __init__(self, folder: Path, prefix: str) -> None:
        """
        Args:
            folder: of the model.
            prefix: what the names of the base model's parameters begin with, such as "model".
        """
        self._folder, self._prefix = folder, prefix
        self._files = weight_files(folder)
        self._open: dict[Path, Any] = {}
        self._layers = ""
        self._numbers: tuple[int, ...] = ()

    def renumber(self, layers: str, numbers: tuple[int, ...]) -> None:
        """From now on layer i, of the layers called `layers`, is the checkpoint's layer numbers[i]."""
        self._layers, self._numbers = f"{layers}.", numbers

    def has(self, name: str) -> bool:
        """Whether a parameter can be read."""
        return self._name_of(name) is not None or self._experts_of(name) is not None

    def read(self, name: str, shape: tuple[int, ...], piece: Piece, target: Tensor) -> None:
        """Copies a piece of a parameter into `target`, converted to its dtype; no more than the piece is held.

        Args:
            name: of the parameter.
            shape: of all of it.
            piece: of it.
            target: as large as the piece.

        Raises:
            SpecError: the checkpoint has no such parameter, or one of another shape.
        """
        if not piece.numbers:
            return
        if (stored := self._name_of(name)) is not None:
            self._copy(stored, shape, piece, target)
        elif (experts := self._experts_of(name)) is not None:
            self._copy_experts(experts, shape, piece, target)
        else:
            raise SpecError(f"{self._folder}: its weights have no {name}; is the checkpoint complete?")

    def _name_of(self, name: str) -> str | None:
        return next((found for found in self._spellings(name) if found in self._files), None)

    def _spellings(self, name: str) -> Iterator[str]:
        """How checkpoints write a parameter of the language model."""
        if self._numbers and name.startswith(self._layers):
            number, _, rest = name.removeprefix(self._layers).partition(".")
            name = f"{self._layers}{self._numbers[int(number)]}.{rest}"
        start = f"{self._prefix}."
        inner = name.removeprefix(start)
        yield name
        yield name.replace(".mlp.gate.", ".block_sparse_moe.gate.")  # Mixtral's router
        if inner != name:
            yield inner  # of a base model without a head, as GPT-2's
            yield f"{start}language_model.{inner}"  # of a model that reads images, too
        yield f"language_model.{name}"

    def _experts_of(self, name: str) -> list[str] | None:
        """The names of one expert's matrices that make up a tensor of all experts, with {} for the expert's number."""
        stem, _, last = name.rpartition(".")
        if last not in ("gate_up_proj", "down_proj"):
            return None
        for place in (stem, stem.replace(".mlp.experts", ".block_sparse_moe.experts")):
            for gate, up, down in _EXPERT_NAMES:
                parts = [f"{place}.{{}}.{part}.weight" for part in ((gate, up) if last == "gate_up_proj" else (down,))]
                if all(self._name_of(part.format(0)) for part in parts):
                    return parts
        return None

    def _copy(self, stored: str, shape: tuple[int, ...], piece: Piece, target: Tensor) -> None:
        tensor = self._slice(stored)
        if (found := tuple(tensor.get_shape())) != shape:
            raise SpecError(
                f"{self._files[stored]}: {stored} has shape {list(found)}, but by config.json it is {list(shape)}"
            )
        for source, place in piece.blocks():
            target[place].copy_(tensor[source])

    def _copy_experts(self, parts: list[str], shape: tuple[int, ...], piece: Piece, target: Tensor) -> None:
        numbers = [number for start, stop in piece.ranges[0] for number in range(start, stop)]
        for at, number in enumerate(numbers):
            self._copy_expert([part.format(number) for part in parts], shape[1:], piece, target[at])

    def _copy_expert(self, names: list[str], shape: tuple[int, ...], piece: Piece, target: Tensor) -> None:
        """Of matrices of equal height that lie above each other."""
        height, above, row = shape[0] // len(names), 0, 0
        for name in [self._name_of(name) for name in names]:
            rows = [_within(bounds, above, above + height) for bounds in piece.ranges[1]]
            inside = tuple((start - above, stop - above) for start, stop in rows if start < stop)
            part = Piece((inside, piece.ranges[2]))
            if inside and name is not None:
                self._copy(name, (height, shape[1]), part, target[row : row + part.shape[0]])
            row, above = row + part.shape[0], above + height

    def _slice(self, stored: str) -> Any:
        file = self._files[stored]
        if file not in self._open:
            self._open[file] = open_file(file)
        try:
            return self._open[file].get_slice(stored)
        except SafetensorError as error:
            raise SpecError(f"{file}: {error}, though {INDEX} says so") from error


def _within(bounds: Range, low: int, high: int) -> Range:
    return max(bounds[0], low), min(bounds[1], high)

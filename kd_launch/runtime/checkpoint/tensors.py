"""The tensors of a checkpoint: the student's float32 weights and its optimizer's states, by name; and their copies.

All names are those of parameters, whatever the layout: torch.distributed.checkpoint cuts the tensors anew when a run
goes on with other shards.
"""

import io
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor

from kd_launch.errors import SpecError

# What wrappers put into the names of parameters.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
# All that torch needs to read its own metadata.
_HARMLESS = {
    "torch": {"Size", "float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex",
        "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "Path"},
    "pathlib._local": {"PosixPath", "Path"},
}  # fmt: skip


class TrainState:
    """A student rank's shards of everything that a step changes."""

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Must come before the first forward: after it, FSDP shows whole parameters now and then."""
        self._parameters = {_plain(name): parameter for name, parameter in student.named_parameters()}
        self._optimizer = optimizer

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor as it is now; not copies."""
        found: dict[str, Tensor] = {f"weights.{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"optimizer.{key}.{name}"] = value
        return found

    def load(self, folder: Path, group: dist.ProcessGroup) -> None:
        """Fills every tensor from a verified checkpoint. All student ranks must call it.

        Raises:
            SpecError: it holds other parameters.
        """
        reader = _Reader(folder)
        stored = reader.read_metadata().state_dict_metadata
        self._check_names(folder, stored)
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = self._empty_states(name, parameter, stored)
        load(self.tensors(), storage_reader=reader, process_group=group)

    def _check_names(self, folder: Path, stored: Mapping[str, Any]) -> None:
        theirs = {name.removeprefix("weights."): found for name, found in stored.items() if name.startswith("weights.")}
        odd = sorted(set(theirs) ^ set(self._parameters))
        odd += [name for name, p in self._parameters.items() if name in theirs and theirs[name].size != p.size()]
        if odd:
            raise SpecError(f"{folder}: is of another student: parameter {odd[0]} differs ({len(odd)} in all)")

    def _empty_states(self, name: str, parameter: Tensor, stored: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of one parameter: a state of its own shape is sharded as it is, any other is the same on every rank."""
        states: dict[str, Tensor] = {}
        for full_name, found in stored.items():
            if full_name.startswith("optimizer.") and isinstance(found, TensorStorageMetadata):
                key, _, owner = full_name.removeprefix("optimizer.").partition(".")
                if owner == name:
                    dtype, shape = found.properties.dtype, found.size
                    like = shape == parameter.size() and parameter.ndim > 0
                    states[key] = (
                        torch.zeros_like(parameter, dtype=dtype)
                        if like
                        else torch.zeros(shape, dtype=dtype, device=self._scalar_device(parameter))
                    ).detach()
        return states

    def _scalar_device(self, parameter: Tensor) -> torch.device:
        """Where the optimizer would have put its step count."""
        groups = self._optimizer.param_groups
        with_parameter = next(group for group in groups if any(one is parameter for one in group["params"]))
        on_device = with_parameter.get("fused") or with_parameter.get("capturable")
        return parameter.device if on_device else torch.device("cpu")


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


class Copies:
    """Copies on the CPU that are written while the training goes on; their memory is kept for the next time.

    What torch calls an async stager.
    """

    _synchronize_after_execute = should_synchronize_after_execute = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._changed = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def mark(self) -> None:
        """Called right after an optimizer step: later work on the GPU need not be waited for."""
        if self._changed is not None:
            self._changed.record()

    def synchronize_staging(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """The memory goes with this object."""

    def stage(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies everything as it was at the last mark; returns when that is done. From any thread."""
        if self._stream is None:
            return self._copy(tensors)
        assert self._changed is not None
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._changed)
            copies = self._copy(tensors)
            self._stream.synchronize()
        return copies

    def _copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {name: self._kept.get(name, None) for name in tensors}
        made = {name: _like(tensors[name], self._stream is not None) for name, copy in copies.items() if copy is None}
        self._kept.update(made)
        for name, tensor in tensors.items():
            _local(self._kept[name]).copy_(_local(tensor), non_blocking=True)
        return {name: self._kept[name] for name in tensors}


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _like(tensor: Tensor, pinned: bool) -> Tensor:
    """An empty tensor on the CPU, of the same place in the whole one."""
    local = _local(tensor)
    copy = torch.empty(local.shape, dtype=local.dtype, pin_memory=pinned and local.numel() > 0)
    # from_local would bring it to the mesh's device.
    return DTensor(copy, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else copy  # type: ignore[no-untyped-call]


class _Unpickler(pickle.Unpickler):
    """Makes nothing but metadata."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads torch's metadata, a pickle, without running what stands in it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch's signature
        data = (Path(self.path) / ".metadata").read_bytes()
        metadata = _Unpickler(io.BytesIO(data)).load()
        assert isinstance(metadata, Metadata)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def own_files(folder: Path, role_rank: int) -> Iterable[Path]:
    """The files that a student rank has written; the first one's hold the metadata too."""
    yield from sorted(folder.glob(f"__{role_rank}_*.distcp"))
    if role_rank == 0:
        yield folder / ".metadata"

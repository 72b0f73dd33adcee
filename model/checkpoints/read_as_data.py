"""Reads the pickles of a checkpoint as data.

A pickle is a program: read without restrictions, it calls any function that it names. The hashes in checkpoint.json do not
help, because whoever writes a pickle writes them too. A checkpoint holds four kinds of pickles:

.metadata                 torch reads it with pickle.load
common.pt                 Megatron-core reads it with torch.load
objects in *.distcp       torch reads them with torch.load, and turns its restrictions off
FP8 states, as tensors    Transformer Engine reads them with pickle.loads

Here each of them can name only what such a checkpoint needs.
"""

from __future__ import annotations

import contextlib
import enum
import io
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, filesystem
from torch.distributed.checkpoint.metadata import Metadata

from curricula.errors import UserError

EXTRA_STATE = "_extra_state"
"""End of the name of what a layer keeps besides its weights."""
METADATA_NAMES = {
    "torch.Size",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.serialization._get_layout",
    *map("torch.distributed.checkpoint.metadata.{}".format, (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
}  # fmt: skip
"""What .metadata may name, besides torch's data types and a path."""
FP8_NAMES = {
    "builtins.bytes",
    "collections.OrderedDict",
    "megatron.core.extensions.transformer_engine.TEDelayedScaling",
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    *map("transformer_engine.common.recipe.{}".format, (
        "DelayedScaling", "Float8BlockScaling", "Float8CurrentScaling", "Format", "MMParams", "MXFP8BlockScaling",
        "NVFP4BlockScaling", "QParams", "_FormatHelper",
    )),
}  # fmt: skip
"""What the FP8 state of a layer may name, besides torch's data types."""
TENSOR_READERS = ("torch.storage._load_from_bytes", "megatron.core.safe_globals.safe_load_from_bytes")
"""Functions that read a tensor in that state. Megatron-core 0.19 replaces the first by the second, which reads only data."""
LOAD_UNRESTRICTED = torch.load
REFUSED_BY_TORCH = re.compile(r"GLOBAL (\S+)")
"""Finds the name in torch's message about a pickle that is more than data."""


class ForbiddenName(UserError):
    """A pickle names something that is not data."""


@contextlib.contextmanager
def read_as_data(folder: Path) -> Iterator[Metadata]:
    """Make torch and Megatron-core read the checkpoint `folder` as data, and share its metadata, until the block ends.

    Yields the metadata. Reading a file that is more than data raises UserError. Torch and Megatron-core may wrap that error;
    `checkpoint.errors_behind` finds it.
    """
    file_read: str | os.PathLike[str] = folder
    """The file from which torch currently reads objects."""
    load_object = DefaultLoadPlanner.load_bytes

    def load(file: Any, *args: Any, **options: Any) -> Any:
        return _load_as_data(file if isinstance(file, str | os.PathLike) else file_read, file, *args, **options)

    def load_bytes(planner: Any, item: Any, value: io.BytesIO) -> None:
        nonlocal file_read
        file_read = folder / planner.metadata.storage_data[item.storage_index].relative_path
        load_object(planner, item, value)

    metadata = _read_metadata(folder)
    with (
        mock.patch.object(filesystem, "pickle", SimpleNamespace(load=lambda file: metadata, dump=pickle.dump)),
        mock.patch.object(DefaultLoadPlanner, "load_bytes", load_bytes),
        mock.patch.object(torch, "load", load),
    ):
        yield metadata


def _read_metadata(folder: Path) -> Metadata:
    """The contents of .metadata. Raises UserError if it cannot be read as data, or names a file outside the checkpoint."""
    path = folder / ".metadata"
    with open(path, "rb") as file, _damage_named(path):
        metadata: Metadata = _Unpickler(file, path, METADATA_NAMES).load()
        names = [info.relative_path for info in metadata.storage_data.values()]
        outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{path}: names the file {outside[0]!r:.200}, which is outside the checkpoint; do not use it")
    return metadata


def check_layer_states(folder: Path, model_state: Mapping[str, Any]) -> None:
    """Raise UserError if the FP8 state of a layer, as read from `folder`, is more than data."""
    for name, state in model_state.items():
        if not name.endswith(EXTRA_STATE):
            continue
        for part in state if isinstance(state, list) else [state]:
            if isinstance(part, torch.Tensor) and part.numel():
                content = io.BytesIO(part.detach().cpu().numpy().tobytes())
                with _damage_named(folder / name):
                    _Unpickler(content, folder / name, FP8_NAMES).load()


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn the errors of a pickle that is damaged, or that other versions wrote, into a UserError. It can raise anything."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read here ({reason:.200}); keep it, and use the versions that wrote it (see checkpoint.json)"
        ) from None


def _load_as_data(path: str | os.PathLike[str], file: Any, *args: Any, **options: Any) -> Any:
    """`torch.load` restricted to data. Error messages name the file `path`."""
    try:
        return LOAD_UNRESTRICTED(file, *args, **{**options, "weights_only": True})
    except pickle.UnpicklingError as error:
        named = REFUSED_BY_TORCH.search(str(error))
        if named is None:
            raise
        raise _refusal(path, named[1]) from None


class _Unpickler(pickle.Unpickler):
    """Refuses every name that is not `allowed`, before anything is done with it."""

    def __init__(self, file: IO[bytes], path: Path, allowed: Set[str]) -> None:
        super().__init__(file)
        self._path, self._allowed = path, allowed

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in ("pathlib.PosixPath", "pathlib._local.PosixPath"):  # Python 3.13 calls it by the second name
            return _joined
        if full == "builtins.getattr":  # as Python before 3.11.4 names a member of an enumeration
            return _member
        if full in TENSOR_READERS and self._allowed is FP8_NAMES:
            return lambda content: _load_as_data(self._path, io.BytesIO(content))
        if full in self._allowed or (module == "torch" and isinstance(vars(torch).get(name), torch.dtype)):
            return super().find_class(module, name)
        raise _refusal(self._path, full)


def _joined(*parts: str) -> str:
    """Replaces the class of paths. A pickle can set attributes of what it names, so it gets a function of its own."""
    return os.path.join(*parts)


def _member(kind: Any, name: str) -> Any:
    """Replaces getattr: returns members of enumerations, and no other attribute of the classes that a checkpoint may name."""
    if isinstance(kind, enum.EnumMeta) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError(f"asks for the attribute {name!r:.200} of {kind!r:.200}, which no checkpoint needs")


def _refusal(path: str | os.PathLike[str], name: str) -> ForbiddenName:
    return ForbiddenName(
        f"{os.fspath(path)}: names {name[:200]}, which no checkpoint needs and which may run code; "
        "nothing was run: use a checkpoint whose origin you know"
    )

"""Weights out of line: references from a text into data files, and the file that a text adds."""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.slots import slots
from aigcc.ir.storage.external import DataFiles
from aigcc.ir.storage.mapped import DataFile, MappedTensor, SparseTensor
from aigcc.ir.text.literals import string_text
from aigcc.ir.weights import raw_bytes

_CACHE_LINE = 64
_PAGE = 4096
_LARGE = 1 << 20


def reference_text(tensor: ir.ExternalTensor, folder: Path) -> str:
    """The place of a tensor's bytes, relative to `folder`, in ONNX's own syntax for it."""
    location = os.path.relpath(os.path.realpath(tensor.path), os.path.realpath(folder))
    length = tensor.nbytes if tensor.length is None else tensor.length
    return (
        f'["location": {string_text(Path(location).as_posix())}, '
        f'"offset": "{tensor.offset or 0}", "length": "{length}"]'
    )


class Place(enum.Enum):
    """Where the bytes of a tensor are, for a text."""

    INLINE = enum.auto()
    ITS_FILE = enum.auto()
    DATA_FILE = enum.auto()


def place_of(tensor: ir.TensorProtocol, inline_limit: int | None, beside: Path | None) -> Place:
    """Where a text has the bytes of a tensor.

    Args:
        tensor: The tensor.
        inline_limit: Up to how many elements are inline; None: all that no file holds.
        beside: The data file that is being written, which does not hold its old bytes for long.
    """
    if tensor.dtype == ir.DataType.STRING:
        return Place.INLINE
    if inline_limit is not None and tensor.size <= inline_limit:
        return Place.INLINE
    if isinstance(tensor, ir.ExternalTensor):
        about_to_go = beside is not None and _is_at(tensor, beside)
        if _in_place(tensor) and not about_to_go:
            return Place.ITS_FILE
    return Place.INLINE if inline_limit is None else Place.DATA_FILE


def needs_data_file(model: ir.Model, inline_limit: int, beside: Path) -> bool:
    """Whether any bytes of a model go into the data file `beside` its text."""
    tensors: list[ir.TensorProtocol] = []
    for slot in slots(model):
        tensor = slot.tensor
        if isinstance(tensor, SparseTensor):
            tensors += [tensor.values, tensor.indices]
        else:
            tensors.append(tensor)
    return any(place_of(t, inline_limit, beside) is Place.DATA_FILE for t in tensors)


def _is_at(tensor: ir.ExternalTensor, path: Path) -> bool:
    return os.path.realpath(tensor.path) == os.path.realpath(path)


def _in_place(tensor: ir.ExternalTensor) -> bool:
    """Whether the path of a tensor still leads to the file that the tensor reads, unchanged."""
    return not isinstance(tensor, MappedTensor) or tensor.file.unchanged()


class Roots:
    """The folders that a text may refer to for its weights.

    Args:
        folder: Where the text is; references are relative to it and may not leave it, through
            links neither.
        trusted: More folders, wherever they are. Links in them are followed.
        keep: Keep the files mapped, see `aigcc.ir.storage.mapped.DataFile`.
    """

    def __init__(self, folder: Path, trusted: Iterable[Path], keep: bool) -> None:
        self._folder = _absolute(folder)
        self._trusted = [_absolute(root) for root in trusted]
        self._keep = keep
        self._own = DataFiles(self._folder, keep)
        self._others: dict[Path, DataFiles] = {}

    def map(self, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        """The mapped tensor for a reference, whose `location` is as the text has it.

        Raises:
            ModelError: The reference leaves the folders, or its file or range does not exist.
        """
        location = str(tensor.location)
        path = _absolute(self._folder / location)
        if any(root in path.parents for root in self._trusted):
            if path not in self._others:
                self._others[path] = DataFiles(path.parent, model=_open(path, self._keep))
            return self._others[path].map(_moved(tensor, path.name), at=location)
        if self._folder in path.parents and not Path(location).is_absolute():
            inner = path.relative_to(self._folder).as_posix()
            return self._own.map(_moved(tensor, inner), at=location)
        raise ModelError(
            f"the text refers to data in {str(path.parent)!r}, outside of its own folder",
            hint=f"if you trust the text, allow it: --data-root {path.parent}, "
            f"in Python roots=[Path({str(path.parent)!r})]",
        )


def _open(path: Path, keep: bool) -> DataFile:
    try:
        if path.is_file():
            return DataFile(path, keep)
    except OSError as error:
        raise ModelError(f"the data file {str(path)!r} cannot be read: {error}") from error
    raise ModelError(f"the data file {str(path)!r} does not exist")


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _moved(tensor: ir.ExternalTensor, location: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
    )


class WeightFile:
    """A data file that weights are appended to one at a time; equal weights are stored once.

    Several texts may share one: the dumps of a pipeline store a weight when it first appears.

    Args:
        path: The file, for the references.
        file: The same file, open for writing; whoever opened it closes it.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.file = file
        self._places: dict[bytes, int] = {}

    def add(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Store a weight, and return the reference to it. A lazy weight is computed once."""
        data = raw_bytes(tensor)
        key = hashlib.blake2b(data, digest_size=16).digest()
        offset = self._places.get(key)
        if offset is None:
            step = _PAGE if len(data) > _LARGE else _CACHE_LINE
            end = self.file.seek(0, os.SEEK_END)
            offset = -(-end // step) * step
            self.file.write(bytes(offset - end))
            self.file.write(data)
            self._places[key] = offset
        return ir.ExternalTensor(
            self.path.name,
            offset,
            len(data),
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=self.path.parent,
        )

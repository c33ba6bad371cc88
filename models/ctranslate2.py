"""Reads the weights of a model in CTranslate2's format, a `model.bin`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from aigcc.errors import ModelError

VERSION = 6
DTYPES = ("<f4", "i1", "<i2", "<i4", "<f2")


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the model file at `path`, by name, each memory-mapped.

    Raises:
        ModelError: It is of another version, or holds a type that numpy does not know.
    """
    weights: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file:
        (version,) = _unpack(file, "<I")
        if version != VERSION:
            raise ModelError(f"version {version} of the format, expected {VERSION}", at=str(path))
        _name(file)
        _revision, count = _unpack(file, "<II")
        for _ in range(count):
            name = _name(file)
            (dimensions,) = _unpack(file, "<B")
            shape = _unpack(file, f"<{dimensions}I")
            dtype, size = _unpack(file, "<BI")
            if dtype >= len(DTYPES):
                raise ModelError(f"unknown data type {dtype}", at=f"{path}, {name}")
            weights[name] = np.memmap(path, DTYPES[dtype], "r", file.tell(), shape)
            file.seek(size, 1)
    return weights


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise ModelError("the file ends too early", at=file.name)
    return struct.unpack(layout, data)


def _name(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<H")
    return file.read(length).rstrip(b"\0").decode()

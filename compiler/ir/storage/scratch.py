"""Computed weights on disk until the model is saved: they take no anonymous memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from aigcc.ir.storage.mapped import DataFile, MappedTensor

_ALIGNMENT = 64


class Scratch:
    """A file without a name, for as long as a tensor in it is used.

    Args:
        size: Bytes that all tensors take together, with up to 64 more for each.
    """

    def __init__(self, size: int) -> None:
        descriptor, name = tempfile.mkstemp(prefix="aigcc-")
        self._path = Path(name)
        try:
            os.ftruncate(descriptor, size)
            self._file = DataFile(self._path)
            self._out = os.fdopen(descriptor, "r+b", buffering=0)
        finally:
            self._path.unlink()
        self._end = 0

    def keep(self, array: npt.NDArray[Any], dtype: onnx_ir.DataType, name: str) -> MappedTensor:
        """Write an array, and hand it back as a tensor that lies in the file.

        Raises:
            OSError: the disk is full.
        """
        data = np.frombuffer(onnx_ir.Tensor(array, dtype=dtype).tobytes(), np.uint8)
        offset = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._out.seek(offset)
        view = data.data
        while view:
            view = view[self._out.write(view) :]
        self._end = offset + len(data)
        like = onnx_ir.ExternalTensor(
            self._path.name,
            offset,
            len(data),
            dtype,
            shape=onnx_ir.Shape(array.shape),
            name=name,
            base_dir=self._path.parent,
        )
        return MappedTensor(self._file, like, self._path.parent)

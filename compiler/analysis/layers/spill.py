"""Arrays in a temporary file, read back as they are needed."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.errors import CompileError

Array = npt.NDArray[Any]

_ALIGNMENT = 64


class Spill:
    """Named arrays on disk; the file is gone when it is closed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / "values"
        self._places: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self._mapped: npt.NDArray[np.uint8] | None = None

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *error: object) -> None:
        self._mapped = None
        self._folder.cleanup()

    @property
    def names(self) -> list[str]:
        """What is there."""
        return list(self._places)

    def put(self, name: str, array: Array) -> None:
        """Write an array; all are written before the first is read.

        Raises:
            CompileError: there is no room.
        """
        try:
            with self._path.open("ab") as file:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset = file.tell()
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise CompileError(
                f"a value cannot be written to a temporary file: {error.strerror}",
                at=f"value {name!r}, {self._path}",
                hint="make room there, or set TMPDIR to another folder",
            ) from error
        self._places[name] = (offset, array.dtype, array.shape)

    def get(self, name: str) -> Array:
        """An array, read-only, whose pages are read when they are used."""
        offset, dtype, shape = self._places[name]
        size = math.prod(shape) * dtype.itemsize
        if not size:
            return np.zeros(shape, dtype)
        if self._mapped is None:
            self._mapped = np.memmap(self._path, np.uint8, "r")
        array: Array = np.asarray(self._mapped)[offset : offset + size].view(dtype).reshape(shape)
        return array

"""Tensors whose bytes stay in a file: mapped, varint-coded, and sparse ones."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from aigcc.errors import ModelError
from aigcc.ir.storage import wire

_CHUNK = 16 << 20
_VARINT_BYTES = 10  # of a number of 64 bits
_VARINT_CHUNK = 1 << 20  # decoding takes forty bytes for each


class DataFile:
    """A file that tensors are read from, with one mapping that all of them share.

    Args:
        path: The file. It must exist.
        keep: Keep the mapping for as long as this object lives, so that the bytes stay readable
            after the file is replaced. Otherwise it is opened when an array needs it and closed
            with the last array: each open mapping costs one file descriptor.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        stat = path.stat()
        self.path = path.absolute()
        self.size = stat.st_size
        self._identity = (stat.st_dev, stat.st_ino)
        self._modified = stat.st_mtime_ns
        self._kept: mmap.mmap | None = None
        self._last: weakref.ref[mmap.mmap] | None = None
        if keep:
            self.pin()

    def unchanged(self) -> bool:
        """Whether the path still leads to this file, and nobody has written to it."""
        try:
            stat = self.path.stat()
        except OSError:
            return False
        return (stat.st_dev, stat.st_ino, stat.st_mtime_ns) == (*self._identity, self._modified)

    def pin(self) -> None:
        """Keep the bytes readable whatever happens to the path from now on."""
        if self.size and self._kept is None:
            self._kept = self._mapping()

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes from `offset`, read-only and not copied.

        Raises:
            ModelError: If the file changed since this object was made.
        """
        if not length:
            return memoryview(b"")
        self._check_unchanged()
        return memoryview(self._mapping())[offset : offset + length]

    def forget(self, offset: int, length: int) -> None:
        """Drop the pages of a range from memory; the next read takes them from the file again."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapping = self._open_mapping()
        if mapping is not None and length and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED, start, offset + length - start)

    def copy_to(self, file: IO[bytes], offset: int, length: int) -> None:
        """Append a range to `file`: inside the kernel where that works, else in chunks."""
        end = offset + length
        offset += self._copy_in_kernel(file, offset, length)
        while offset < end:
            size = min(_CHUNK, end - offset)
            file.write(self.view(offset, size))
            self.forget(offset, size)
            offset += size

    def _copy_in_kernel(self, file: IO[bytes], offset: int, length: int) -> int:
        if not hasattr(os, "copy_file_range"):
            return 0
        file.flush()
        copied = 0
        try:
            source = os.open(self.path, os.O_RDONLY)
        except OSError:
            return 0  # the path is gone, the mapping is not
        try:
            stat = os.fstat(source)
            if (stat.st_dev, stat.st_ino) != self._identity or stat.st_mtime_ns != self._modified:
                return 0
            while copied < length:
                step = os.copy_file_range(
                    source, file.fileno(), min(1 << 30, length - copied), offset + copied
                )
                if step == 0:
                    break
                copied += step
        except OSError:
            pass  # not between these two file systems: the caller writes what is left, or fails
        finally:
            os.close(source)
            file.seek(0, os.SEEK_END)
        return copied

    def _open_mapping(self) -> mmap.mmap | None:
        if self._kept is None and self._last is not None:
            return self._last()
        return self._kept

    def _mapping(self) -> mmap.mmap:
        mapping = self._open_mapping()
        if mapping is None:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if (stat.st_dev, stat.st_ino) != self._identity:
                    raise self._changed("was replaced")
                mapping = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
            self._last = weakref.ref(mapping)
        return mapping

    def _check_unchanged(self) -> None:
        """Refuse bytes that somebody else wrote over, and pages that would end in a SIGBUS."""
        try:
            stat = self.path.stat()
        except OSError:
            return  # deleted or unreachable: what is mapped stays as it was
        if (stat.st_dev, stat.st_ino) == self._identity and (
            stat.st_size < self.size or stat.st_mtime_ns != self._modified
        ):
            raise self._changed("was written to")

    def _changed(self, how: str) -> ModelError:
        return ModelError(
            f"the file {how} after the model was loaded, so its weights are no longer there",
            at=str(self.path),
            hint="load the model again",
        )


class MappedTensor(onnx_ir.ExternalTensor):
    """An external tensor that shares one mapping of its file with all others.

    Reading it costs no anonymous memory, except for types of less than a byte, which are
    unpacked for each read. `onnx_ir` writes it as a reference to `location`.

    Args:
        file: Where the bytes are. Its range must have been checked.
        like: The reference to map: location, offset, dtype, shape, name and metadata.
        base_dir: The folder that `like.location` is relative to.
    """

    __slots__ = ("file",)

    def __init__(self, file: DataFile, like: onnx_ir.ExternalTensor, base_dir: Path) -> None:
        super().__init__(
            like.location,
            like.offset or 0,
            like.nbytes,
            like.dtype,
            shape=like.shape,
            name=like.name or "",
            doc_string=like.doc_string,
            metadata_props=dict(like.metadata_props),
            base_dir=base_dir,
        )
        self.file = file

    def view(self) -> memoryview:
        """The bytes as ONNX stores them, not copied."""
        return self.file.view(self.offset or 0, self.nbytes)

    def numpy(self) -> npt.NDArray[Any]:
        """The array, read-only and not copied (unpacked, for types of less than a byte)."""
        return _as_array(self.view(), self.dtype, self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self.numpy()
        return array.astype(dtype) if dtype is not None or copy else array

    def tobytes(self) -> bytes:
        """A copy of the bytes as ONNX stores them."""
        return self.view().tobytes()

    def tofile(self, file: Any) -> None:
        """Append the bytes as ONNX stores them to a binary file."""
        self.file.copy_to(file, self.offset or 0, self.nbytes)

    def release(self) -> None:
        """Drop the pages of this tensor from memory; it stays readable."""
        self.file.forget(self.offset or 0, self.nbytes)


class VarintTensor(onnx_ir.LazyTensor):
    """A tensor that a file holds as varints (int32_data, int64_data), decoded for each read.

    Args:
        file: Where the varints are.
        like: The range of the varints in `file`, and the dtype, shape, name and metadata.

    Raises:
        ModelError: If the number of varints is not the number of elements.
    """

    def __init__(self, file: DataFile, like: onnx_ir.ExternalTensor) -> None:
        self._file = file
        self._range = (like.offset or 0, like.length or 0)
        super().__init__(
            self._decode,
            dtype=like.dtype,
            shape=like.shape,
            name=like.name,
            doc_string=like.doc_string,
            metadata_props=dict(like.metadata_props),
        )
        self._itemsize = max(self.dtype.bitwidth // 8, 1)
        self._check()

    def _check(self) -> None:
        found = done = longest = 0
        last = -1
        for piece in self._pieces():
            ends = np.flatnonzero(piece < 0x80) + done
            longest = max(longest, int(np.diff(ends, prepend=last).max(initial=0)))
            found += len(ends)
            last = int(ends[-1]) if len(ends) else last
            done += len(piece)
        wanted = self.nbytes // self._itemsize
        if found != wanted:
            raise ModelError(f"the weight holds {found:,} numbers and its shape needs {wanted:,}")
        if longest > _VARINT_BYTES or last != done - 1:
            raise ModelError("the weight holds numbers of more than 64 bits")

    def _pieces(self) -> list[npt.NDArray[np.uint8]]:
        data = np.frombuffer(self._file.view(*self._range), np.uint8)
        return [data[at : at + _VARINT_CHUNK] for at in range(0, len(data), _VARINT_CHUNK)]

    def _decode(self) -> onnx_ir.TensorProtocol:
        whole = np.empty(self.nbytes // self._itemsize, f"<u{self._itemsize}")
        rest = np.empty(0, np.uint8)
        done = 0
        for piece in self._pieces():
            piece = np.concatenate([rest, piece])
            cut = int(np.flatnonzero(piece < 0x80)[-1]) + 1
            numbers = wire.decode_varints(piece[:cut])
            whole[done : done + len(numbers)] = numbers
            rest = piece[cut:]
            done += len(numbers)
        array = _as_array(whole.view(np.uint8).data, self.dtype, self.shape.numpy())
        return onnx_ir.Tensor(array, dtype=self.dtype, name=self.name)


class SparseTensor(onnx_ir.LazyTensor):
    """A constant that is stored as its non-zero elements: read dense, saved sparse.

    Args:
        values: The non-zero elements, shape [n].
        indices: Where they are, int64: [n] in the flattened tensor, or [n, rank].
        shape: The dense shape.
        name: The name of the initializer.
    """

    def __init__(
        self,
        values: onnx_ir.TensorProtocol,
        indices: onnx_ir.TensorProtocol,
        shape: list[int],
        name: str,
    ) -> None:
        self.values = values
        self.indices = indices
        super().__init__(self._dense, dtype=values.dtype, shape=onnx_ir.Shape(shape), name=name)

    def _dense(self) -> onnx_ir.TensorProtocol:
        array = np.zeros(self.shape.numpy(), self.dtype.numpy())
        indices = self.indices.numpy()
        try:
            if indices.ndim == 2:
                array[tuple(indices.T)] = self.values.numpy()
            else:
                array.reshape(-1)[indices] = self.values.numpy()
        except (IndexError, ValueError) as error:
            raise ModelError(
                f"the indices of a sparse tensor do not fit its shape {list(self.shape)}: {error}",
                at=f"initializer {self.name!r}",
            ) from error
        return onnx_ir.Tensor(array, dtype=self.dtype, name=self.name)


def _as_array(
    data: memoryview, dtype: onnx_ir.DataType, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """The array that `data` holds as ONNX stores it."""
    if dtype.bitwidth < 8:
        packed = np.frombuffer(data, np.uint8)
        return onnx_ir.PackedTensor(packed, dtype, shape=shape).numpy()
    return np.frombuffer(data, dtype.numpy()).reshape(shape)

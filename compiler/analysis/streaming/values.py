"""Tensors on their way into ONNX Runtime and out of it, without copies; weights left in files."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from aigcc.errors import CompileError
from aigcc.ir.slots import Slot
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import is_small, raw_bytes

Array = npt.NDArray[Any]

_ALIGNMENT = 64


def to_ort(array: Array, dtype: ir.DataType) -> Any:
    """An array of numbers as ONNX Runtime's value, which shares its memory if it can."""
    array = np.asarray(array, order="C")
    if dtype.bitwidth < 8:
        packed = np.frombuffer(ir.Tensor(array, dtype=dtype).tobytes(), np.uint8)
        return _over(packed, dtype, array.shape)
    return _over(array.reshape(-1).view(np.uint8), dtype, array.shape)


def to_numpy(value: Any) -> Array:
    """The elements of ONNX Runtime's value, read-only, which live as long as `value`."""
    dtype = ir.DataType(value.element_type())
    if dtype == ir.DataType.STRING:
        return cast(Array, value.numpy())
    shape = tuple(value.shape())
    size = value.tensor_size_in_bytes()
    if not size:
        return np.zeros(shape, dtype.numpy())
    data = np.frombuffer((ctypes.c_char * size).from_address(value.data_ptr()), np.uint8)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(data, dtype, shape=ir.Shape(shape)).numpy()
    array = data.view(dtype.numpy()).reshape(shape)
    array.flags.writeable = False
    return array


def own(value: Any) -> Any:
    """The same value, without the other outputs of its run.

    What a run returns is one vector, which any of its values keeps alive with all the others.
    Sequences and text stay in it.
    """
    if not value.is_tensor() or value.element_type() == ir.DataType.STRING:
        return value
    dtype = ir.DataType(value.element_type())
    if hasattr(np, dtype.numpy().name):
        return to_ort(value.numpy(), dtype)  # shares the memory
    return to_ort(np.array(to_numpy(value)), dtype)


def trim() -> None:
    """Give back the memory between small blocks that stay, which the C library would keep."""
    if _TRIM is not None:
        _TRIM(0)


# Only glibc has it, and only glibc needs it.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _over(data: npt.NDArray[np.uint8], dtype: ir.DataType, shape: tuple[int, ...]) -> Any:
    if dtype.bitwidth < 8:
        # ONNX Runtime wants one item an element, and reads the packed bytes at their start only.
        items = np.lib.stride_tricks.as_strided(data, shape, _strides(shape), writeable=False)
    else:
        items = data.view(f"V{dtype.bitwidth // 8}").reshape(shape)
        items = items.view(_ITEMS.get(dtype.bitwidth // 8, dtype.numpy()))
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(items, int(dtype))


_ITEMS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


class WeightStore:
    """Weights that ONNX Runtime reads where they lie, in mapped files.

    A weight that lies in no file (it is derived), or at an address that its dtype cannot have, is
    written once to a scratch file, one weight at a time. The folder goes with `close`.
    """

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="aigcc-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name).resolve()
        self._path = self.folder / "weights"
        self._path.touch()
        self._offsets: dict[str, int] = {}
        self._mapped: npt.NDArray[np.uint8] | None = None

    def close(self) -> None:
        """Remove the scratch file; what is mapped stays readable."""
        self._scratch.cleanup()

    def add(self, weights: Iterable[tuple[str, ir.TensorProtocol]]) -> None:
        """Write those of some named weights to the scratch file that must be there."""
        for name, tensor in weights:
            if not is_small(tensor) and _needs_copy(tensor):
                self._offsets[name] = self._append(tensor)
        self._mapped = np.memmap(self._path, np.uint8, "r") if self._offsets else None

    def move(self, slot: Slot) -> None:
        """Put a reference to the scratch file in the place of a large tensor."""
        tensor = slot.tensor
        if is_small(tensor) or tensor.dtype == ir.DataType.STRING:
            if isinstance(tensor, ir.ExternalTensor):
                slot.put(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name))
            return
        shape = ir.Shape(tensor.shape.numpy())
        offset, name = self._append(tensor), tensor.name or ""
        slot.put(
            ir.ExternalTensor(
                self._path.name, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
        )

    def initializer(
        self, name: str, tensor: ir.TensorProtocol
    ) -> tuple[onnx.TensorProto, Any | None]:
        """What stands for a weight in a model, and the value to hand over beside it if any."""
        if tensor.dtype == ir.DataType.STRING:
            proto = ir.serde.serialize_tensor(tensor)
            proto.name = name
            return proto, None
        dims = tuple(tensor.shape.numpy())
        proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=dims)
        if is_small(tensor):
            proto.raw_data = bytes(raw_bytes(tensor))
            return proto, None
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", self._path.name), ("length", str(tensor.nbytes))):
            proto.external_data.add(key=key, value=text)
        return proto, _over(self._bytes(name, tensor), tensor.dtype, dims)

    def _append(self, tensor: ir.TensorProtocol) -> int:
        try:
            with self._path.open("ab") as file:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset = file.tell()
                if isinstance(tensor, MappedTensor):
                    tensor.tofile(file)
                else:
                    file.write(raw_bytes(tensor))
        except OSError as error:
            raise CompileError(
                f"a weight cannot be written to a scratch file: {error}",
                at=f"weight {tensor.name!r}, {self._path}",
                hint="make room there, or set TMPDIR to another folder",
            ) from error
        return offset

    def _bytes(self, name: str, tensor: ir.TensorProtocol) -> npt.NDArray[np.uint8]:
        if name not in self._offsets:
            return np.frombuffer(raw_bytes(tensor), np.uint8)
        assert self._mapped is not None
        return self._mapped[self._offsets[name] :][: tensor.nbytes]


def _needs_copy(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING:
        return False
    if isinstance(tensor, MappedTensor):
        address = np.frombuffer(tensor.view(), np.uint8).ctypes.data
        return bool(address % max(tensor.dtype.bitwidth // 8, 1))
    return isinstance(tensor, ir.LazyTensor) or tensor.dtype.bitwidth < 8

"""Arrays into tensors of OpenVINO and out again, also of types that numpy has not."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

# OpenVINO hands out the memory of these as another type.
_OWN_TYPES: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn,
    "f8e5m2": ml_dtypes.float8_e5m2,
}
# Two of these share a byte.
_HALF_BYTES: dict[str, Any] = {"i4": np.dtype(ml_dtypes.int4), "u4": np.dtype(ml_dtypes.uint4)}


def dtypes_for(kind: Any) -> frozenset[np.dtype[Any]]:
    """The dtypes of arrays that an input takes; of what numpy has not, integers of its size too."""
    name = kind.get_type_name()
    if name in _HALF_BYTES:
        return frozenset({_HALF_BYTES[name]})
    if name in _OWN_TYPES:
        own = np.dtype(_OWN_TYPES[name])
        return frozenset({own, np.dtype(f"u{own.itemsize}")})
    return frozenset({np.dtype(kind.to_dtype())})


def write(array: np.ndarray, memory: np.ndarray) -> None:
    """Copy an array into the memory of a tensor of the same shape."""
    packed = _packed(array)
    memory[...] = packed if packed.dtype == memory.dtype else packed.view(memory.dtype)


def read(tensor: Any) -> np.ndarray:
    """A copy of a tensor."""
    name = tensor.get_element_type().get_type_name()
    data: np.ndarray = tensor.data.copy()
    if name in _OWN_TYPES:
        return data.view(_OWN_TYPES[name])
    if name not in _HALF_BYTES:
        return data
    pairs = data.ravel().view(np.uint8)
    halves = np.stack([pairs & 15, pairs >> 4], axis=1).ravel()[: tensor.get_size()]
    if name == "i4":
        halves = (halves.view(np.int8) ^ 8) - 8
    return halves.astype(_HALF_BYTES[name]).reshape(tuple(tensor.shape))


def _packed(array: np.ndarray) -> np.ndarray:
    """Integers of half a byte, two to a byte, the first one low; others as they are."""
    if array.dtype not in _HALF_BYTES.values():
        return np.ascontiguousarray(array).reshape(array.shape)
    halves = array.ravel().astype(np.int8).view(np.uint8) & 15
    halves = np.append(halves, np.zeros(halves.size % 2, np.uint8)).reshape(-1, 2)
    packed: np.ndarray = halves[:, 0] | halves[:, 1] << 4
    return packed

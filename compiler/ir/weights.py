"""Weights for passes: read small ones, derive large ones lazily, find equal ones."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir

from aigcc.errors import PassError
from aigcc.ir.storage.mapped import MappedTensor

SMALL = 1024
"""Up to this many bytes a tensor lives in memory and inside the .onnx file."""

_CHUNK = 16 << 20
_FINGERPRINT = "aigcc.fingerprint"
_CONSTANT_DTYPES = {
    "value_int": onnx_ir.DataType.INT64,
    "value_ints": onnx_ir.DataType.INT64,
    "value_float": onnx_ir.DataType.FLOAT,
    "value_floats": onnx_ir.DataType.FLOAT,
}


def derive(
    fn: Callable[..., npt.NDArray[Any]],
    *sources: onnx_ir.TensorProtocol,
    dtype: onnx_ir.DataType,
    shape: Sequence[int],
    name: str,
) -> onnx_ir.LazyTensor:
    """A weight that is computed from others each time it is read, and never kept.

    `derive(np.transpose, w, dtype=w.dtype, shape=w.shape[::-1], name="w_t")` costs nothing until
    the model is saved or run. A derived weight can be the source of another.

    Args:
        fn: Takes the arrays of `sources` (read-only) and returns the new array.
        sources: The tensors to compute from.
        dtype: The dtype that `fn` returns.
        shape: The shape that `fn` returns.
        name: The name of the new tensor.

    Raises:
        PassError: When the tensor is read, if `fn` does not return `dtype` and `shape`.
    """

    def compute() -> onnx_ir.TensorProtocol:
        array = np.asarray(fn(*(source.numpy() for source in sources)), order="C")
        if array.dtype != dtype.numpy() or array.shape != tuple(shape):
            raise PassError(
                f"a derived weight was declared {dtype}{list(shape)} "
                f"and is {array.dtype}{list(array.shape)}",
                at=f"weight {name!r}",
                hint="this is a mistake in the pass that made it",
            )
        for source in sources:
            if isinstance(source, MappedTensor):
                source.release()
        return onnx_ir.Tensor(array, dtype=dtype, name=name)

    return onnx_ir.LazyTensor(compute, dtype=dtype, shape=onnx_ir.Shape(shape), name=name)


def constant(value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
    """The tensor of a value that no input can change: an initializer or a Constant node's output.

    An initializer that is also a graph input is a default, not a constant.
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain:
        return None
    for attribute in node.attributes.values():
        if attribute.is_ref():
            return None
        if attribute.type == onnx_ir.AttributeType.TENSOR:
            return cast(onnx_ir.TensorProtocol, attribute.value)
        if attribute.name in _CONSTANT_DTYPES:
            return onnx_ir.tensor(attribute.value, dtype=_CONSTANT_DTYPES[attribute.name])
        if attribute.name == "value_string":
            return onnx_ir.StringTensor([attribute.value.encode()], shape=onnx_ir.Shape([]))
        if attribute.name == "value_strings":
            texts = [text.encode() for text in attribute.value]
            return onnx_ir.StringTensor(texts, shape=onnx_ir.Shape([len(texts)]))
    return None


def read(value: onnx_ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of a constant (see `constant`), or None. Do not keep it, and do not write to it."""
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: onnx_ir.Value | None) -> float | int | None:
    """The number in a constant of one element, or None. Larger tensors are not read."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1:
        return None
    if tensor.dtype.is_floating_point():
        return float(tensor.numpy().reshape(()))
    if tensor.dtype.is_integer() or tensor.dtype == onnx_ir.DataType.BOOL:
        return int(tensor.numpy().reshape(()))
    return None


def is_float(array: npt.NDArray[Any]) -> bool:
    """Whether an array is of floats; numpy does not count the narrow types of `ml_dtypes`."""
    is_text = array.dtype.kind in "OSU"
    return not is_text and onnx_ir.DataType.from_numpy(array.dtype).is_floating_point()


def is_small(tensor: onnx_ir.TensorProtocol) -> bool:
    """Whether a tensor is small enough to be copied, folded and printed without a thought."""
    return tensor.nbytes <= SMALL


def raw_bytes(tensor: onnx_ir.TensorProtocol) -> memoryview:
    """The bytes of a tensor as ONNX stores them, copied only where there is no other way."""
    if isinstance(tensor, MappedTensor):
        return tensor.view()
    if tensor.dtype.bitwidth < 8:
        return memoryview(tensor.tobytes())
    return np.asarray(tensor.numpy(), order="C").reshape(-1).view(np.uint8).data


def fingerprint(tensor: onnx_ir.TensorProtocol) -> bytes:
    """A hash of a tensor's content, computed once: 16 bytes of BLAKE2b."""
    known = tensor.meta.get(_FINGERPRINT)
    if known is None:
        digest = hashlib.blake2b(digest_size=16)
        if tensor.dtype == onnx_ir.DataType.STRING:
            digest.update(repr(tensor.numpy().tolist()).encode())
        else:
            data = raw_bytes(tensor)
            for start in range(0, len(data), _CHUNK):
                digest.update(data[start : start + _CHUNK])
                if isinstance(tensor, MappedTensor):
                    tensor.release()
        known = tensor.meta[_FINGERPRINT] = digest.digest()
    return bytes(known)


def duplicates(values: Iterable[onnx_ir.Value]) -> list[list[onnx_ir.Value]]:
    """Groups of two or more constants of equal dtype, shape and content, in order of appearance.

    Only tensors that agree in dtype, shape and at a few places are hashed. Large weights that are
    still to be derived are left out: to look at one is to compute it.
    """
    alike: dict[object, list[onnx_ir.Value]] = defaultdict(list)
    for value in values:
        tensor = constant(value)
        if tensor is None or (isinstance(tensor, onnx_ir.LazyTensor) and not is_small(tensor)):
            continue
        alike[tensor.dtype, tuple(tensor.shape.numpy()), _glance(tensor)].append(value)
    groups: dict[tuple[object, bytes], list[onnx_ir.Value]] = defaultdict(list)
    for key, candidates in alike.items():
        for value in candidates if len(candidates) > 1 else ():
            tensor = constant(value)
            assert tensor is not None
            groups[key, fingerprint(tensor)].append(value)
    return [group for group in groups.values() if len(group) > 1]


def _glance(tensor: onnx_ir.TensorProtocol) -> bytes:
    """A few bytes from all over a large mapped tensor; nothing of any other."""
    if not isinstance(tensor, MappedTensor) or is_small(tensor):
        return b""
    data, step = tensor.view(), tensor.nbytes // 16
    return b"".join(bytes(data[start : start + 32]) for start in range(0, tensor.nbytes, step))

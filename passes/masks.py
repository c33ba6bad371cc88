"""Masks that are added to the scores of attention."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.positions import same_dim
from aigcc.ir.weights import constant, derive, scalar
from aigcc.pipeline.rules import Builder

FINITE = {ir.DataType.FLOAT: -1e38, ir.DataType.FLOAT16: -6e4}
"""Numbers that no softmax survives, and that are still only numbers."""

_LARGEST = 1 << 24
_DEEPEST = 8
_KEEP_NUMBERS = frozenset({"Expand", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})


def finite_mask(op: Builder, mask: ir.Value) -> ir.Value:
    """A mask without the lowest number of its type, as far as its origin can be seen.

    ONNX Runtime's Attention takes that number for -inf. It matters in a row that is masked whole,
    which attends nothing with -inf, and everything alike with any other number.
    """
    return _finite(op, mask, _DEEPEST)


def covers(mask: ir.Value, queries: int | ir.SymbolicDim, keys: int | ir.SymbolicDim) -> bool:
    """Whether a mask provably has an element for each query and key."""
    shape = mask.shape
    if shape is None or len(shape) < 2:
        return False
    return same_dim(shape[-2], queries) and same_dim(shape[-1], keys)


def is_finite(mask: ir.Value) -> bool:
    """Whether it can be seen that no element of a mask is infinite."""
    return _is_finite(mask, _DEEPEST)


def _is_finite(value: ir.Value | None, depth: int) -> bool:
    tensor = constant(value)
    if tensor is not None:
        return tensor.nbytes <= _LARGEST and bool(np.isfinite(tensor.numpy()).all())
    node = value.producer() if value is not None else None
    if node is None or not depth or node.op_type not in (*_KEEP_NUMBERS, "Where", "Add"):
        return False
    return all(_is_finite(node.inputs[place], depth - 1) for place in _numbers_of(node))


def _finite(op: Builder, value: ir.Value, depth: int) -> ir.Value:
    node, dtype = value.producer(), value.dtype
    if dtype not in FINITE or not depth:
        return value
    tensor = constant(value)
    if tensor is not None:
        return _replaced(op, value, tensor) if tensor.nbytes <= _LARGEST else value
    if node is None or node.domain not in ("", "ai.onnx") or len(node.outputs) > 1:
        return value
    places = _numbers_of(node)
    inputs = list(node.inputs)
    for place in places:
        source = inputs[place]
        inputs[place] = source if source is None else _finite(op, source, depth - 1)
    if inputs == list(node.inputs):
        return value
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    made: ir.Value = op.node(node.op_type, inputs, attributes)
    return made


def _numbers_of(node: ir.Node) -> list[int]:
    """Which inputs an output's numbers come from."""
    if node.op_type in _KEEP_NUMBERS:
        return [0]
    if node.op_type == "Where":
        return [1, 2]
    if node.op_type == "Add":
        return [0, 1]
    if node.op_type == "Mul":
        return [place for place in (0, 1) if scalar(node.inputs[place]) is not None]
    return []


def _replaced(op: Builder, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    dtype = tensor.dtype
    lowest = np.finfo(dtype.numpy()).min
    array = tensor.numpy()
    if not (array == lowest).any():
        return value
    finite = dtype.numpy().type(FINITE[dtype])

    def replace(array: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        return np.where(array == lowest, finite, array)

    if array.ndim == 0:
        return op.constant(replace(array))
    shape = [int(size) for size in array.shape]
    return op.constant(derive(replace, tensor, dtype=dtype, shape=shape, name="mask"), "mask")

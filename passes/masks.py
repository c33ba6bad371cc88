"""Masks that are added to the scores of attention, and what rows that are masked whole mean."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.extents import Extents
from aigcc.analysis.positions import same_dim
from aigcc.ir.weights import constant, derive, scalar
from aigcc.passes.conditions import HALVES, number
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder

FINITE = {
    ir.DataType.FLOAT: -1e38,
    ir.DataType.FLOAT16: -6e4,
    ir.DataType.BFLOAT16: -1e38,
    ir.DataType.DOUBLE: -1e300,
}
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


def lowest(dtype: ir.DataType | None) -> float:
    """The lowest finite number of a type of floats; minus infinity of any other."""
    return float(ml_dtypes.finfo(dtype.numpy()).min) if dtype in FINITE else -math.inf


def prepared(op: Builder, mask: ir.Value, *, empty_is_nan: bool) -> ir.Value:
    """A mask for Attention, whose rows mean what they mean to a sum and a softmax.

    The lowest number of its type becomes a finite one, as in `finite_mask`, also where it comes
    from an input. A row of nothing but -inf makes Attention give 0 and a softmax NaN.

    Args:
        op: Makes the nodes.
        mask: Numbers that are added to scores.
        empty_is_nan: Rows of nothing but -inf become rows of NaN.

    Raises:
        NoMatch: the type of the mask is not known.
    """
    mask = finite_mask(op, mask)
    dtype = mask.dtype
    if dtype not in FINITE:
        raise NoMatch("the type of the mask is not one of floats")
    if mask.shape is not None and not len(mask.shape):
        raise NoMatch("the mask is one number, and has no rows")
    lowest_is_finite = _may_hold_lowest(mask, Extents(), _DEEPEST)
    if not lowest_is_finite and not empty_is_nan:
        return mask
    # Rows are scaled as a whole, by 1 where anything but the lowest numbers is in them.
    wide = op.Cast(mask, to=int(ir.DataType.FLOAT)) if dtype in HALVES else mask
    top = op.ReduceMax(wide, [-1])
    seen, low = number(1.0, wide), number(FINITE[dtype] if lowest_is_finite else -math.inf, wide)
    hidden = number(math.nan if empty_is_nan else 1.0, wide)
    if lowest_is_finite:
        factor = number(FINITE[dtype] / lowest(dtype), wide)
        some = op.Greater(top, number(-math.inf, wide))
        hidden = op.Where(some, factor, hidden) if empty_is_nan else factor
    by = op.Where(op.Greater(top, low), seen, hidden)
    by = op.Cast(by, to=int(dtype)) if dtype in HALVES else by
    value: ir.Value = op.Mul(mask, by)
    return value


def _may_hold_lowest(value: ir.Value | None, extents: Extents, depth: int) -> bool:
    """Whether the lowest number of its type may be among those of a mask."""
    if value is None or value.dtype not in FINITE or not depth:
        return True
    if extents.of(value).low > lowest(value.dtype):
        return False
    tensor, node = constant(value), value.producer()
    if tensor is not None:
        return tensor.nbytes > _LARGEST or bool((tensor.numpy() == lowest(tensor.dtype)).any())
    if node is None or node.op_type == "Mul":
        return True
    sources = [node.inputs[place] for place in _numbers_of(node)]
    return not sources or any(_may_hold_lowest(each, extents, depth - 1) for each in sources)


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
    dtype, array = tensor.dtype, tensor.numpy()
    if not (array == lowest(dtype)).any():
        return value
    finite = dtype.numpy().type(FINITE[dtype])

    def replace(array: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        return np.where(array == lowest(dtype), finite, array)

    if array.ndim == 0:
        return op.constant(replace(array))
    shape = [int(size) for size in array.shape]
    return op.constant(derive(replace, tensor, dtype=dtype, shape=shape, name="mask"), "mask")

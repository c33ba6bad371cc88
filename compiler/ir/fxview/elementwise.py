"""Converters of operators that work on each element alone, and of type conversion."""

from __future__ import annotations

import functools
import operator
from typing import Any

import onnx_ir as ir
import torch

from aigcc.ir.fxview.dtypes import cast
from aigcc.ir.fxview.recording import Expr, recorded
from aigcc.ir.fxview.registry import converts
from aigcc.ir.fxview.site import Site

_UNARY: dict[str, Any] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_BINARY: dict[str, Any] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
}

_LOGICAL: dict[str, Any] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


@converts(*_UNARY)
def unary(node: Site, x: Expr) -> Expr:
    """Any function of one tensor that torch has under another name."""
    return _UNARY[node.node.op_type](x)


@converts(*_BINARY, numbers=(0, 1))
def binary(node: Site, a: Expr, b: Expr) -> Expr:
    """Arithmetic and comparison, in Python's own notation."""
    a, b = _aligned(node, a, b)
    return _BINARY[node.node.op_type](a, b)


@converts(*_LOGICAL)
def logical(node: Site, a: Expr, b: Expr) -> Expr:
    """Logic on truth values, and on bits."""
    a, b = _aligned(node, a, b)
    return _LOGICAL[node.node.op_type](a, b)


def _aligned(node: Site, a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """The operands as before opset 7, when the second lay along the first from `axis` on."""
    if node.opset >= 7 or not node.flag("broadcast") or not node.gives_tensor(1):
        return a, b
    axis = node.attribute("axis")
    rank, other = node.need_rank(0), node.need_rank(1)
    if axis is None or axis + other == rank:
        return a, b
    return a, b.reshape(b.shape + (1,) * (rank - axis - other))


@converts("Div", numbers=(0, 1))
def div(node: Site, a: Expr, b: Expr) -> Expr:
    """Division; of whole numbers it rounds towards zero."""
    a, b = _aligned(node, a, b)
    if node.is_float():
        return a / b
    if not node.gives_tensor(0):
        a = node.tensor(0)
    return torch.div(a, b, rounding_mode="trunc")


@converts("Mod")
def mod(node: Site, a: Expr, b: Expr) -> Expr:
    """The remainder, with the sign of `b`, or with that of `a` (fmod)."""
    return torch.fmod(a, b) if node.flag("fmod") else torch.remainder(a, b)


@converts("Pow", numbers=(1,))
def power(node: Site, a: Expr, b: Expr) -> Expr:
    """`a` to the power of `b`, in the type of `a`."""
    made = torch.pow(a, b)
    return made if node.dtype(0) == node.dtype(1) else made.to(node.torch_dtype())


@converts("BitShift")
def bit_shift(node: Site, a: Expr, b: Expr) -> Expr:
    """The bits of `a`, moved by `b` places."""
    is_left = node.text("direction", "") == "LEFT"
    return torch.bitwise_left_shift(a, b) if is_left else torch.bitwise_right_shift(a, b)


@converts("Max", "Min")
def extreme(node: Site, *operands: Expr) -> Expr:
    """The larger or the smaller of all operands."""
    function = torch.maximum if node.node.op_type == "Max" else torch.minimum
    return functools.reduce(function, operands)


@converts("Sum", "Mean")
def total(node: Site, *operands: Expr) -> Expr:
    """The sum or the mean of all operands."""
    made = functools.reduce(operator.add, operands)
    return made / len(operands) if node.node.op_type == "Mean" else made


@converts("Where", numbers=(1, 2))
def where(node: Site, condition: Expr, x: Expr, y: Expr) -> Expr:
    """`x` where the condition holds, else `y`."""
    if not node.gives_tensor(1) and not node.gives_tensor(2):
        x = node.tensor(1)  # two numbers would be of torch's default type
    return torch.where(condition, x, y)


@converts("IsInf")
def is_inf(node: Site, x: Expr) -> Expr:
    """Which elements are infinite, of either sign or of one."""
    positive, negative = node.flag("detect_positive", 1), node.flag("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    if not positive and not negative:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isposinf(x) if positive else torch.isneginf(x)


@converts("Clip", numbers=(1, 2))
def clip(node: Site, x: Expr, low: Expr = None, high: Expr = None) -> Expr:
    """`x`, not below `low` and not above `high`."""
    low = node.attribute("min") if low is None else low
    high = node.attribute("max") if high is None else high
    if low is None and high is None:
        return x
    if low is not None and high is not None and node.gives_tensor(1) != node.gives_tensor(2):
        return x.clamp(min=low).clamp(max=high)
    return x.clamp(low, high)


@converts("Identity")
def identity(node: Site, x: Expr) -> Expr:
    """The same."""
    return x


@converts("Dropout")
def dropout(node: Site, x: Expr, ratio: Expr = None, training: Expr = None) -> Expr:
    """The same, and a mask that is true: ONNX drops nothing unless it is told to train."""
    if node.has(2) and (node.constant(2) is None or bool(node.constant(2))):
        node.refuse("it is in training mode", "export the model in evaluation mode")
    return x, torch.ones_like(x, dtype=torch.bool)


@converts("Cast")
def to_type(node: Site, x: Expr) -> Expr:
    """The numbers of `x` in another type."""
    return _cast(node, x, ir.DataType(node.attribute("to")))


@converts("CastLike", settings=(1,))
def to_type_of(node: Site, x: Expr) -> Expr:
    """The numbers of `x` in the type of another tensor."""
    return _cast(node, x, node.dtype(1))


def _cast(node: Site, x: Expr, to: ir.DataType) -> Expr:
    source = node.dtype(0)
    if ir.DataType.STRING in (source, to):
        node.refuse("torch has no strings")
    return x if source == to else cast(x, source, to, node.flag("saturate", 1))


@converts("BitCast")
def bit_cast(node: Site, x: Expr) -> Expr:
    """The same bits, read as another type of the same width."""
    return reinterpret(x, node.torch_dtype())


@recorded
def reinterpret(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same bytes as another type."""
    return x.contiguous().view(dtype)

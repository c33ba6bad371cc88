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
from aigcc.ir.fxview.unsigned import quotient_of_bits, shifted_right

_UNARY: dict[str, Any] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
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
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

_ARITHMETIC: dict[str, Any] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
}

_COMPARISON: dict[str, Any] = {
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


_OLD_BROADCAST = ("axis", "broadcast")
"""How operands were aligned before opset 7."""


@converts(*_UNARY)
def unary(node: Site, x: Expr) -> Expr:
    """Any function of one tensor that torch has under another name."""
    return _UNARY[node.node.op_type](x)


@converts("BitwiseNot", wide="bits")
def bitwise_not(node: Site, x: Expr) -> Expr:
    """The bits of `x`, turned over."""
    return torch.bitwise_not(x)


@converts("Abs", "Sign", wide="bits")
def size_or_sign(node: Site, x: Expr) -> Expr:
    """How large a number is, or whether it is positive, negative or zero."""
    is_size = node.node.op_type == "Abs"
    if node.dtype() == ir.DataType.UINT64:  # whose bits may look negative
        return x if is_size else (x != 0).to(x.dtype)
    return torch.abs(x) if is_size else torch.sign(x)


@converts(*_ARITHMETIC, attributes=_OLD_BROADCAST, numbers=(0, 1), wide="bits")
def arithmetic(node: Site, a: Expr, b: Expr) -> Expr:
    """Sums, differences and products, in Python's own notation."""
    a, b = _aligned(node, a, b)
    return _ARITHMETIC[node.node.op_type](a, b)


@converts(*_COMPARISON, attributes=_OLD_BROADCAST, numbers=(0, 1), wide="order")
def comparison(node: Site, a: Expr, b: Expr) -> Expr:
    """Comparisons, in Python's own notation."""
    a, b = _aligned(node, a, b)
    return _COMPARISON[node.node.op_type](a, b)


@converts(*_LOGICAL, attributes=_OLD_BROADCAST, wide="bits")
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


@converts("Div", attributes=_OLD_BROADCAST, numbers=(0, 1), wide="bits")
def div(node: Site, a: Expr, b: Expr) -> Expr:
    """Division; of whole numbers it rounds towards zero."""
    a, b = _aligned(node, a, b)
    if node.is_float():
        return a / b
    if not node.gives_tensor(0):
        a = node.tensor(0)
    if node.dtype() == ir.DataType.UINT64:
        return quotient_of_bits(a, b)
    return torch.div(a, b, rounding_mode="trunc")


@converts("Mod", attributes=("fmod",), wide="bits")
def mod(node: Site, a: Expr, b: Expr) -> Expr:
    """The remainder, with the sign of `b`, or with that of `a` (fmod)."""
    if node.dtype() == ir.DataType.UINT64:
        return a - quotient_of_bits(a, b) * b
    return torch.fmod(a, b) if node.flag("fmod") else torch.remainder(a, b)


@converts("Pow", attributes=_OLD_BROADCAST, numbers=(1,), wide="bits")
def power(node: Site, a: Expr, b: Expr) -> Expr:
    """`a` to the power of `b`, in the type of `a`."""
    kinds = {node.dtype(0), node.dtype(1)}
    if ir.DataType.UINT64 in kinds and any(kind.is_floating_point() for kind in kinds):
        node.refuse("one of its operands is uint64, the other a float")
    made = torch.pow(*_aligned(node, a, b))
    return made if node.dtype(0) == node.dtype(1) else made.to(node.torch_dtype())


@converts("BitShift", attributes=("direction",), wide="bits")
def bit_shift(node: Site, a: Expr, b: Expr) -> Expr:
    """The bits of `a`, moved by `b` places."""
    is_left, dtype = node.text("direction", "") == "LEFT", node.dtype()
    return shifted(a, b, is_left, dtype.bitwidth, dtype == ir.DataType.UINT64)


@recorded
def shifted(
    a: torch.Tensor, places: torch.Tensor, is_left: bool, width: int, is_bits: bool
) -> torch.Tensor:
    """The bits of `a`, moved; the sign alone is left where no bit stays in its `width`.

    `is_bits` says that the highest bit is no sign.
    """
    fits = (places >= 0) & (places < width)
    kept = torch.where(fits, places, 0)
    if is_left:
        return torch.where(fits, torch.bitwise_left_shift(a, kept), 0)
    if is_bits:
        return torch.where(fits, shifted_right(a, kept), 0)
    sign = -(a < 0).to(a.dtype)
    return torch.where(fits, torch.bitwise_right_shift(a, kept), sign)


@converts("Max", "Min", wide="order")
def extreme(node: Site, *operands: Expr) -> Expr:
    """The larger or the smaller of all operands."""
    function = torch.maximum if node.node.op_type == "Max" else torch.minimum
    return functools.reduce(function, operands)


@converts("Sum", "Mean", wide="bits")
def total(node: Site, *operands: Expr) -> Expr:
    """The sum or the mean of all operands."""
    made = functools.reduce(operator.add, operands)
    return made / len(operands) if node.node.op_type == "Mean" else made


@converts("Where", numbers=(1, 2), wide="bits")
def where(node: Site, condition: Expr, x: Expr, y: Expr) -> Expr:
    """`x` where the condition holds, else `y`."""
    if not node.gives_tensor(1) and not node.gives_tensor(2):
        x = node.tensor(1)  # two numbers would be of torch's default type
    return torch.where(condition, x, y)


@converts("IsInf", attributes=("detect_negative", "detect_positive"))
def is_inf(node: Site, x: Expr) -> Expr:
    """Which elements are infinite, of either sign or of one."""
    positive, negative = node.flag("detect_positive", 1), node.flag("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    if not positive and not negative:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isposinf(x) if positive else torch.isneginf(x)


@converts("Clip", numbers=(1, 2), attributes=("max", "min"), wide="order")
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


@converts("Dropout", attributes=("is_test", "ratio", "seed"))
def dropout(node: Site, x: Expr, ratio: Expr = None, training: Expr = None) -> Expr:
    """The same, and a mask that is true: ONNX drops nothing unless it is told to train."""
    trains = node.has(2) and (node.constant(2) is None or bool(node.constant(2)))
    if trains or (node.opset < 7 and not node.flag("is_test")):
        node.refuse("it is in training mode", "export the model in evaluation mode")
    if node.opset >= 12:
        return x, torch.ones_like(x, dtype=torch.bool)
    # ONNX Runtime's mask was false everywhere before; of floats up to opset 9.
    return x, torch.zeros_like(x, dtype=torch.bool if node.opset >= 10 else None)


@converts("Cast", attributes=("round_mode", "saturate", "to"))
def to_type(node: Site, x: Expr) -> Expr:
    """The numbers of `x` in another type."""
    to = node.attribute("to")  # a word before opset 6
    return _cast(node, x, ir.DataType[str(to).upper()] if isinstance(to, str) else ir.DataType(to))


@converts("CastLike", settings=(1,), attributes=("round_mode", "saturate"))
def to_type_of(node: Site, x: Expr) -> Expr:
    """The numbers of `x` in the type of another tensor."""
    return _cast(node, x, node.dtype(1))


def _cast(node: Site, x: Expr, to: ir.DataType) -> Expr:
    source = node.dtype(0)
    how = node.text("round_mode", "up")
    return x if source == to else cast(x, source, to, node.flag("saturate", 1), how)


@converts("BitCast", attributes=("to",))
def bit_cast(node: Site, x: Expr) -> Expr:
    """The same bits, read as another type of the same width."""
    return reinterpret(x, node.torch_dtype())


@recorded
def reinterpret(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same bytes as another type."""
    return x.contiguous().view(dtype)

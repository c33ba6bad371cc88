"""Arithmetic of small integers in larger ones, and zero points by channel and by row apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import keeping, product, size
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_SMALL = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


class WideIntegers(Rule):
    """Add(x, y) of int8 -> Cast(Add(Cast(x), Cast(y))) of int32; and Sub, Mul, Div, Neg, Abs"""

    name = "wide-integers"

    def pattern(self, op: PatternBuilder, x: Any, y: Any) -> list[Apply]:
        pairs = [make(x, y) for make in (op.Add, op.Sub, op.Mul, op.Div)]
        return [*pairs, op.Neg(x), op.Abs(x)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        node = match.root
        inputs = [value for value in node.inputs if value is not None]
        if not inputs or inputs[0].dtype not in _SMALL:
            return None
        wide = [op.Cast(value, to=int(ir.DataType.INT32)) for value in inputs]
        made = op.node(node.op_type, wide, keeping(node))
        value: ir.Value = op.Cast(made, to=int(inputs[0].dtype))
        return value


class ConvZeroPoints(Rule):
    """ConvInteger(x, w, a, b) -> ConvInteger(x, w, a) - b * ConvInteger(x, 1, a), b by channel

    A sum of (x - a) * (w - b) is one of (x - a) * w less b times one of x - a, and integers of 32
    bits wrap alike in both.
    """

    name = "conv-zero-points"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, a: Any, b: Any) -> Apply:
        return op.ConvInteger(x, w, a, b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        w, node = match.w, match.root
        if has_one_element(match.b):
            return None
        if w.shape is None or not w.shape.is_static() or w.dtype is None:
            raise NoMatch("the shape of its weight is not known")
        channels, *window = w.shape.numpy()
        is_grouped = node.attributes.get_int("group", 1) > 1
        ones = np.ones([channels if is_grouped else 1, *window], w.dtype.numpy())
        sums = op.node("ConvInteger", [match.x, ones, match.a], keeping(node))
        column = op.Reshape(match.b, [-1, *[1] * (len(window) - 1)])
        whole = op.node("ConvInteger", [match.x, w, match.a], keeping(node))
        value: ir.Value = op.Sub(whole, op.Mul(op.Cast(column, to=int(ir.DataType.INT32)), sums))
        return value


class RowZeroPoints(Rule):
    """MatMulInteger(x, w, a, b) -> MatMulInteger(x, w, 0, b) - a * MatMulInteger(1, w, 0, b)

    a has a number for each row.
    """

    name = "row-zero-points"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, a: Any, b: Any = None) -> Apply:
        return op.MatMulInteger(x, w, a, b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, w, a = match.x, match.w, match.a
        if has_one_element(a):
            return None
        if a.shape is None or x.dtype is None:
            raise NoMatch("the shape of its zero points is not known")
        length = size(w, -2) or size(x, -1)
        if length is None:
            raise NoMatch("the length of its sums is not known")
        column = op.Reshape(a, [-1, 1]) if len(a.shape) == 1 else a
        ones = np.ones([1, length], x.dtype.numpy())
        sums = op.MatMulInteger(ones, w, None, match.b)
        whole = op.MatMulInteger(x, w, None, match.b)
        value: ir.Value = op.Sub(whole, op.Mul(op.Cast(column, to=int(ir.DataType.INT32)), sums))
        return value


def has_one_element(value: ir.Value) -> bool:
    """Whether a value is known to be a single number."""
    return value.shape is not None and product(value.shape) == 1


class BoolExtremes(Rule):
    """ReduceMax(x) of booleans -> Cast(ReduceMax(Cast(x))) of uint8; and ReduceMin

    The largest of no numbers of 8 bits is 0, and the smallest 255: false and true.
    """

    name = "bool-extremes"

    def pattern(self, op: PatternBuilder, x: Any, axes: Any = None) -> list[Apply]:
        return [op.ReduceMax(x, axes), op.ReduceMin(x, axes)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if match.x.dtype != ir.DataType.BOOL:
            return None
        numbers = op.Cast(match.x, to=int(ir.DataType.UINT8))
        made = op.node(match.root.op_type, [numbers, match.axes], keeping(match.root))
        value: ir.Value = op.Cast(made, to=int(ir.DataType.BOOL))
        return value

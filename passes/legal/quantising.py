"""Quantising whose scale is found when the model runs, in the standard's own arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import HALVES, rank
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_LARGEST = np.array(255, np.float32)
_ONE = np.array(1, np.float32)
_NOTHING = np.array(0, np.float32)
_WHOLE = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


class DynamicQuantize(Rule):
    """DynamicQuantizeLinear(x) -> Cast(Clip(Round(x / s) + z, 0, 255)), s, z

    s is (the largest of x and 0 - the smallest of x and 0) / 255, or 1 where that is 0; z is
    Round(-smallest / s).
    """

    name = "dynamic-quantize"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.DynamicQuantizeLinear(x)

    def rewrite(self, op: Builder, match: Match) -> list[ir.Value]:
        x = match.x
        low = op.Min(op.ReduceMin(x, keepdims=0), _NOTHING)
        high = op.Max(op.ReduceMax(x, keepdims=0), _NOTHING)
        spread = op.Sub(high, low)
        scale = op.Where(op.Equal(spread, _NOTHING), _ONE, _step(op, spread))
        begin = op.Round(op.Clip(op.Neg(op.Div(low, scale)), _NOTHING, _LARGEST))
        y = _quantised(op, x, scale, begin, ir.DataType.UINT8)
        return [y, scale, op.Cast(begin, to=int(ir.DataType.UINT8))]


class Quantize(Rule):
    """QuantizeLinear(x, s, z) -> Cast(Clip(Round(x / s) + z)), where s is computed"""

    name = "quantize"

    def pattern(self, op: PatternBuilder, x: Any, scale: Any, zero: Any = None) -> Apply:
        return op.QuantizeLinear(x, scale, zero)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, node, dtype = match.x, match.root, match.root.outputs[0].dtype
        if dtype not in _WHOLE or node.attributes.get_int("block_size", 0) > 0:
            return None
        dims, parts = rank(x), rank(match.scale)
        if dims is None or parts is None:
            raise NoMatch("the ranks of its inputs are not known")
        column = [1] * dims
        if parts:
            column[node.attributes.get_int("axis", 1) % dims] = -1
        wide = op.Cast(x, to=int(ir.DataType.FLOAT)) if x.dtype in HALVES else x
        zero = None if match.zero is None else _column(op, match.zero, column if parts else None)
        scale = _column(op, match.scale, column if parts else None)
        return _quantised(op, wide, scale, zero, dtype)


def _column(op: Builder, value: ir.Value, shape: list[int] | None) -> ir.Value:
    """A scale or a zero point in float32, along its axis."""
    wide: ir.Value = op.Cast(value, to=int(ir.DataType.FLOAT))
    return wide if shape is None else op.Reshape(wide, shape)


def _step(op: Builder, spread: ir.Value) -> ir.Value:
    """spread / 255 to the last bit, where a division is a product with 1 / 255.

    What is left, spread - 256 q + q, has no error: both differences are of numbers that are near.
    """
    near = op.Div(spread, _LARGEST)
    left = op.Add(op.Sub(spread, op.Mul(near, np.array(256, np.float32))), near)
    value: ir.Value = op.Add(near, op.Div(left, _LARGEST))
    return value


def _quantised(
    op: Builder, x: ir.Value, scale: ir.Value, zero: ir.Value | None, dtype: ir.DataType
) -> ir.Value:
    """x / scale, rounded with ties to even, from a zero point on, within the bounds of a type."""
    info = np.iinfo(dtype.numpy())
    steps = op.Round(op.Div(x, scale))
    steps = steps if zero is None else op.Add(steps, zero)
    bounds = (np.array(bound, np.float32) for bound in (info.min, info.max))
    value: ir.Value = op.Cast(op.Clip(steps, *bounds), to=int(dtype))
    return value

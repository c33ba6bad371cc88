"""Arithmetic of small integers, which wraps, in larger ones."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from aigcc.passes.conditions import keeping
from aigcc.pipeline.pattern import Apply, Match, PatternBuilder
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

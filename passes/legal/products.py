"""Matrix products of vectors, for runtimes that take matrices alone."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule


class VectorMatMul(Rule):
    """MatMul(v, w) -> Squeeze(MatMul(Unsqueeze(v), w)), where v or w is a vector"""

    name = "vector-matmul"
    opset = 13

    def pattern(self, op: PatternBuilder, x: Any, w: Any) -> Apply:
        return op.MatMul(x, w)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, w = match.x, match.w
        if x.shape is None or w.shape is None:
            raise NoMatch("the ranks of its inputs are not known")
        axes = []
        if len(x.shape) == 1:
            x, axes = op.Unsqueeze(x, [0]), [-2]
        if len(w.shape) == 1:
            w, axes = op.Unsqueeze(w, [1]), [*axes, -1]
        if not axes:
            return None
        value: ir.Value = op.Squeeze(op.MatMul(x, w), axes)
        return value

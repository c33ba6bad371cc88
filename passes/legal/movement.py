"""Tiles and splits whose counts or sizes are computed, from operators that only move numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import rank
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule


class SpreadTile(Rule):
    """Tile(x, r) -> Reshape(Expand(Reshape(x, [1, d, 1, e]), [r, d, s, e]), [r d, s e])"""

    name = "spread-tile"
    opset = 14  # Reshape(allowzero)

    def pattern(self, op: PatternBuilder, x: Any, r: Any) -> Apply:
        return op.Tile(x, r)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        dims = rank(match.x)
        if dims is None:
            raise NoMatch("the rank of what is repeated is not known")
        sizes = op.Shape(match.x)

        def paired(first: Any) -> ir.Value:
            columns = [
                op.Reshape(first, np.array([dims, 1])),
                op.Reshape(sizes, np.array([dims, 1])),
            ]
            value: ir.Value = op.Reshape(op.Concat(*columns, axis=1), np.array([2 * dims]))
            return value

        apart = op.Reshape(match.x, paired(np.ones(dims, np.int64)), allowzero=1)
        spread = op.Expand(apart, paired(match.r))
        value: ir.Value = op.Reshape(spread, op.Mul(sizes, match.r), allowzero=1)
        return value


class SlicedSplit(Rule):
    """Split(x, sizes) -> Slice(x, start, end) for each part

    Without sizes all parts but the last have the size of the axis over their number, rounded up.
    """

    name = "slice-split"
    opset = 13  # sizes are an input

    def pattern(self, op: PatternBuilder, x: Any, sizes: Any = None) -> Apply:
        return op.Split(x, sizes)

    def rewrite(self, op: Builder, match: Match) -> list[ir.Value]:
        axis = np.array([match.root.attributes.get_int("axis", 0)])
        count = len(match.root.outputs)
        if match.sizes is None:
            length = op.Gather(op.Shape(match.x), axis)
            more = op.Add(length, np.array([count - 1]))
            size = op.Div(more, np.array([count]))
            ends = [op.Mul(size, np.array([part + 1])) for part in range(count)]
        else:
            ends = [op.Slice(match.sizes, np.array([0]), np.array([1]), np.array([0]))]
            for part in range(1, count):
                of_part = [np.array([part]), np.array([part + 1]), np.array([0])]
                ends.append(op.Add(ends[-1], op.Slice(match.sizes, *of_part)))
        starts = [np.array([0]), *ends[:-1]]
        return [
            op.Slice(match.x, start, end, axis) for start, end in zip(starts, ends, strict=True)
        ]

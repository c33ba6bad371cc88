"""Rotary embedding from slices and products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_END = int(np.iinfo(np.int64).max)


class Rotary(Rule):
    """RotaryEmbedding(x, cos, sin) -> Concat(a * cos - b * sin, b * cos + a * sin)

    a and b are the halves of x's last dim, or its even and odd elements.
    """

    name = "rotary"

    def pattern(
        self, op: PatternBuilder, x: Any, cos: Any, sin: Any, positions: Any = None
    ) -> Apply:
        return op.RotaryEmbedding(x, cos, sin, positions)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        attributes, x = match.root.attributes, match.x
        if x.shape is None or not isinstance(x.shape[-1], int):
            raise NoMatch("the width of its input is not known")
        flat, heads = len(x.shape) == 3, attributes.get_int("num_heads", 0)
        width = x.shape[-1] // heads if flat else x.shape[-1]
        rows = op.Reshape(x, [0, 0, heads, width]) if flat else x
        cos, sin = (
            _cache(op, c, match.positions, 2 if flat else 1) for c in (match.cos, match.sin)
        )
        turning = attributes.get_int("rotary_embedding_dim", 0) or width
        still = None
        if turning < width:
            still = op.Slice(rows, [turning], [_END], [-1])
            rows = op.Slice(rows, [0], [turning], [-1])
        turn = _turned_pairs if attributes.get_int("interleaved", 0) else _turned_halves
        y = turn(op, rows, cos, sin, turning)
        y = y if still is None else op.Concat(y, still, axis=-1)
        value: ir.Value = op.Reshape(y, [0, 0, heads * width]) if flat else y
        return value


def _cache(op: Builder, cache: ir.Value, positions: ir.Value | None, heads: int) -> ir.Value:
    """Cosines or sines [batch, tokens, width / 2] with a dim of one for the heads."""
    rows = cache if positions is None else op.Gather(cache, positions, axis=0)
    value: ir.Value = op.Unsqueeze(rows, [heads])
    return value


def _turned_halves(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, width: int) -> ir.Value:
    a, b = op.Split(x, [width // 2, width // 2], axis=-1, _outputs=2)
    value: ir.Value = op.Concat(*_products(op, a, b, cos, sin), axis=-1)
    return value


def _turned_pairs(op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, width: int) -> ir.Value:
    a, b = (op.Slice(x, [place], [_END], [-1], [2]) for place in (0, 1))
    columns = [op.Unsqueeze(part, [-1]) for part in _products(op, a, b, cos, sin)]
    value: ir.Value = op.Reshape(op.Concat(*columns, axis=-1), [0, 0, 0, width])
    return value


def _products(
    op: Builder, a: ir.Value, b: ir.Value, cos: ir.Value, sin: ir.Value
) -> tuple[ir.Value, ir.Value]:
    real = op.Sub(op.Mul(a, cos), op.Mul(b, sin))
    return real, op.Add(op.Mul(b, cos), op.Mul(a, sin))

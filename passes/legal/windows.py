"""Attention that hides more keys than its mask: windows, triangles behind a past, short masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import number, size
from aigcc.passes.sizes import size_of
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Replacement, Rule

LARGEST_TRIANGLE = 1 << 16
"""Elements of the largest mask that becomes a constant."""


class Window(Rule):
    """Attention(q, k, v, mask, left_window_size=l) -> Attention(q, k, v, mask and band)

    Query i is at the position p = i + past, and sees the keys from p - l to p + r.
    """

    name = "window"
    opset = 23

    def pattern(self, op: PatternBuilder) -> Apply:
        return op.Attention(_more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        node = match.root
        sides = ("left_window_size", "right_window_size")
        if not any(side in node.attributes for side in sides):
            return None
        left, right = (node.attributes.get_int(side, -1) for side in sides)
        q, k, v, mask, past_k, past_v, lengths = [*node.inputs, *[None] * 7][:7]
        assert q is not None and k is not None
        if lengths is not None:
            raise NoMatch("it is given the lengths of the sequences")
        if max(left, right) >= 0:
            mask = _both(op, mask, _band(op, q, k, past_k, left, right))
        past = [] if past_k is None else [past_k, past_v]
        return _again(op, node, [q, k, v, mask, *past], sides)


class CausalCache(Rule):
    """Attention(q, k, v, mask, past, is_causal=1) -> Attention(q, k, v, mask and triangle, past)

    Query i sees the keys up to i + past.
    """

    name = "causal-cache"
    opset = 23

    def pattern(self, op: PatternBuilder) -> Apply:
        return op.Attention(_more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        node = match.root
        q, k, v, mask, past_k, past_v, lengths = [*node.inputs, *[None] * 7][:7]
        if past_k is None or not node.attributes.get_int("is_causal", 0):
            return None
        assert q is not None and k is not None
        if lengths is not None:
            raise NoMatch("it is given the lengths of the sequences")
        mask = _both(op, mask, _band(op, q, k, past_k, -1, 0))
        return _again(op, node, [q, k, v, mask, past_k, past_v], ("is_causal",))


class PaddedMask(Rule):
    """Attention(q, k, v, mask) -> Attention(q, k, v, Pad(mask)) where the mask has fewer keys

    Keys behind the end of a mask are hidden.
    """

    name = "padded-mask"
    opset = 23

    def pattern(self, op: PatternBuilder) -> Apply:
        return op.Attention(_more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        node = match.root
        missing, mask = hidden_keys(node), node.inputs[3] if len(node.inputs) > 3 else None
        if not missing or mask is None:
            return None
        is_bool = mask.dtype == ir.DataType.BOOL
        hidden: Any = np.array(False) if is_bool else number(-math.inf, mask)
        pads = [0] * (2 * len(mask.shape or ()) - 1)
        inputs = [*node.inputs]
        inputs[3] = op.Pad(mask, [*pads, missing], hidden)
        return _again(op, node, inputs, ())


def hidden_keys(node: ir.Node) -> int:
    """How many keys an Attention has more than its mask; 0 where either number is not known."""
    inputs = [*node.inputs, *[None] * 5]
    k, mask, past = inputs[1], inputs[3], inputs[4]
    if k is None or mask is None:
        return 0
    known = [size(k, -2), 0 if past is None else size(past, 2), size(mask, -1)]
    keys, before, given = (0 if each is None else each for each in known)
    return 0 if None in known else max(keys + before - given, 0)


def _both(op: Builder, mask: ir.Value | None, band: ir.Value) -> ir.Value:
    """A mask, if there is one, that hides also what a mask of booleans hides."""
    if mask is None:
        return band
    value: ir.Value
    if mask.dtype == ir.DataType.BOOL:
        value = op.And(mask, band)
    else:
        value = op.Add(mask, op.Where(band, number(0.0, mask), number(-math.inf, mask)))
    return value


def _again(
    op: Builder, node: ir.Node, inputs: list[ir.Value | None], without: tuple[str, ...]
) -> Replacement:
    """The Attention with other inputs, and without some attributes."""
    kept = {name: a.value for name, a in node.attributes.items() if name not in without}
    made = op.Attention(*inputs, _outputs=len(node.outputs), **kept)
    return [made] if isinstance(made, ir.Value) else list(made)


def _band(
    op: Builder, q: ir.Value, k: ir.Value, past: ir.Value | None, left: int, right: int
) -> ir.Value:
    """Which keys [queries, keys] a window lets each query see; -1 is no bound on a side."""
    if q.shape is None or k.shape is None or (past is not None and past.shape is None):
        raise NoMatch("the shapes of queries and keys are not known")
    queries, keys = q.shape[-2], k.shape[-2]
    before = 0 if past is None or past.shape is None else past.shape[2]
    if isinstance(queries, int) and isinstance(keys, int) and isinstance(before, int):
        keys += before
        if queries * keys <= LARGEST_TRIANGLE:
            low = ~np.tri(queries, keys, before - left - 1, dtype=bool)
            high = np.tri(queries, keys, before + right, dtype=bool)
            return op.constant((low | (left < 0)) & (high | (right < 0)), "band")
    total = size_of(op, k, -2)
    rows = counted(op, size_of(op, q, -2))
    if past is not None:
        length = size_of(op, past, 2)
        total, rows = op.Add(total, length), op.Add(rows, length)
    columns, rows = counted(op, total), op.Unsqueeze(rows, [1])
    sides = []
    if left >= 0:
        sides.append(op.GreaterOrEqual(columns, op.Sub(rows, np.array(left, np.int64))))
    if right >= 0:
        sides.append(op.LessOrEqual(columns, op.Add(rows, np.array(right, np.int64))))
    value: ir.Value = sides[0] if len(sides) == 1 else op.And(*sides)
    return value


def counted(op: Builder, size: ir.Value) -> ir.Value:
    """0, 1, .. up to below a size, which is an int64 [1]."""
    end = op.Squeeze(size, [0])
    numbers: ir.Value = op.Range(np.array(0, np.int64), end, np.array(1, np.int64))
    return numbers

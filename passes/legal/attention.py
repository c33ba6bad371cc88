"""Attention from matrix products and softmax, or as a kernel that is made for many tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.analysis.extents import Extents
from aigcc.passes.conditions import HALVES, number
from aigcc.passes.legal.windows import LARGEST_TRIANGLE, counted
from aigcc.passes.masks import FINITE, lowest
from aigcc.passes.sizes import size_of
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Replacement, Rule

_SPLIT = [0, 2, 1, 3]


@dataclasses.dataclass
class _Attention:
    """The inputs and attributes of an Attention node."""

    node: ir.Node
    q: ir.Value
    k: ir.Value
    v: ir.Value
    mask: ir.Value | None
    past_k: ir.Value | None
    past_v: ir.Value | None
    heads: int
    groups: int

    @classmethod
    def of(cls, node: ir.Node) -> _Attention:
        """Read a node.

        Raises:
            NoMatch: it does what matrix products and softmax alone do not, or the number of heads
                is not known.
        """
        q, k, v, mask, past_k, past_v, lengths = [*node.inputs, *[None] * 7][:7]
        assert q is not None and k is not None and v is not None
        if lengths is not None:
            raise NoMatch("it is given the lengths of the sequences")
        for side in ("left_window_size", "right_window_size"):
            if node.attributes.get_int(side, -1) >= 0:
                raise NoMatch("it attends a window")
        if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
            raise NoMatch("its scores are used as well")
        if q.shape is None or k.shape is None:
            raise NoMatch("the shapes of queries and keys are not known")
        counts = [q.shape[1], k.shape[1]]
        if len(q.shape) == 3:
            counts = [node.attributes[f"{of}_num_heads"].as_int() for of in ("q", "kv")]
        heads, groups = counts
        if not isinstance(heads, int) or not isinstance(groups, int):
            raise NoMatch("the number of heads is not known")
        return cls(node, q, k, v, mask, past_k, past_v, heads, groups)

    @property
    def flat(self) -> bool:
        """Whether heads are inside the width: [batch, tokens, heads * width]."""
        return self.q.shape is not None and len(self.q.shape) == 3

    @property
    def width(self) -> int:
        """The width of a head of queries and keys."""
        width = self.q.shape[-1] if self.q.shape is not None else None
        if not isinstance(width, int):
            raise NoMatch("the width of a head is not known")
        return width // self.heads if self.flat else width

    @property
    def scale(self) -> float:
        """What products of queries and keys are multiplied with."""
        given = self.node.attributes.get("scale")
        return 1 / math.sqrt(self.width) if given is None else given.as_float()

    def split(self, op: Builder, x: ir.Value, heads: int) -> ir.Value:
        """[batch, heads, tokens, width]."""
        if not self.flat:
            return x
        value: ir.Value = op.Transpose(op.Reshape(x, [0, 0, heads, -1]), perm=_SPLIT)
        return value

    def join(self, op: Builder, y: ir.Value) -> ir.Value:
        """The result in the layout of the queries."""
        if not self.flat:
            return y
        value: ir.Value = op.Reshape(op.Transpose(y, perm=_SPLIT), [0, 0, -1])
        return value

    def grown(self, op: Builder) -> tuple[ir.Value, ir.Value]:
        """Keys and values by head, behind those of the past."""
        k, v = (self.split(op, x, self.groups) for x in (self.k, self.v))
        if self.past_k is not None and self.past_v is not None:
            k, v = op.Concat(self.past_k, k, axis=2), op.Concat(self.past_v, v, axis=2)
        return k, v

    @property
    def is_causal(self) -> bool:
        """Whether later keys are masked."""
        return bool(self.node.attributes.get_int("is_causal", 0))


class Cache(Rule):
    """Attention(q, k, v, past_k, past_v) -> Attention(q, Concat(past_k, k), Concat(past_v, v))"""

    name = "cache"
    opset = 23

    def pattern(self, op: PatternBuilder) -> Apply:
        return op.Attention(_more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        node = match.root
        old = _Attention.of(node)
        if old.past_k is None or old.is_causal:
            return None
        k, v = old.grown(op)
        attributes = {name: a.value for name, a in node.attributes.items()}
        kept = {n: a for n, a in attributes.items() if n not in ("q_num_heads", "kv_num_heads")}
        inputs = [old.split(op, old.q, old.heads), k, v, old.mask]
        y = op.Attention(*(inputs if old.mask is not None else inputs[:3]), **kept)
        return [old.join(op, y), k, v][: len(node.outputs)]


class Decompose(Rule):
    """Attention(q, k, v, mask) -> MatMul(Softmax(MatMul(q * scale, Transpose(k)) + mask), v)"""

    name = "attention"

    def pattern(self, op: PatternBuilder) -> Apply:
        return op.Attention(_more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        old = _Attention.of(match.root)
        k, v = old.grown(op)
        q = old.split(op, old.q, old.heads)
        scores = _scores(op, old, q, _repeated(op, old, k))
        cap = old.node.attributes.get_float("softcap", 0.0)
        if cap:
            inner = op.Tanh(op.Div(scores, number(cap, scores)))
            scores = op.Mul(inner, number(cap, scores))
        reach = _reach(op, old, q, k) if old.is_causal else None
        shares = _softmax(op, old, scores, reach)
        y = op.MatMul(shares, _repeated(op, old, v))
        return [old.join(op, y), k, v][: len(old.node.outputs)]


def _repeated(op: Builder, old: _Attention, x: ir.Value) -> ir.Value:
    """Keys or values with a head for each head of the queries."""
    if old.groups == old.heads:
        return x
    width = x.shape[3] if x.shape is not None else None
    if not isinstance(width, int):
        raise NoMatch("the width of a head is not known")
    column = op.Expand(op.Unsqueeze(x, [2]), [1, 1, old.heads // old.groups, 1, 1])
    value: ir.Value = op.Reshape(column, [0, old.heads, -1, width])
    return value


def _scores(op: Builder, old: _Attention, q: ir.Value, k: ir.Value) -> ir.Value:
    """Scaled products of queries and keys; in half precision both are scaled, not to overflow."""
    scale = old.scale
    if q.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) and scale > 0:
        k = op.Mul(k, number(math.sqrt(scale), k))
        scale = math.sqrt(scale)
    if scale != 1:
        q = op.Mul(q, number(scale, q))
    value: ir.Value = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
    return value


def _reach(op: Builder, old: _Attention, q: ir.Value, k: ir.Value) -> ir.Value | np.ndarray:
    """Which keys [queries, keys] each query reaches: query i those up to i + past."""
    assert q.shape is not None and k.shape is not None
    queries, keys = q.shape[2], k.shape[2]
    if isinstance(queries, int) and isinstance(keys, int) and queries * keys <= LARGEST_TRIANGLE:
        past = 0
        if old.past_k is not None:
            length = old.past_k.shape[2] if old.past_k.shape is not None else None
            if not isinstance(length, int):
                raise NoMatch("the length of the past is not known")
            past = length
        return np.tri(queries, keys, past, dtype=bool)
    rows, columns = (_indices(op, value) for value in (q, k))
    if old.past_k is not None:
        rows = op.Add(rows, size_of(op, old.past_k, 2))
    value: ir.Value = op.LessOrEqual(columns, op.Unsqueeze(rows, [1]))
    return value


def _triangle(op: Builder, reach: ir.Value | np.ndarray, like: ir.Value, *, low: float) -> Any:
    """What is added to the scores to hide keys out of reach."""
    numbers = number(0.0, like), number(low, like)
    if isinstance(reach, np.ndarray):
        return op.constant(np.where(reach, *numbers), "causal")
    return op.Where(reach, *numbers)


def _indices(op: Builder, value: ir.Value) -> ir.Value:
    """0, 1, .. for the tokens of [batch, heads, tokens, width]."""
    return counted(op, size_of(op, value, 2))


def _softmax(
    op: Builder, old: _Attention, scores: ir.Value, reach: ir.Value | np.ndarray | None
) -> ir.Value:
    """Softmax of masked scores, where a row that is masked whole attends nothing.

    NaN of queries and keys stays: what is hidden is told from the mask, not from the shares.
    """
    mask, low = old.mask, FINITE.get(scores.dtype or ir.DataType.FLOAT, -1e38)
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        mask = mask if reach is None else op.And(mask, reach)
        shares = _shares(op, old, op.Where(mask, scores, number(low, scores)))
        value: ir.Value = op.Where(mask, shares, number(0.0, shares))
        return value
    bias = mask
    if reach is not None:
        # Numbers of the mask may be as low as any finite one: only -inf is below them.
        triangle = _triangle(op, reach, scores, low=low if mask is None else -math.inf)
        bias = triangle if mask is None else op.Add(mask, triangle)
    shares = _shares(op, old, scores if bias is None else op.Add(scores, bias))
    if mask is None or bias is None or Extents().of(mask).low > lowest(mask.dtype):
        return shares
    seen: ir.Value = op.Where(_is_hidden(op, bias), number(0.0, shares), shares)
    return seen


def _is_hidden(op: Builder, bias: ir.Value) -> ir.Value:
    """Which rows have but -inf in them, or the lowest number of the type, which counts as such."""
    wide = op.Cast(bias, to=int(ir.DataType.FLOAT)) if bias.dtype in HALVES else bias
    above = np.nextafter(number(lowest(bias.dtype), wide), number(0.0, wide))
    value: ir.Value = op.Less(op.ReduceMax(wide, [-1]), np.asarray(above))
    return value


def _shares(op: Builder, old: _Attention, scores: ir.Value) -> ir.Value:
    """Softmax, in the type that it is to run in."""
    wide, dtype = old.node.attributes.get_int("softmax_precision", 0), scores.dtype
    if not wide or dtype is None or wide == dtype:
        plain: ir.Value = op.Softmax(scores, axis=-1)
        return plain
    value: ir.Value = op.Cast(op.Softmax(op.Cast(scores, to=wide), axis=-1), to=int(dtype))
    return value


@dataclasses.dataclass
class MultiHead(Rule):
    """Attention(q, k, v) of many tokens -> com.microsoft.MultiHeadAttention(q, k, v)

    Attributes:
        scores: From so many queries times keys on it pays.
    """

    scores: int = 0

    name = "flash-attention"

    def pattern(self, op: PatternBuilder, q: Any, k: Any, v: Any) -> Apply:
        return op.Attention(q, k, v)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        old = _Attention.of(match.root)
        tokens = [x.shape[1] if x.shape is not None else None for x in (match.q, match.k)]
        queries, keys = tokens
        if not old.flat or not isinstance(queries, int) or not isinstance(keys, int):
            return None
        attributes = match.root.attributes
        if old.heads != old.groups or old.is_causal or attributes.get_float("softcap", 0.0) != 0:
            return None
        if queries * keys < self.scores or match.q.dtype != ir.DataType.FLOAT:
            return None
        scale = old.scale
        value: ir.Value = op.MultiHeadAttention(
            match.q, match.k, match.v, _domain="com.microsoft", num_heads=old.heads, scale=scale
        )
        return value

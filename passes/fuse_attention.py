"""Scaled dot-product attention, with its scale, mask, heads and cache, becomes `Attention`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.analysis.positions import is_causal, same_dim
from aigcc.ir.weights import read
from aigcc.passes.attention_core import OPSET, EinsumToMatMul, Fuse, SwapLastTwo, plain_number
from aigcc.passes.conditions import FLOATS
from aigcc.passes.heads import joined, same_rows
from aigcc.passes.magnitudes import are_ordinary
from aigcc.passes.masks import covers
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Replacement, Rule, RulePass

_SIDES = ("left", "right")


def _altered(op: Builder, node: ir.Node, inputs: Sequence[Any], **changes: Any) -> list[ir.Value]:
    """The same Attention with other inputs and some attributes changed."""
    kept = list(inputs) + list(node.inputs[len(inputs) :])
    while kept and kept[-1] is None:
        kept.pop()
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    made = op.Attention(*kept, _outputs=len(node.outputs), **{**attributes, **changes})
    return [made] if isinstance(made, ir.Value) else list(made)


class ScaleInside(Rule):
    """Attention(q * c, k, v, scale=s) -> Attention(q, k, v, scale=s * c); also for k

    A Transpose may stand between.
    """

    name = "scale"
    opset = OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, c: Any) -> Sequence[Apply]:
        return [
            op.Attention(op.Mul(q, c), k, _more=True),
            op.Attention(q, op.Mul(k, c), _more=True),
            op.Attention(op.Transpose(op.Mul(q, c), _as="turn_q"), k, _more=True),
            op.Attention(q, op.Transpose(op.Mul(k, c), _as="turn_k"), _more=True),
        ]

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        number, scale = plain_number(match.c), match.root.attributes.get("scale")
        if number is None or scale is None or number * scale.as_float() <= 0:
            return None
        if match.q.dtype not in FLOATS or not are_ordinary(np.array([number]), match.q.dtype):
            raise NoMatch(f"the scale {number:.3g} is too far from 1 to be multiplied with another")
        q, k = (
            op.Transpose(value, perm=getattr(match, turn).attributes["perm"].as_ints())
            if hasattr(match, turn)
            else value
            for value, turn in ((match.q, "turn_q"), (match.k, "turn_k"))
        )
        return _altered(op, match.root, [q, k], scale=scale.as_float() * number)


class GroupedHeads(Rule):
    """Attention(q, repeat(k), repeat(v)) -> Attention(q, k, v), k and v with fewer heads

    repeat(x) is Reshape(Expand(Unsqueeze(x, 2), [b, g, r, t, d]), [b, g * r, t, d]).
    """

    name = "grouped"
    opset = OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, v: Any) -> Apply:
        def repeat(x: Any, of: str) -> Apply:
            column = op.Unsqueeze(x, _more=True, _or=("Reshape",))
            expand = op.Expand(column, _more=True, _as=f"more_{of}")
            return op.Reshape(expand, _more=True, _as=f"many_{of}")

        return op.Attention(q, repeat(k, "k"), repeat(v, "v"), _more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        if any(value is not None for value in match.root.inputs[4:6]):
            return None
        for x, expand, many in (
            (match.k, match.more_k, match.many_k.outputs[0]),
            (match.v, match.more_v, match.many_v.outputs[0]),
        ):
            if not _is_repeated(x.shape, expand, many.shape):
                return None
        return _altered(op, match.root, [match.q, match.k, match.v])


def _is_repeated(few: ir.Shape | None, expand: ir.Node, many: ir.Shape | None) -> bool:
    """Whether [b, g, t, d] became [b, g, 1, t, d], [b, g, r, t, d], then [b, g * r, t, d]."""
    column = expand.inputs[0].shape if expand.inputs[0] is not None else None
    five = expand.outputs[0].shape
    if few is None or column is None or five is None or many is None:
        return False
    if (len(few), len(column), len(five), len(many)) != (4, 5, 5, 4):
        return False
    heads, times = few[1], five[2]
    if not isinstance(heads, int) or not isinstance(times, int):
        return False
    before, after = [few[0], heads, 1, few[2], few[3]], [few[0], heads, times, few[2], few[3]]
    joined_heads = [few[0], heads * times, few[2], few[3]]
    return all(map(same_dim, [*column, *five, *many], [*before, *after, *joined_heads]))


class Cache(Rule):
    """Attention(q, Concat(past_k, k), Concat(past_v, v)) -> Attention(q, k, v, past_k, past_v)

    The grown keys and values are outputs of the Attention.
    """

    name = "cache"
    opset = OPSET
    shared = frozenset({"keys", "values"})

    def pattern(
        self, op: PatternBuilder, q: Any, past_k: Any, k: Any, past_v: Any, v: Any, mask: Any = None
    ) -> Apply:
        keys, values = op.Concat(past_k, k, _as="keys"), op.Concat(past_v, v, _as="values")
        return op.Attention(q, keys, values, mask)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        root, grown = match.root, [match.keys.outputs[0], match.values.outputs[0]]
        causal = root.attributes.get("is_causal")
        if len(root.outputs) > 1 or (causal is not None and causal.as_int()):
            return None
        if any(root.attributes.get_int(f"{side}_window_size", -1) >= 0 for side in _SIDES):
            raise NoMatch("a window would begin behind the cache")
        if any(
            node.attributes["axis"].as_int() not in (2, -2) for node in (match.keys, match.values)
        ):
            return None
        if any(v.shape is None or len(v.shape) != 4 for v in grown):
            return None
        is_cache = [
            x.is_graph_output() or p.is_graph_input()
            for x, p in zip(grown, (match.past_k, match.past_v), strict=True)
        ]
        if not all(is_cache):
            return None
        if any(user is not root for value in grown for user in value.consumers()):
            raise NoMatch("the grown keys or values are used by another node as well")
        attributes = {name: attribute.value for name, attribute in root.attributes.items()}
        inputs = [match.q, match.k, match.v, match.mask, match.past_k, match.past_v]
        y, present_k, present_v = op.Attention(*inputs, _outputs=3, **attributes)
        return {root.outputs[0]: y, grown[0]: present_k, grown[1]: present_v}


class Causal(Rule):
    """Attention(q, k, v, lower triangle) -> Attention(q, k, v, is_causal=1)"""

    name = "causal"
    opset = OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, v: Any, mask: Any) -> Apply:
        return op.Attention(q, k, v, mask)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        q, k = match.q.shape, match.k.shape
        if q is None or k is None or not same_dim(q[-2], k[-2]):
            return None
        if not covers(match.mask, q[-2], k[-2]) or not is_causal(match.mask):
            return None
        return _altered(op, match.root, [match.q, match.k, match.v, None], is_causal=1)


class HeadsInside(Rule):
    """Attention(split(q), split(k), split(v)) -> split(Attention(q, k, v, q_num_heads=h))

    split(x) is Transpose(Reshape(x, [b, s, h, d]), [0, 2, 1, 3]); three of them become one, which
    mostly meets its inverse.
    """

    name = "heads"
    opset = OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, v: Any) -> Apply:
        return op.Attention(q, k, v, _more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        values: list[ir.Value] = [match.q, match.k, match.v]
        q, k, v = (value.shape for value in values)
        if q is None or k is None or v is None or len(q) != 4:
            return None
        heads, groups, width = q[1], k[1], v[3]
        if not all(isinstance(dim, int) for dim in (heads, groups, width)):
            return None
        flat = [joined(op, value) for value in values]
        if any(value is None for value in flat):
            return None
        y, *present = _altered(op, match.root, flat, q_num_heads=heads, kv_num_heads=groups)
        rows = op.Reshape(y, [0, 0, heads, width])
        return [op.Transpose(rows, perm=[0, 2, 1, 3]), *present]


class ChannelHeads(Rule):
    """Attention of heads cut from channels -> Transpose(Attention(Transpose(q), .., q_num_heads=h))

    Convolutional models keep q, k and v as [b, h * d, s] and let one head attend [b * h, d, s].
    """

    name = "channels"
    opset = OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, v: Any) -> Apply:
        def cut(x: Any, name: str) -> Apply:
            return op.Transpose(op.Reshape(x, _more=True, _as=name), perm=[0, 2, 1])

        attention = op.Attention(cut(q, "q_cut"), cut(k, "k_cut"), cut(v, "v_cut"), _as="attention")
        return op.Reshape(op.Transpose(attention, perm=[0, 2, 1]), _more=True)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        node, result = match.attention, match.root.outputs[0].shape
        heads = [
            _channel_heads(match.q, match.q_cut.outputs[0]),
            _channel_heads(match.k, match.k_cut.outputs[0]),
            _channel_heads(match.v, match.v_cut.outputs[0]),
        ]
        if heads[0] is None or heads != heads[:1] * 3 or result is None or len(result) != 3:
            return None
        wanted = [match.q.shape[0], match.v.shape[1], match.q.shape[2]]
        if node.attributes["q_num_heads"].as_int() != 1 or not all(map(same_dim, result, wanted)):
            return None
        rows = [op.Transpose(x, perm=[0, 2, 1]) for x in (match.q, match.k, match.v)]
        y = _altered(op, node, rows, q_num_heads=heads[0], kv_num_heads=heads[0])
        value: ir.Value = op.Transpose(y[0], perm=[0, 2, 1])
        return value


def _channel_heads(x: ir.Value, cut: ir.Value) -> int | None:
    """How many heads [b * h, d, s] cuts the channels of [b, h * d, s] into."""
    if x.shape is None or cut.shape is None or len(x.shape) != 3 or len(cut.shape) != 3:
        return None
    channels, width = x.shape[1], cut.shape[1]
    if not isinstance(channels, int) or not isinstance(width, int) or channels % width:
        return None
    return channels // width if same_dim(x.shape[2], cut.shape[2]) else None


class HeadsOutside(Rule):
    """Reshape(join(split(x)), s) -> Reshape(x, s), where join undoes split"""

    name = "heads-out"

    def pattern(self, op: PatternBuilder, x: Any, split: Any, shape: Any) -> Apply:
        rows = op.Transpose(op.Reshape(x, split), perm=[0, 2, 1, 3])
        return op.Reshape(op.Transpose(rows, perm=[0, 2, 1, 3]), shape)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x: ir.Value = match.x
        result = match.root.outputs[0]
        if x.shape is None or len(x.shape) != 3 or result.shape is None:
            return None
        if len(result.shape) == 3 and same_rows(x.shape, result.shape):
            return x
        shape = read(match.shape)
        if shape is None or 0 in shape.tolist()[2:]:
            return None
        value: ir.Value = op.Reshape(x, match.shape)
        return value


@dataclasses.dataclass(frozen=True)
class FuseAttention(RulePass):
    """Fuse attention, with its scale, mask, heads and cache, into one `Attention` (opset 23).

    ```
    s = MatMul (q, kt); c = Mul (s, scale); p = Softmax (c); y = MatMul (p, v)
        →      y = Attention <scale> (q, k, v)
    ```
    """

    name: ClassVar[str] = "fuse-attention"
    after: ClassVar[tuple[str, ...]] = ("fuse-rotary",)
    rules: ClassVar[tuple[Rule, ...]] = (
        EinsumToMatMul(),
        SwapLastTwo(),
        Fuse(),
        ScaleInside(),
        GroupedHeads(),
        Cache(),
        Causal(),
        HeadsInside(),
        ChannelHeads(),
        HeadsOutside(),
    )

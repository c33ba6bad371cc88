"""Scaled dot-product attention in all the shapes that exporters give it becomes `Attention`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.analysis.positions import is_causal, lowest_score, same_dim
from aigcc.ir.weights import read, scalar
from aigcc.passes.heads import joined, keys_from, same_rows
from aigcc.passes.masks import FINITE, finite_mask
from aigcc.passes.sizes import size_of
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder, either
from aigcc.pipeline.rules import Builder, Replacement, Rule, RulePass

_OPSET = 23


class EinsumToMatMul(Rule):
    """Einsum("bct,bcs->bts", a, b) -> MatMul(Transpose(a), b), for one summed letter"""

    name = "einsum"

    def pattern(self, op: PatternBuilder, a: Any, b: Any) -> Apply:
        return op.Einsum(a, b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        equation = match.root.attributes["equation"].as_string().replace(" ", "")
        terms, _, result = equation.partition("->")
        first, _, second = terms.partition(",")
        letters = [first, second, result]
        if not result.isalpha() or any(len(set(term)) != len(term) for term in letters):
            return None
        batch = [c for c in first if c in second and c in result]
        summed = [c for c in first if c in second and c not in result]
        left = [c for c in first if c not in second and c in result]
        right = [c for c in second if c not in first and c in result]
        if not len(summed) == len(left) == len(right) == 1:
            return None
        if len(batch) + 2 != len(first) or len(first) != len(second) or len(second) != len(result):
            return None
        a = _permuted(op, match.a, first, [*batch, *left, *summed])
        b = _permuted(op, match.b, second, [*batch, *summed, *right])
        return _permuted(op, op.MatMul(a, b), "".join([*batch, *left, *right]), list(result))


def _permuted(op: Builder, x: ir.Value, have: str, want: Sequence[str]) -> ir.Value:
    perm = [have.index(letter) for letter in want]
    value: ir.Value = x if perm == sorted(perm) else op.Transpose(x, perm=perm)
    return value


class SwapLastTwo(Rule):
    """Reshape(Transpose(Reshape(x, [-1, s, d]), [0, 2, 1]), [b, h, d, s]) -> Transpose(x)

    This is how torch's exporter swaps the last two dims of x: [b, h, s, d].
    """

    name = "swap"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        flat = op.Reshape(x, _more=True, _as="flat")
        return op.Reshape(op.Transpose(flat, perm=[0, 2, 1]), _more=True)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, flat, result = match.x.shape, match.flat.outputs[0].shape, match.root.outputs[0].shape
        if x is None or flat is None or result is None or len(x) != 4 or len(result) != 4:
            return None
        wanted = [*x[:2], x[3], x[2]]
        if not all(map(same_dim, [*flat[1:], *result], [*x[2:], *wanted])):
            return None
        value: ir.Value = op.Transpose(match.x, perm=[0, 1, 3, 2])
        return value


class Fuse(Rule):
    """MatMul(Softmax(MatMul(q * a, kT * b) + mask), v) -> Attention(q, k, v, mask, scale=a * b)

    The scale may stand on either operand or on the scores, a soft cap (`tanh(s / c) * c`) may
    follow it, the mask may be added or chosen by Where, softmax may run in a wider type, and a
    `Where(IsNaN(p), 0, p)` after it is what Attention does by itself: a row that is masked whole
    attends nothing.
    """

    name = "attention"
    opset = _OPSET

    def pattern(
        self, op: PatternBuilder, q: Any, k: Any, v: Any, scale: Any, q_scale: Any, k_scale: Any,
        cap: Any, inner_cap: Any, mask: Any, bias: Any, fill: Any,
    ) -> Apply:  # fmt: skip
        scores = op.MatMul(
            either(op.Mul(q, q_scale), op.Div(q, q_scale, _as="q_div"), q),
            either(op.Mul(k, k_scale), op.Div(k, k_scale, _as="k_div"), k),
        )
        scaled = either(op.Mul(scores, scale), op.Div(scores, scale, _as="div"), scores)
        inner = either(op.Div(scaled, inner_cap), op.Mul(scaled, inner_cap, _as="cap_mul"))
        capped = either(op.Mul(op.Tanh(inner), cap), scaled)
        masked = either(
            op.Add(op.Add(capped, bias), mask),
            op.Add(capped, mask),
            op.Where(mask, capped, fill, _as="keep"),
            op.Where(mask, fill, capped, _as="drop"),
            capped,
        )
        softmax = op.Softmax(either(op.Cast(masked, _as="widen"), masked), _as="softmax")
        guarded = either(op.Where(op.IsNaN(softmax), 0.0, softmax), softmax)
        return op.MatMul(either(op.Cast(guarded), guarded), v)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        scale, cap = _scale(match), _soft_cap(match)
        if scale is None or cap is None or not _softmax_is_last(match.softmax):
            return None
        q, v = match.q, match.v
        _check_dims(q, match.k, v)
        if not (scale > 0 and math.isfinite(scale)):
            raise NoMatch(f"the scale {scale:.4g} is not a positive number")
        mask, causal = _mask(op, match)
        inputs = [q, keys_from(op, match.k), v, mask]
        value: ir.Value = op.Attention(
            *(inputs if mask is not None else inputs[:3]),
            scale=scale,
            softcap=cap or None,
            is_causal=1 if causal else None,
            softmax_precision=_precision(match),
            **({"q_num_heads": 1, "kv_num_heads": 1} if len(q.shape) == 3 else {}),
        )
        return value


def _scale(match: Match) -> float | None:
    """The product of the scales around a match; None where one of them is not a number."""
    result = 1.0
    for name, divided in (("q_scale", "q_div"), ("k_scale", "k_div"), ("scale", "div")):
        value = getattr(match, name, None)
        if value is None:
            continue
        number = _number(value)
        if not number:
            return None
        result *= 1 / number if hasattr(match, divided) else number
    return result


def _number(value: ir.Value) -> float | None:
    """A scalar that does not add dims to what it is multiplied with."""
    if value.shape is not None and len(value.shape) > 3:
        return None
    return scalar(value)


def _soft_cap(match: Match) -> float | None:
    """The soft cap of a match, 0 where there is none; None where it is not one."""
    if not hasattr(match, "cap"):
        return 0.0
    outer, inner = _number(match.cap), _number(match.inner_cap)
    if not outer or not inner or outer < 0:
        return None
    inner = 1 / inner if hasattr(match, "cap_mul") else inner
    return outer if math.isclose(outer, inner, rel_tol=1e-5) else None


def _softmax_is_last(softmax: ir.Node) -> bool:
    axis, shape = softmax.attributes.get("axis"), softmax.outputs[0].shape
    last = -1 if shape is None else len(shape) - 1
    return axis is None or axis.as_int() in (-1, last)


def _check_dims(q: ir.Value, kt: ir.Value, v: ir.Value) -> None:
    if q.shape is None or kt.shape is None or v.shape is None:
        raise NoMatch("the shapes of queries, keys and values are not known")
    rank = len(q.shape)
    if rank not in (3, 4) or len(kt.shape) != rank or len(v.shape) != rank:
        raise NoMatch("queries, keys and values do not have 3 or 4 dims each")
    if not (same_dim(q.shape[0], kt.shape[0]) and same_dim(q.shape[0], v.shape[0])):
        raise NoMatch("the batch of queries, keys and values is not provably the same")
    if rank == 4 and not same_dim(kt.shape[1], v.shape[1]):
        raise NoMatch("keys and values do not have the same number of heads")
    if rank == 4 and kt.shape[1] != 1 and not same_dim(q.shape[1], kt.shape[1]):
        raise NoMatch("queries and keys do not have the same number of heads")


def _precision(match: Match) -> int | None:
    if not hasattr(match, "widen"):
        return None
    wide = ir.DataType(match.widen.attributes["to"].as_int())
    return None if wide == match.q.dtype else int(wide)


def _mask(op: Builder, match: Match) -> tuple[ir.Value | None, bool]:
    """The mask of a match, and whether causality alone stands for it."""
    if not hasattr(match, "mask"):
        return None, False
    mask, dtype = match.mask, match.q.dtype
    queries, keys = match.q.shape[-2], match.k.shape[-1]
    square = same_dim(queries, keys) and _covers(mask, queries, keys)
    bias = getattr(match, "bias", None)
    if hasattr(match, "fill"):
        dropped = hasattr(match, "drop")
        fill = scalar(match.fill)
        if fill is None or fill > lowest_score(dtype):
            raise NoMatch("the scores are replaced by a number that a softmax may not ignore")
        if square and is_causal(mask, inverted=dropped):
            return None, True
        mask = _chosen(op, mask, fill, dtype, dropped)
    elif bias is None and square and is_causal(mask):
        return None, True
    elif mask.dtype != dtype:
        raise NoMatch("the mask is added in another type than the queries have")
    mask = finite_mask(op, mask)
    if bias is not None:
        mask = op.Add(finite_mask(op, bias), mask)
    return _whole_mask(op, mask, match), False


def _chosen(
    op: Builder, mask: ir.Value, fill: float, dtype: ir.DataType | None, dropped: bool
) -> ir.Value:
    """A mask for scores that Where replaces by `fill`, in rows that are masked whole as well."""
    if math.isinf(fill):
        kept: ir.Value = op.Not(mask) if dropped else mask
        return kept
    if dtype != ir.DataType.FLOAT:
        raise NoMatch("a row that is masked whole would come out differently in this type")
    pair = [np.array(0, np.float32), np.array(FINITE[ir.DataType.FLOAT], np.float32)]
    value: ir.Value = op.Where(mask, *(reversed(pair) if dropped else pair))
    return value


def _covers(mask: ir.Value, queries: int | ir.SymbolicDim, keys: int | ir.SymbolicDim) -> bool:
    shape = mask.shape
    if shape is None or len(shape) < 2:
        return False
    return same_dim(shape[-2], queries) and same_dim(shape[-1], keys)


def _whole_mask(op: Builder, mask: ir.Value, match: Match) -> ir.Value:
    """The mask with every query and key in it: kernels broadcast only its batch and heads."""
    q, shape = match.q, mask.shape
    if shape is None or len(shape) > len(q.shape):
        raise NoMatch("the rank of the mask is not known, or larger than that of the scores")
    rank, queries, keys = len(shape), q.shape[-2], match.k.shape[-1]
    if not _covers(mask, queries, keys):
        if rank == 0 or not same_dim(shape[-1], keys):
            raise NoMatch("the mask does not have an element for every key")
        if isinstance(queries, int):
            mask = op.Expand(mask, [queries, 1])
        else:
            mask = op.Expand(mask, op.Concat(size_of(op, q, -2), [1], axis=0))
    if len(q.shape) == 3 and rank == 3 and shape[0] != 1:
        mask = op.Unsqueeze(mask, [1])
    return mask


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
    opset = _OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, c: Any) -> Sequence[Apply]:
        return [
            op.Attention(op.Mul(q, c), k, _more=True),
            op.Attention(q, op.Mul(k, c), _more=True),
            op.Attention(op.Transpose(op.Mul(q, c), _as="turn_q"), k, _more=True),
            op.Attention(q, op.Transpose(op.Mul(k, c), _as="turn_k"), _more=True),
        ]

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        number, scale = _number(match.c), match.root.attributes.get("scale")
        if number is None or scale is None or number * scale.as_float() <= 0:
            return None
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
    opset = _OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, v: Any) -> Apply:
        def repeat(x: Any, of: str) -> Apply:
            column = op.Unsqueeze(x, _more=True, _or=("Reshape",))
            expand = op.Expand(column, _more=True, _as=f"more_{of}")
            return op.Reshape(expand, _more=True, _as=f"many_{of}")

        return op.Attention(q, repeat(k, "k"), repeat(v, "v"), _more=True)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
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
    opset = _OPSET
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
    opset = _OPSET

    def pattern(self, op: PatternBuilder, q: Any, k: Any, v: Any, mask: Any) -> Apply:
        return op.Attention(q, k, v, mask)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        q, k = match.q.shape, match.k.shape
        if q is None or k is None or not same_dim(q[-2], k[-2]):
            return None
        if not _covers(match.mask, q[-2], k[-2]) or not is_causal(match.mask):
            return None
        return _altered(op, match.root, [match.q, match.k, match.v, None], is_causal=1)


class HeadsInside(Rule):
    """Attention(split(q), split(k), split(v)) -> split(Attention(q, k, v, q_num_heads=h))

    split(x) is Transpose(Reshape(x, [b, s, h, d]), [0, 2, 1, 3]); three of them become one, which
    mostly meets its inverse.
    """

    name = "heads"
    opset = _OPSET

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
    opset = _OPSET

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

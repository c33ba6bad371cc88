"""Products around a softmax, in all the forms that exporters give them, become `Attention`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.analysis.positions import is_causal, lowest_score, same_dim
from aigcc.ir.weights import scalar
from aigcc.passes.conditions import FLOATS
from aigcc.passes.heads import keys_from
from aigcc.passes.magnitudes import are_ordinary
from aigcc.passes.mask_rows import keeps_every_row
from aigcc.passes.masks import FINITE, covers, finite_mask, prepared
from aigcc.passes.sizes import size_of
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder, either
from aigcc.pipeline.rules import Builder, Rule

OPSET = 23
"""Since this version there is Attention."""

_WIDER = {
    ir.DataType.FLOAT16: ir.DataType.FLOAT,
    ir.DataType.BFLOAT16: ir.DataType.FLOAT,
    ir.DataType.FLOAT: ir.DataType.DOUBLE,
}


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
    follow it, the mask may be added or chosen by Where, and softmax may run in a wider type.

    A row that is masked whole with -inf is NaN on the left and 0 on the right. Where the mask is
    not proven to have none, it gets NaN in such rows; after a `Where(IsNaN(p), 0, p)` it need not.
    That guard also hides NaN of queries and keys, which the right side shows, and so does a Where
    that replaces scores: the right side adds a number to them. None vanishes. The scales are
    multiplied: products that overflow before they are scaled down, or the other way round, may not.
    """

    name = "attention"
    opset = OPSET

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
        guarded = either(op.Where(op.IsNaN(softmax), 0.0, softmax, _as="guard"), softmax)
        return op.MatMul(either(op.Cast(guarded), guarded), v)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        scale, cap = _scale(match), _soft_cap(match)
        if scale is None or cap is None or not _softmax_is_last(match.softmax):
            return None
        q, v = match.q, match.v
        _check_dims(q, match.k, v)
        if scale <= 0:
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
        number = plain_number(value)
        if not number:
            return None
        if match.q.dtype not in FLOATS or not are_ordinary(np.array([number]), match.q.dtype):
            raise NoMatch(f"the scale {number:.4g} is too far from 1 to be multiplied with another")
        result *= 1 / number if hasattr(match, divided) else number
    return result


def plain_number(value: ir.Value) -> float | None:
    """A scalar that does not add dims to what it is multiplied with."""
    if value.shape is not None and len(value.shape) > 3:
        return None
    return scalar(value)


def _soft_cap(match: Match) -> float | None:
    """The soft cap of a match, 0 where there is none; None where it is not one."""
    if not hasattr(match, "cap"):
        return 0.0
    outer, inner = plain_number(match.cap), plain_number(match.inner_cap)
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
    """The type that softmax runs in, None for that of the scores."""
    if not hasattr(match, "widen"):
        return None
    narrow, wide = match.q.dtype, ir.DataType(match.widen.attributes["to"].as_int())
    if wide not in (narrow, _WIDER.get(narrow)):
        raise NoMatch("softmax does not run in the type of the scores, or the next wider one")
    return None if wide == narrow else int(wide)


def _mask(op: Builder, match: Match) -> tuple[ir.Value | None, bool]:
    """The mask of a match, and whether causality alone stands for it."""
    if not hasattr(match, "mask"):
        return None, False
    mask, dtype = match.mask, match.q.dtype
    _check_mask(mask, match.q.shape)
    queries, keys = match.q.shape[-2], match.k.shape[-1]
    square = same_dim(queries, keys) and covers(mask, queries, keys)
    guarded, bias = hasattr(match, "guard"), getattr(match, "bias", None)
    if hasattr(match, "fill"):
        dropped = hasattr(match, "drop")
        fill = scalar(match.fill)
        if fill is None or fill > lowest_score(dtype):
            raise NoMatch("the scores are replaced by a number that a softmax may not ignore")
        if square and is_causal(mask, inverted=dropped):
            return None, True
        kept = keeps_every_row(mask, inverted=dropped) or (guarded and math.isinf(fill))
        return _whole_mask(op, _chosen(op, mask, fill, dtype, dropped, kept), match), False
    if bias is None and square and is_causal(mask):
        return None, True
    if mask.dtype != dtype:
        raise NoMatch("the mask is added in another type than the queries have")
    if bias is not None:
        _check_mask(bias, match.q.shape)
        mask = op.Add(finite_mask(op, bias), finite_mask(op, mask))
    mask = prepared(op, mask, empty_is_nan=not guarded and not keeps_every_row(mask))
    return _whole_mask(op, mask, match), False


def _chosen(
    op: Builder,
    mask: ir.Value,
    fill: float,
    dtype: ir.DataType | None,
    dropped: bool,
    kept: bool,
) -> ir.Value:
    """A mask for scores that Where replaces by `fill`; `kept` if no row is masked whole in vain."""
    if kept:
        plain: ir.Value = op.Not(mask) if dropped else mask
        return plain
    if dtype != ir.DataType.FLOAT:
        raise NoMatch("a row that is masked whole would come out differently in this type")
    low = fill if math.isinf(fill) else FINITE[dtype]
    pair = [np.array(0, np.float32), np.array(low, np.float32)]
    numbers: ir.Value = op.Where(mask, *(reversed(pair) if dropped else pair))
    return prepared(op, numbers, empty_is_nan=True) if math.isinf(fill) else numbers


def _check_mask(mask: ir.Value, q: ir.Shape) -> None:
    """See to it that a mask adds no batch and no heads to the scores."""
    if mask.shape is None or len(mask.shape) > len(q):
        raise NoMatch("the rank of the mask is not known, or larger than that of the scores")
    outer = list(mask.shape)[:-2]
    for mine, theirs in zip(reversed(outer), reversed(list(q)[:-2]), strict=False):
        if mine != 1 and not same_dim(mine, theirs):
            raise NoMatch("the mask has another batch or number of heads than the scores")


def _whole_mask(op: Builder, mask: ir.Value, match: Match) -> ir.Value:
    """The mask with every query and key in it: kernels broadcast only its batch and heads."""
    q, shape = match.q, mask.shape
    assert shape is not None
    rank, queries, keys = len(shape), q.shape[-2], match.k.shape[-1]
    if not covers(mask, queries, keys):
        if rank == 0 or not same_dim(shape[-1], keys):
            raise NoMatch("the mask does not have an element for every key")
        if isinstance(queries, int):
            mask = op.Expand(mask, [queries, 1])
        else:
            mask = op.Expand(mask, op.Concat(size_of(op, q, -2), [1], axis=0))
    if len(q.shape) == 3 and rank == 3 and shape[0] != 1:
        mask = op.Unsqueeze(mask, [1])
    return mask

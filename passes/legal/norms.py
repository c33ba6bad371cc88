"""Normalisations from means, square roots and products.

A variance is the mean of (x - mean)², never E[x²] - E[x]²: with a mean a thousand times the
deviation the latter has no digit left in float32. The mean in turn is that of distances from one
element, since a sum of many large numbers is off by more than a small deviation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import groups_of, is_all, number, product, same_dims, size
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_SCALED_BY_CHANNEL = 21  # since this opset a GroupNormalization has a scale for each channel


def _axes_from(axis: int, x: ir.Value) -> list[int]:
    return list(range(axis, 0) if axis < 0 else range(axis, _rank(x)))


def _mean(op: Builder, x: ir.Value, axes: list[int]) -> ir.Value:
    """The mean over axes, which are kept."""
    made: ir.Value = op.ReduceMean(x, axes)
    return made


def _first(op: Builder, x: ir.Value, axes: list[int]) -> ir.Value:
    """The first element along axes, which are kept."""
    made: ir.Value = op.Slice(x, [0] * len(axes), [1] * len(axes), axes)
    return made


@dataclasses.dataclass(frozen=True)
class _Centred:
    """x - ReduceMean(x), as a value less its own mean: x - first, and the mean of that."""

    first: ir.Value
    mean: ir.Value
    value: ir.Value

    @classmethod
    def of(cls, op: Builder, x: ir.Value, axes: list[int]) -> _Centred:
        first = _first(op, x, axes)
        near = op.Sub(x, first)
        mean = _mean(op, near, axes)
        return cls(first, mean, op.Sub(near, mean))


def _rank(x: ir.Value) -> int:
    if x.shape is None:
        raise NoMatch("the rank of its input is not known")
    return len(x.shape)


def _widened(op: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    """x in the type that the norm computes in."""
    wide = ir.DataType(node.attributes.get_int("stash_type", 1))
    narrow = x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    value: ir.Value = op.Cast(x, to=int(wide)) if narrow and wide != x.dtype else x
    return value


def _narrowed(op: Builder, y: ir.Value, like: ir.Value) -> ir.Value:
    value: ir.Value = y if like.dtype in (None, y.dtype) else op.Cast(y, to=int(like.dtype))
    return value


def _inverse_root(op: Builder, square: ir.Value, node: ir.Node, default: float = 1e-5) -> ir.Value:
    epsilon = number(node.attributes.get_float("epsilon", default), square)
    value: ir.Value = op.Reciprocal(op.Sqrt(op.Add(square, epsilon)))
    return value


def rms_norm(
    op: Builder, x: ir.Value, scale: ir.Value, node: ir.Node, epsilon: float = 1e-5
) -> ir.Value:
    """x / sqrt(mean(x * x) + epsilon) * scale, with the attributes of `node`, else that epsilon."""
    wide = _widened(op, x, node)
    square = _mean(op, op.Mul(wide, wide), _axes_from(node.attributes.get_int("axis", -1), x))
    normed = _narrowed(op, op.Mul(wide, _inverse_root(op, square, node, epsilon)), x)
    value: ir.Value = op.Mul(normed, scale)
    return value


class RmsNorm(Rule):
    """RMSNormalization(x, s) -> x * Reciprocal(Sqrt(ReduceMean(x * x) + epsilon)) * s"""

    name = "rms-norm"

    def pattern(self, op: PatternBuilder, x: Any, scale: Any) -> list[Apply]:
        return [op.RMSNormalization(x, scale), op.SimplifiedLayerNormalization(x, scale)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return rms_norm(op, match.x, match.scale, match.root)


class LayerNorm(Rule):
    """LayerNormalization(x, s, b) -> d * Reciprocal(Sqrt(ReduceMean(d * d) + epsilon)) * s + b

    d is x - ReduceMean(x).
    """

    name = "layer-norm"

    def pattern(self, op: PatternBuilder, x: Any, scale: Any, bias: Any = None) -> Apply:
        return op.LayerNormalization(x, scale, bias)

    def rewrite(self, op: Builder, match: Match) -> list[ir.Value]:
        node, x = match.root, match.x
        axes = _axes_from(node.attributes.get_int("axis", -1), x)
        centred = _Centred.of(op, _widened(op, x, node), axes)
        normed, inverse = _scaled(op, centred.value, axes, node)
        y = op.Mul(_narrowed(op, normed, x), match.scale)
        y = y if match.bias is None else op.Add(y, match.bias)
        if len(node.outputs) == 1:
            return [y]
        return [y, op.Add(centred.first, centred.mean), inverse][: len(node.outputs)]


def _scaled(
    op: Builder, centred: ir.Value, axes: list[int], node: ir.Node
) -> tuple[ir.Value, ir.Value]:
    """A value of mean 0 over its deviation, and one over the deviation."""
    inverse = _inverse_root(op, _mean(op, op.Mul(centred, centred), axes), node)
    return op.Mul(centred, inverse), inverse


def _column(op: Builder, vector: ir.Value, x: ir.Value) -> ir.Value:
    """One number a channel of x, as [channels, 1, ..]."""
    value: ir.Value = op.Reshape(vector, [-1, *[1] * (_rank(x) - 2)])
    return value


def _grouped(op: Builder, match: Match) -> ir.Value:
    """x normalised within its groups, in the shape and type that it has.

    Before opset 21 scale and bias have an element for each group, and are taken in.
    """
    x, groups = match.x, match.root.attributes["num_groups"].as_int()
    wide = _widened(op, x, match.root)
    rows = op.Reshape(wide, [0, groups, -1])
    scale: Any = np.repeat(number(1.0, wide), groups)
    bias: Any = np.repeat(number(0.0, wide), groups)
    if _by_group(op):
        scale, bias = (_narrowed(op, each, wide) for each in (match.scale, match.bias))
    epsilon = match.root.attributes.get_float("epsilon", 1e-5)
    normed = op.InstanceNormalization(rows, scale, bias, epsilon=epsilon)
    return _narrowed(op, _back(op, normed, x), x)


def _by_group(op: Builder) -> bool:
    return op.opset < _SCALED_BY_CHANNEL


def _back(op: Builder, normed: ir.Value, x: ir.Value) -> ir.Value:
    sizes = [dim for dim in x.shape[1:] if isinstance(dim, int)] if x.shape is not None else []
    static = x.shape is not None and len(sizes) == len(x.shape) - 1 and math.prod(sizes) > 0
    value: ir.Value = op.Reshape(normed, [0, *sizes] if static else op.Shape(x))
    return value


class GroupNorm(Rule):
    """GroupNormalization(x, s, b) -> Reshape(InstanceNormalization(Reshape(x))) * s + b"""

    name = "group-norm"

    def pattern(self, op: PatternBuilder, x: Any, scale: Any, bias: Any) -> Apply:
        return op.GroupNormalization(x, scale, bias)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x, normed = match.x, _grouped(op, match)
        if _by_group(op):
            return normed
        scale, bias = (_column(op, each, x) for each in (match.scale, match.bias))
        value: ir.Value = op.Add(op.Mul(normed, scale), bias)
        return value


class BatchScaledGroupNorm(Rule):
    """GroupNormalization(x, s, b) -> BatchNormalization(InstanceNormalization(x in groups), s, b)

    BatchNormalization of mean 0, variance 1 and epsilon 0 scales and shifts in one go.
    """

    name = "group-norm"

    def pattern(self, op: PatternBuilder, x: Any, scale: Any, bias: Any) -> Apply:
        return op.GroupNormalization(x, scale, bias)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        channels = match.x.shape[1] if match.x.shape is not None else None
        if not isinstance(channels, int) or match.x.dtype is None:
            return None
        normed, dtype = _grouped(op, match), match.x.dtype.numpy()
        if _by_group(op):
            return normed
        value: ir.Value = op.BatchNormalization(
            normed,
            match.scale,
            match.bias,
            np.zeros(channels, dtype),
            np.ones(channels, dtype),
            epsilon=0.0,
        )
        return value


@dataclasses.dataclass
class SummedGroupNorm(Rule):
    """BatchNormalization(InstanceNormalization(x in groups), s, b) -> d * a + c

    ```
    d = x - its middle place; e = mean of d in a channel, as seen from the group's first
    m = mean of e in a group; v = mean of d * d - mean(d) * mean(d) + (e - m) * (e - m)
    a = s / sqrt(v + epsilon); c = b - (mean(d) - (e - m)) * a, where mean(d) is the channel's
    ```
    For a runtime whose convolutions write channels side by side: a Reshape wants them apart, which
    takes two passes over the image, and sums of channels do not. Sums of x * x would lose the
    digits that they share with the square of the mean; those of d share none, since the middle
    place is as far from the mean as others are, and no border. The sums have to be in float32.

    Attributes:
        elements: From so many in a sample on the passes saved outweigh the small nodes.
    """

    elements: int = 0

    name = "group-norm-sums"

    def pattern(
        self,
        op: PatternBuilder,
        x: Any,
        ones: Any,
        zeros: Any,
        scale: Any,
        bias: Any,
        mean: Any,
        variance: Any,
        groups: Any,
        shape: Any,
    ) -> Apply:
        rows = op.Reshape(x, groups, _as="rows")
        norm = op.Reshape(op.InstanceNormalization(rows, ones, zeros, _as="norm"), shape)
        return op.BatchNormalization(norm, scale, bias, mean, variance)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, rows = match.x, match.rows.outputs[0]
        groups, channels = groups_of(x, rows), size(x, 1)
        dims, elements = len(x.shape), product(x.shape[1:])
        fixed = ((match.ones, 1), (match.zeros, 0), (match.mean, 0), (match.variance, 1))
        if (
            not channels
            or not elements
            or elements < self.elements
            or channels % groups
            or x.dtype != ir.DataType.FLOAT
            or match.root.attributes.get_float("epsilon", 1e-5)
            or not all(is_all(value, number) for value, number in fixed)
            or not same_dims(x.shape, match.root.outputs[0].shape or [])
        ):
            return None
        inside, places = [groups, channels // groups, 1], list(range(2, dims))
        middle = [dim // 2 for dim in x.shape[2:]]  # static, since `elements` is known
        begin = op.Slice(x, middle, [place + 1 for place in middle], places)
        d = op.Sub(x, begin)
        power = op.ReduceL2(d, places)
        mean, begin, total = (
            op.Reshape(each, [0, *inside])
            for each in (op.ReduceMean(d, places), begin, op.Mul(power, power))
        )
        seen = op.Add(op.Sub(begin, _first(op, begin, [2])), mean)
        beside = op.Sub(seen, op.ReduceMean(seen, [2]))
        squares = op.Sub(op.Mul(total, number(channels / elements, x)), op.Mul(mean, mean))
        spread = op.ReduceMean(op.Add(squares, op.Mul(beside, beside)), [2])
        spread = op.Max(spread, number(0.0, x))
        epsilon = number(match.norm.attributes.get_float("epsilon", 1e-5), x)
        scale, bias = (op.Reshape(each, [1, *inside]) for each in (match.scale, match.bias))
        a = op.Mul(scale, op.Reciprocal(op.Sqrt(op.Add(spread, epsilon))))
        c = op.Sub(bias, op.Mul(op.Sub(mean, beside), a))
        apart = [0, channels, *[1] * (dims - 2)]
        value: ir.Value = op.Add(op.Mul(d, op.Reshape(a, apart)), op.Reshape(c, apart))
        return value


class SummedLayerNorm(Rule):
    """LayerNormalization(x + y) -> LayerNormalization(Sum(x, y))

    ONNX Runtime makes SkipLayerNormalization of the left side, which is slower on a CPU.
    """

    name = "skip-norm"

    def pattern(self, op: PatternBuilder, x: Any, y: Any) -> Apply:
        return op.LayerNormalization(op.Add(x, y, _as="add"), _more=True, _as="norm")

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if match.x.dtype != ir.DataType.FLOAT:
            return None
        _, *parameters = match.norm.inputs
        total = op.Sum(match.x, match.y, _like=match.add.outputs[0])
        value: ir.Value = op.LayerNormalization(total, *parameters, **match.norm.attributes)
        return value


class LpNorm(Rule):
    """LpNormalization(x) -> x / n, with n = ReduceL2(x) or ReduceL1(x), or infinity for 0"""

    name = "lp-norm"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.LpNormalization(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        attributes, x = match.root.attributes, match.x
        name = f"ReduceL{attributes.get_int('p', 2)}"
        norm = op.node(name, [x, [attributes.get_int("axis", -1)]], {})
        is_not_0 = op.Cast(norm, to=int(ir.DataType.BOOL))
        value: ir.Value = op.Div(x, op.Where(is_not_0, norm, number(math.inf, x)))
        return value

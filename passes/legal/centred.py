"""Normalisations whose mean is taken twice, for runtimes that add up numbers one by one."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from aigcc.passes.conditions import number
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_MVN_AXES = (0, 2, 3)
_MVN_EPSILON = 1e-9  # ONNX adds it to the deviation, not to the variance


class CentredNorm(Rule):
    """norm(x) -> d / Sqrt(ReduceMean(d * d) + epsilon) * s + b

    ```
    c = x - ReduceMean(x); d = c - ReduceMean(c)
    ```
    Where x is far from 0, a float32 sum of it is off by so much that c still has a mean; that of d
    is none. Means over several axes are taken one axis after the other, which keeps sums short.
    Never E[x * x] - E[x] * E[x], which loses all digits that the two share.
    """

    name = "centred-norm"

    def pattern(self, op: PatternBuilder, x: Any, scale: Any, bias: Any = None) -> list[Apply]:
        return [
            op.LayerNormalization(x, scale, bias),
            op.InstanceNormalization(x, scale, bias),
            op.GroupNormalization(x, scale, bias),
        ]

    def rewrite(self, op: Builder, match: Match) -> list[ir.Value]:
        node, x = match.root, match.x
        if x.shape is None:
            raise NoMatch("the rank of its input is not known")
        wide = op.Cast(x, to=int(ir.DataType.FLOAT)) if x.dtype in _NARROW else x
        match node.op_type:
            case "LayerNormalization":
                return self._layer(op, match, wide)
            case "InstanceNormalization":
                normed, _, _ = _normed(op, wide, range(2, len(x.shape)), node)
                column = [-1, *[1] * (len(x.shape) - 2)]
                return [_affine(op, _like(op, normed, x), match, column)]
        return [_group(op, match, wide)]

    def _layer(self, op: Builder, match: Match, wide: ir.Value) -> list[ir.Value]:
        rank = len(wide.shape or ())
        axis = match.root.attributes.get_int("axis", -1) % rank
        normed, mean, inverse = _normed(op, wide, range(axis, rank), match.root)
        y = _affine(op, _like(op, normed, match.x), match, None)
        return [y, mean, inverse][: len(match.root.outputs)]


class MeanVarianceNorm(Rule):
    """MeanVarianceNormalization(x) -> d / (Sqrt(ReduceMean(d * d)) + 1e-9)

    d is what it is in `CentredNorm`.
    """

    name = "mean-variance-norm"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.MeanVarianceNormalization(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x = match.x
        if x.shape is None:
            raise NoMatch("the rank of its input is not known")
        axes = sorted(a % len(x.shape) for a in match.root.attributes.get_ints("axes", _MVN_AXES))
        wide = op.Cast(x, to=int(ir.DataType.FLOAT)) if x.dtype in _NARROW else x
        centred, _ = _centred(op, wide, axes)
        spread = op.Sqrt(_mean(op, op.Mul(centred, centred), axes))
        return _like(op, op.Div(centred, op.Add(spread, number(_MVN_EPSILON, wide))), x)


class NamedAxes(Rule):
    """MeanVarianceNormalization(x) -> MeanVarianceNormalization(x, axes=(0, 2, 3))

    Within a function ONNX Runtime forgets what is meant where no axes are given.
    """

    name = "named-axes"
    opset = 9

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.MeanVarianceNormalization(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if "axes" in match.root.attributes:
            return None
        value: ir.Value = op.MeanVarianceNormalization(match.x, axes=_MVN_AXES)
        return value


def _group(op: Builder, match: Match, wide: ir.Value) -> ir.Value:
    """Channels by group, normalised: up to opset 20 a scale is a group's, later a channel's."""
    x, groups = match.x, match.root.attributes["num_groups"].as_int()
    _, channels, *places = x.shape
    if not isinstance(channels, int) or channels % groups:
        raise NoMatch("its channels do not make groups of a known size")
    fixed = [dim for dim in places if isinstance(dim, int) and dim > 0]
    places = fixed if len(fixed) == len(places) else [-1]
    rows = op.Reshape(wide, [0, groups, channels // groups, *places])
    normed, _, _ = _normed(op, rows, range(2, 3 + len(places)), match.root)
    column = [groups, -1, *[1] * len(places)]
    y = _affine(op, _like(op, normed, x), match, column)
    static = [0, channels, *places] if places == fixed else op.Shape(x)
    value: ir.Value = op.Reshape(y, static)
    return value


def _normed(
    op: Builder, x: ir.Value, axes: range, node: ir.Node
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """x with mean 0 and variance 1, its mean, and one by its deviation."""
    centred, mean = _centred(op, x, axes)
    variance = _mean(op, op.Mul(centred, centred), axes)
    epsilon = number(node.attributes.get_float("epsilon", 1e-5), x)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))
    return op.Mul(centred, inverse), mean, inverse


def _centred(op: Builder, x: ir.Value, axes: range | list[int]) -> tuple[ir.Value, ir.Value]:
    """x less its mean, and the mean."""
    first = _mean(op, x, axes)
    near = op.Sub(x, first)
    rest = _mean(op, near, axes)
    return op.Sub(near, rest), op.Add(first, rest)


def _mean(op: Builder, x: ir.Value, axes: range | list[int]) -> ir.Value:
    """The mean over some axes, which are kept, from the last to the first."""
    for axis in reversed(axes):
        x = op.ReduceMean(x, [axis])
    return x


def _affine(op: Builder, x: ir.Value, match: Match, column: list[int] | None) -> ir.Value:
    """x * scale + bias, both reshaped to `column`."""
    scale, bias = (
        each if column is None or each is None else op.Reshape(each, column)
        for each in (match.scale, match.bias)
    )
    value: ir.Value = op.Mul(x, scale)
    return value if bias is None else op.Add(value, bias)


def _like(op: Builder, y: ir.Value, x: ir.Value) -> ir.Value:
    """y in the type of x."""
    value: ir.Value = y if x.dtype in (None, y.dtype) else op.Cast(y, to=int(x.dtype))
    return value

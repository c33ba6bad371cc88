"""Normalisations that exporters spell out become one node: layer, root-mean-square and group norm.

Each starts from its core, with a scale of ones; the scale and the bias that follow are then taken
in one at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.weights import constant, read, scalar
from aigcc.passes.conditions import (
    FLOATS,
    Array,
    computed,
    groups_of,
    is_all,
    keeping,
    same_dims,
    size,
    spreads_along,
    tensor_of,
    trailing_axes,
    vector,
)
from aigcc.passes.magnitudes import holds, may_add
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.pattern import Apply, Either, Match, NoMatch, PatternBuilder, either
from aigcc.pipeline.rules import Builder, Rule, apply_rules

_FLOAT = ir.DataType.FLOAT.value


def _square(op: PatternBuilder, x: Any) -> Either:
    return either(op.Pow(x, 2.0), op.Mul(x, x))


def _mean(op: PatternBuilder, x: Any, name: str) -> Apply:
    return op.ReduceMean(x, _more=True, _as=name)


def _over_root(op: PatternBuilder, x: Any, square: Any) -> list[Apply]:
    """The patterns of x / sqrt(square)."""
    root = op.Sqrt(square)
    inverse = either(op.Reciprocal(root), op.Div(1.0, root), op.Pow(square, -0.5))
    return [op.Div(x, root), op.Mul(x, inverse)]


def _normalised_axis(mean: ir.Node, x: ir.Value) -> int:
    """The first axis that a ReduceMean runs over, from it to the last.

    Raises:
        NoMatch: it runs over other axes, or drops them, or does not say.
    """
    if mean.attributes.get_int("keepdims", 1) != 1:
        raise NoMatch("the mean drops the axes that it runs over")
    given = mean.attributes.get("axes")
    operand = read(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if given is not None and not given.is_ref():
        axes = list(given.as_ints())
    elif operand is not None:
        axes = [int(axis) for axis in operand]
    else:
        raise NoMatch("the axes of the mean are not constant")
    if x.shape is None:
        raise NoMatch("the rank of the input is not known")
    first = trailing_axes(axes, len(x.shape))
    if first is None:
        raise NoMatch(f"it normalises axes {axes} of {len(x.shape)}, not the last ones")
    return first


def _ones(x: ir.Value, axis: int) -> np.ndarray:
    """A scale for the dims of `x` from `axis` on.

    Raises:
        NoMatch: they are not known, or the type of `x` is not one that normalisations compute in.
    """
    if x.dtype not in FLOATS - {ir.DataType.DOUBLE}:
        raise NoMatch(f"the input is {x.dtype.name if x.dtype else 'of unknown type'}")
    assert x.shape is not None
    dims = [dim for dim in x.shape[axis:] if isinstance(dim, int)]
    if len(dims) != len(x.shape) - axis:
        raise NoMatch(f"the normalised dims {list(x.shape[axis:])} are not known")
    return np.ones(dims, x.dtype.numpy())


def _epsilon(value: ir.Value) -> float:
    found = scalar(value)
    if found is None:
        raise NoMatch("epsilon is not a constant number")
    return float(found)


class LayerNormCore(Rule):
    """d / Sqrt(Mean(d²) + ε), with d = x - Mean(x)  ->  LayerNormalization(x, 1)"""

    name = "layer-norm"
    opset = 17

    def pattern(self, op: PatternBuilder, x: Any, epsilon: Any) -> Sequence[Apply]:
        d = op.Sub(x, _mean(op, x, "mean"), _as="d")
        variance = op.Add(_mean(op, _square(op, d), "spread"), epsilon)
        return _over_root(op, d, variance)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x = match.x
        axis = _normalised_axis(match.mean, x)
        if _normalised_axis(match.spread, x) != axis:
            raise NoMatch("mean and variance run over different axes")
        epsilon, scale = _epsilon(match.epsilon), _ones(x, axis)
        made: ir.Value = op.LayerNormalization(
            x, scale, axis=axis - len(x.shape), epsilon=epsilon, _like=x
        )
        return made


class RmsNormCore(Rule):
    """x / Sqrt(Mean(x²) + ε)  ->  RMSNormalization(x, 1)"""

    name = "rms-norm"
    opset = 23

    def pattern(self, op: PatternBuilder, x: Any, epsilon: Any) -> Sequence[Apply]:
        mean = _mean(op, _square(op, x), "mean")
        return [*_over_root(op, x, op.Add(mean, epsilon)), *_over_root(op, x, mean)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x = match.x
        axis = _normalised_axis(match.mean, x)
        given = getattr(match, "epsilon", None)
        epsilon = 0.0 if given is None else _epsilon(given)
        made: ir.Value = op.RMSNormalization(
            x,
            _ones(x, axis),
            axis=axis - len(x.shape),
            epsilon=epsilon,
            _like=x,
        )
        return made


class NormThroughCasts(Rule):
    """Cast(Norm(Cast(x, float), 1), half)  ->  Norm(x, 1), which computes in float by itself"""

    name = "norm-casts"
    shared = frozenset({"wide"})

    def pattern(self, op: PatternBuilder, x: Any, scale: Any) -> Apply:
        wide = op.Cast(x, to=_FLOAT, _as="wide")
        norm = op.LayerNormalization(wide, scale, _or=("RMSNormalization",), _as="norm")
        return op.Cast(norm)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, root = match.x, match.root.outputs[0]
        if x.dtype is None or x.dtype != root.dtype or not is_all(match.scale, 1.0):
            return None
        if match.norm.attributes.get_int("stash_type", _FLOAT) != _FLOAT:
            return None
        ones = np.ones(match.scale.shape.numpy(), x.dtype.numpy())
        made: ir.Value = op.node(
            match.norm.op_type, [x, ones], {**keeping(match.norm), "_like": root}
        )
        return made


class NormScale(Rule):
    """Norm(x, s) * w  ->  Norm(x, s * w), where w has the shape of the normalised dims"""

    name = "norm-scale"

    def pattern(self, op: PatternBuilder, x: Any, s: Any, w: Any) -> Apply:
        norm = op.LayerNormalization(x, s, _or=("RMSNormalization",), _as="norm")
        return op.Mul(norm, w)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        w = _for_dims(op, match.w, match.s, "scale")
        if w is None:
            return None
        made: ir.Value = op.node(
            match.norm.op_type,
            [match.x, _times(op, match.s, w)],
            {**keeping(match.norm), "_like": match.root.outputs[0]},
        )
        return made


class NormBias(Rule):
    """LayerNormalization(x, s) + b  ->  LayerNormalization(x, s, b)"""

    name = "norm-bias"

    def pattern(self, op: PatternBuilder, x: Any, s: Any, b: Any) -> Apply:
        return op.Add(op.LayerNormalization(x, s, _as="norm"), b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        b = _for_dims(op, match.b, match.s, "bias")
        if b is None:
            return None
        made: ir.Value = op.LayerNormalization(
            match.x, match.s, b, **keeping(match.norm), _like=match.root.outputs[0]
        )
        return made


def _for_dims(op: Builder, value: ir.Value, scale: ir.Value, name: str) -> ir.Value | None:
    """`value` if it fits where `scale` stands; a constant with leading ones is reshaped to fit."""
    if value.shape is None or scale.shape is None or value.dtype != scale.dtype:
        return None
    if same_dims(value.shape, scale.shape):
        return value
    extra = len(value.shape) - len(scale.shape)
    if extra <= 0 or any(dim != 1 for dim in value.shape[:extra]):
        return None
    tensor = constant(value)
    if tensor is None or not same_dims(value.shape[extra:], scale.shape):
        return None
    shape = tuple(scale.shape.numpy())
    return computed(op, lambda x: x.reshape(shape), tensor, like=tensor, shape=shape, name=name)


def _times(op: Builder, scale: ir.Value, factor: ir.Value) -> ir.Value:
    """`scale` * `factor`, of equal shapes; `factor` itself where the scale is ones."""
    if is_all(scale, 1.0):
        return factor
    a, b = tensor_of(scale, "the scale"), tensor_of(factor, "the factor")
    _check_range(_numbers(a) * _numbers(b), a.dtype)
    shape = tuple(a.shape.numpy())
    return computed(op, np.multiply, a, b, like=a, shape=shape, name="scale")


def _numbers(tensor: ir.TensorProtocol) -> Array:
    return tensor.numpy().astype(np.float64)


def _check_range(numbers: Array, dtype: ir.DataType) -> None:
    """See to it that a new scale or bias keeps its digits.

    Raises:
        NoMatch: it does not.
    """
    if not holds(numbers, dtype):
        raise NoMatch(f"the new constant would leave the range of {dtype.name.lower()}")


@dataclasses.dataclass
class GroupNormCore(Rule):
    """Reshape(InstanceNormalization(Reshape(x, [N, g, -1])), x.shape)  ->  GroupNormalization(x)

    ONNX defines the right side by E[x²] - E[x]², which loses the digits of a deviation that is
    small beside the mean, and a runtime without a kernel of its own computes that.

    Attributes:
        for_target: Whether a target follows, which brings the right side to a form of its own.
    """

    for_target: bool = False

    name = "group-norm"
    opset = 21
    shared = frozenset({"shape_of"})

    def pattern(
        self, op: PatternBuilder, x: Any, s: Any, b: Any, groups: Any, shape: Any
    ) -> Sequence[Apply]:
        grouped = op.Reshape(x, groups, _as="grouped")
        norm = op.InstanceNormalization(grouped, s, b, _as="norm")
        return [op.Reshape(norm, op.Shape(x, _as="shape_of")), op.Reshape(norm, shape)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x, result = match.x, match.root.outputs[0]
        if not self.for_target:
            raise NoMatch("GroupNormalization is exact for a target alone, and there is none")
        groups = groups_of(x, match.grouped.outputs[0])
        if not _gives_shape_of(match, x) and not same_dims(x.shape, result.shape or []):
            raise NoMatch("the result is not known to have the shape of the input")
        channels = size(x, 1)
        if channels is None or channels % groups:
            raise NoMatch(f"{groups} groups of {x.shape[1]} channels")
        made: ir.Value = op.GroupNormalization(
            x,
            _repeated(op, match.s, "scale", channels // groups),
            _repeated(op, match.b, "bias", channels // groups),
            num_groups=groups,
            epsilon=match.norm.attributes.get_float("epsilon", 1e-5),
            _like=x,
        )
        return made


def _gives_shape_of(match: Match, x: ir.Value) -> bool:
    node = match.root.inputs[1].producer() if match.root.inputs[1] is not None else None
    if node is None or node.op_type != "Shape" or node.inputs[0] is not x:
        return False
    return node.attributes.get_int("start", 0) == 0 and "end" not in node.attributes


def _repeated(op: Builder, value: ir.Value, what: str, times: int) -> ir.Value:
    """One number a channel from one number a group."""
    tensor = tensor_of(value, f"the {what} of InstanceNormalization")
    return computed(
        op,
        lambda array: np.repeat(array, times),
        tensor,
        like=tensor,
        shape=(tensor.size * times,),
        name=what,
    )


class GroupNormScale(Rule):
    """GroupNormalization(x, s, b) * w  ->  GroupNormalization(x, s * w, b * w), w per channel"""

    name = "group-norm-scale"
    opset = 21

    def pattern(self, op: PatternBuilder, x: Any, s: Any, b: Any, w: Any) -> Apply:
        return op.Mul(op.GroupNormalization(x, s, b, _as="norm"), w)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, w, channels = match.x, match.w, size(match.s, 0)
        if x.shape is None or channels is None or not spreads_along(w, 1, len(x.shape), channels):
            return None
        factor = tensor_of(w, "the scale per channel")

        def scaled(value: ir.Value, name: str) -> ir.Value:
            tensor = tensor_of(value, f"the {name} of GroupNormalization")
            _check_range(_numbers(tensor) * vector(factor.numpy(), channels), tensor.dtype)
            return computed(
                op,
                lambda a, f: a * vector(f, channels),
                tensor,
                factor,
                like=tensor,
                shape=(channels,),
                name=name,
            )

        made: ir.Value = op.GroupNormalization(
            x, scaled(match.s, "scale"), scaled(match.b, "bias"), **keeping(match.norm), _like=x
        )
        return made


class GroupNormBias(Rule):
    """GroupNormalization(x, s, b) + c  ->  GroupNormalization(x, s, b + c), c per channel"""

    name = "group-norm-bias"
    opset = 21

    def pattern(self, op: PatternBuilder, x: Any, s: Any, b: Any, c: Any) -> Apply:
        return op.Add(op.GroupNormalization(x, s, b, _as="norm"), c)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, c, channels = match.x, match.c, size(match.s, 0)
        if x.shape is None or channels is None or not spreads_along(c, 1, len(x.shape), channels):
            return None
        tensor = tensor_of(match.b, "the bias of GroupNormalization")
        shift = tensor_of(c, "the bias per channel")
        if not may_add(_numbers(tensor), vector(shift.numpy(), channels), tensor.dtype):
            raise NoMatch("a bias is so large that it may round what it is added to")
        bias = computed(
            op,
            lambda a, b: a + vector(b, channels),
            tensor,
            shift,
            like=tensor,
            shape=(channels,),
            name="bias",
        )
        made: ir.Value = op.GroupNormalization(x, match.s, bias, **keeping(match.norm), _like=x)
        return made


@dataclasses.dataclass(frozen=True)
class FuseNorm(Pass):
    """Make LayerNormalization, RMSNormalization and GroupNormalization from their parts.

    ```
    s = Mul (x, x); m = ReduceMean (s, last); e = Add (m, eps); r = Sqrt (e)
    n = Div (x, r); y = Mul (n, w)                    →      y = RMSNormalization (x, w)
    ```
    GroupNormalization is made only for a target, which then gives it a form of its own: what ONNX
    defines it by loses digits where the mean is large. Squares that overflow, and give 0 or NaN
    spelled out, may be finite inside the fused operator, which sums in wider types.
    """

    name: ClassVar[str] = "fuse-norm"

    def run(self, module: Module, ctx: Context) -> None:
        """Apply the family's rules everywhere."""
        rules: tuple[Rule, ...] = (
            LayerNormCore(),
            RmsNormCore(),
            NormThroughCasts(),
            NormScale(),
            NormBias(),
            GroupNormCore(for_target=ctx.target is not None),
            GroupNormScale(),
            GroupNormBias(),
        )
        apply_rules(module, rules, ctx)

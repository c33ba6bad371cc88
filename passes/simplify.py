"""Nodes that do nothing, or undo each other: identities, casts, transposes, reshapes, slices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.analysis.extents import Extents
from aigcc.ir.weights import constant, read, scalar
from aigcc.passes.conditions import keeping, same_dims
from aigcc.passes.empty_reductions import EmptyReduction
from aigcc.passes.mask_rows import keeps_every_row
from aigcc.passes.scalar_grids import ScalarGrid
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule, RulePass

_SHAPERS = ("Squeeze", "Unsqueeze", "Flatten")


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values provably have the same shape; symbols count, unknown dims do not."""
    return a.shape is not None and b.shape is not None and same_dims(a.shape, b.shape)


def _unless_bigger(root: ir.Node, x: ir.Value) -> ir.Value | None:
    return x if same_shape(root.outputs[0], x) else None


class DropIdentity(Rule):
    """Identity(x) -> x"""

    name = "identity"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Identity(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if match.root.outputs[0].is_graph_output() and not _replaceable(match):
            return None
        x: ir.Value = match.x
        return x


def _replaceable(match: Match) -> bool:
    producer = match.x.producer()
    return (
        producer is not None
        and producer.graph is match.root.graph
        and not match.x.is_graph_output()
    )


class DropDropout(Rule):
    """Dropout(x) -> x, outside of training"""

    name = "dropout"

    def pattern(self, op: PatternBuilder, x: Any, ratio: Any = None, training: Any = None) -> Apply:
        return op.Dropout(x, ratio, training)

    def rewrite(self, op: Builder, match: Match) -> Sequence[ir.Value] | None:
        if match.training is not None and scalar(match.training) != 0:
            return None
        if len(match.root.outputs) > 1 and match.root.outputs[1].uses():
            return None
        return [match.x]


class DropCast(Rule):
    """Cast(x) -> x, to the type that x has"""

    name = "cast"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Cast(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if match.x.dtype is None or match.x.dtype != match.root.attributes["to"].as_int():
            return None
        x: ir.Value = match.x
        return x


class ResolveCastLike(Rule):
    """CastLike(x, y) -> Cast(x), to the type that y has, rounding and saturating alike"""

    name = "cast-like"

    def pattern(self, op: PatternBuilder, x: Any, y: Any) -> Apply:
        return op.CastLike(x, y)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if match.y.dtype is None:
            return None
        value: ir.Value = op.Cast(match.x, to=int(match.y.dtype), **keeping(match.root))
        return value


class MergeCasts(Rule):
    """Cast(Cast(x, a), b) -> Cast(x, b), where a holds every value of x

    How the outer one rounds and saturates stays. Text is left alone: a number is written with as
    many digits as its type has.
    """

    name = "cast-cast"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Cast(op.Cast(x, _as="inner"), _as="outer")

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        source = match.x.dtype
        middle = ir.DataType(match.inner.attributes["to"].as_int())
        if source is None or not _holds(middle, source):
            raise NoMatch(f"{middle.name} does not hold every value of the input")
        if match.outer.attributes["to"].as_int() == ir.DataType.STRING:
            raise NoMatch(f"{source.name} would be written with other digits than {middle.name}")
        value: ir.Value = op.Cast(match.x, **keeping(match.outer))
        return value


_WIDER = {
    ir.DataType.FLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.BFLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT: {ir.DataType.DOUBLE},
    ir.DataType.INT8: {ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64},
    ir.DataType.UINT8: {ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64},
    ir.DataType.INT16: {ir.DataType.INT32, ir.DataType.INT64},
    ir.DataType.INT32: {ir.DataType.INT64, ir.DataType.DOUBLE},
    ir.DataType.BOOL: {
        ir.DataType.UINT8,
        ir.DataType.INT8,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.FLOAT16,
        ir.DataType.FLOAT,
    },
}


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    return wide == narrow or wide in _WIDER.get(narrow, ())


class DropTranspose(Rule):
    """Transpose(x, identity) -> x"""

    name = "transpose"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Transpose(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        perm = match.root.attributes.get("perm")
        if perm is None or list(perm.as_ints()) != list(range(len(perm.as_ints()))):
            return None
        x: ir.Value = match.x
        return x


class MergeTransposes(Rule):
    """Transpose(Transpose(x, p), q) -> Transpose(x, p[q])"""

    name = "transpose-transpose"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Transpose(op.Transpose(x, _as="inner"), _as="outer")

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        inner, outer = _perm(match.inner), _perm(match.outer)
        merged = [inner[axis] for axis in outer]
        if merged == list(range(len(merged))):
            x: ir.Value = match.x
            return x
        value: ir.Value = op.Transpose(match.x, perm=merged)
        return value


def _perm(node: ir.Node) -> list[int]:
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return list(attribute.as_ints())
    value = node.inputs[0]
    if value is None or value.shape is None:
        raise NoMatch("a Transpose without perm, and its rank is unknown")
    return list(reversed(range(len(value.shape))))


class DropReshape(Rule):
    """Reshape(x, shape) -> x, where x has that shape"""

    name = "reshape"

    def pattern(self, op: PatternBuilder, x: Any, shape: Any) -> Sequence[Apply]:
        return [op.Reshape(x, shape), op.Expand(x, shape)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not same_shape(match.root.outputs[0], match.x):
            return None
        x: ir.Value = match.x
        return x


class MergeReshapes(Rule):
    """Reshape(Reshape(x, s), t) -> Reshape(x, t), where t copies no dim of s"""

    name = "reshape-reshape"

    def pattern(self, op: PatternBuilder, x: Any, shape: Any) -> Apply:
        inner = op.Reshape(x, _more=True, _or=_SHAPERS)
        return op.Reshape(inner, shape, _as="outer")

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        shape = read(match.shape)
        if shape is None:
            return None
        if 0 in shape.tolist():
            raise NoMatch("the shape copies a dim of the inner one")
        value: ir.Value = op.Reshape(
            match.x, match.shape, allowzero=match.outer.attributes.get_int("allowzero", None)
        )
        return value


class ReshapeByConstant(Rule):
    """Reshape(x, computed) -> Reshape(x, constant); Squeeze, Unsqueeze, Flatten -> Reshape

    Holds where at most one dim of the result is unknown, or the unknown ones are dims of x at the
    same place.
    """

    name = "constant-shape"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Reshape(x, _more=True, _or=("Flatten",))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        root, x = match.root, match.x
        if root.op_type == "Reshape" and read(root.inputs[1]) is not None:
            return None
        shape = constant_shape(x, root.outputs[0])
        if shape is None:
            return None
        value: ir.Value = op.Reshape(x, shape)
        return value


def constant_shape(x: ir.Value, result: ir.Value) -> list[int] | None:
    """A Reshape shape (with 0 and -1) that gives `result` from `x`; None where there is none."""
    if result.shape is None or x.shape is None:
        return None
    dims: list[int] = []
    for place, dim in enumerate(result.shape):
        if isinstance(dim, int):
            if dim == 0:
                return None
            dims.append(dim)
        elif place < len(x.shape) and dim.value is not None and x.shape[place] == dim:
            dims.append(0)
        elif -1 in dims:
            return None
        else:
            dims.append(-1)
    return dims


class DropSlice(Rule):
    """Slice(x, 0, end) -> x, where end reaches past every dim"""

    name = "slice"

    def pattern(
        self,
        op: PatternBuilder,
        x: Any,
        starts: Any,
        ends: Any,
        axes: Any = None,
        steps: Any = None,
    ) -> Apply:
        return op.Slice(x, starts, ends, axes, steps)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        starts, ends, axes, steps = map(read, (match.starts, match.ends, match.axes, match.steps))
        if starts is None or ends is None or match.x.shape is None:
            return None
        if (steps is None) != (match.steps is None) or (axes is None) != (match.axes is None):
            return None
        if steps is not None and (steps != 1).any():
            return None
        axes = np.arange(len(starts)) if axes is None else axes
        for axis, start, end in zip(axes.tolist(), starts.tolist(), ends.tolist(), strict=True):
            dim = match.x.shape[axis]
            whole = end >= dim if isinstance(dim, int) else end >= np.iinfo(np.int32).max
            if start != 0 or not whole:
                return None
        x: ir.Value = match.x
        return x


class DropPad(Rule):
    """Pad(x, zeros) -> x"""

    name = "pad"

    def pattern(
        self, op: PatternBuilder, x: Any, pads: Any, value: Any = None, axes: Any = None
    ) -> Apply:
        return op.Pad(x, pads, value, axes)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        pads = read(match.pads)
        if pads is None or pads.any():
            return None
        x: ir.Value = match.x
        return x


class DropSingle(Rule):
    """Concat(x), Sum(x), Max(x), Min(x), Mean(x) -> x"""

    name = "single"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Concat(x, _or=("Sum", "Max", "Min", "Mean"))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x: ir.Value = match.x
        return x


class DropNeutral(Rule):
    """x + 0, x - 0, x * 1, x / 1, x ** 1 -> x"""

    name = "neutral"

    def pattern(self, op: PatternBuilder, x: Any) -> Sequence[Apply]:
        return [
            op.Add(x, 0.0),
            op.Sub(x, 0.0),
            op.Mul(x, 1.0),
            op.Div(x, 1.0),
            op.Pow(x, 1.0),
        ]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        return _unless_bigger(match.root, match.x)


class DropExpand(Rule):
    """Add(Expand(x, s), y) -> Add(x, y), where y has the expanded shape already"""

    name = "expand"

    def pattern(self, op: PatternBuilder, x: Any, y: Any, shape: Any) -> Sequence[Apply]:
        binary = ("Sub", "Mul", "Div", "And", "Or", "Equal", "Less", "Greater")
        return [
            op.Add(op.Expand(x, shape, _as="expand"), y, _or=binary),
            op.Add(y, op.Expand(x, shape, _as="expand"), _or=binary),
        ]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        expanded = match.expand.outputs[0]
        if match.y is expanded or not same_shape(match.y, match.root.outputs[0]):
            return None
        operands = [match.x if v is expanded else v for v in match.root.inputs]
        value: ir.Value = op.node(match.root.op_type, operands, keeping(match.root))
        return value


class DropNotNot(Rule):
    """Not(Not(x)) -> x"""

    name = "not-not"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Not(op.Not(x))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x: ir.Value = match.x
        return x


class ChooseWhere(Rule):
    """Where(constant, x, y) -> x or y, where all elements of the constant agree"""

    name = "where"

    def pattern(self, op: PatternBuilder, condition: Any, x: Any, y: Any) -> Apply:
        return op.Where(condition, x, y)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        condition = read(match.condition)
        if condition is None:
            return None
        if condition.all():
            return _unless_bigger(match.root, match.x)
        if not condition.any():
            return _unless_bigger(match.root, match.y)
        return None


class DropNanGuard(Rule):
    """Where(IsNaN(s), c, s) -> s, with s = Softmax(t) that is proven to hold no NaN

    A softmax is NaN where its input is, where that is infinite, and where a whole row is -inf. What
    an input of the graph may hold is anything, and every operator from there on is followed.
    """

    name = "nan-guard"

    def pattern(self, op: PatternBuilder, t: Any, c: Any) -> Apply:
        softmax = op.Softmax(t, _as="softmax")
        return op.Where(op.IsNaN(softmax), c, softmax)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        found = Extents().of(match.t)
        if found.nan or found.high == math.inf:
            raise NoMatch("what enters the softmax may hold NaN or infinity")
        axis, t = match.softmax.attributes.get_int("axis", -1), match.t
        is_last = t.shape is not None and axis in (-1, len(t.shape) - 1)
        if found.low == -math.inf and not (is_last and keeps_every_row(t)):
            raise NoMatch("what enters the softmax may hold a row of -inf")
        softmax: ir.Value = match.softmax.outputs[0]
        return softmax if same_shape(match.root.outputs[0], softmax) else None


class DequantizeLast(Rule):
    """Move(DequantizeLinear(x, s, z)) -> DequantizeLinear(Move(x), s, z), one int8 scale for all

    Move is Transpose, Reshape, Slice and their like, or MaxPool. Bytes are moved for floats, and
    the scale stands before what computes. ONNX Runtime 1.31 does the same by itself from opset 21
    on, in a way that its own checks refuse. What is quantised again at once stays.
    """

    name = "dequantize-last"
    shared = frozenset({"dequantize"})

    def pattern(self, op: PatternBuilder, x: Any, scale: Any, zero: Any = None) -> Apply:
        moves = ("Reshape", "Slice", "Squeeze", "Unsqueeze", "MaxPool")
        dequantize = op.DequantizeLinear(x, scale, zero, _as="dequantize")
        return op.Transpose(dequantize, _or=moves, _more=True)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        root, scale, users = match.root, match.scale, match.root.outputs[0].consumers()
        if match.x.dtype != ir.DataType.INT8 or constant(match.x) is not None:
            return None
        if scale.shape is None or any(dim != 1 for dim in scale.shape) or len(root.outputs) > 1:
            return None
        if users and all(user.op_type == "QuantizeLinear" for user in users):
            return None
        if root.op_type == "MaxPool" and not (scalar(scale) or 0) > 0:
            return None
        moved = op.node(root.op_type, [match.x, *root.inputs[1:]], keeping(root))
        inputs = [moved, scale, *([] if match.zero is None else [match.zero])]
        made: ir.Value = op.node("DequantizeLinear", inputs, keeping(match.dequantize))
        return made


class ScalarRange(Rule):
    """Range(a [1], b, c) -> Range(Squeeze(a), b, c); also for b and c

    ONNX Runtime refuses it once it knows the shape, and computes it as long as it does not.
    """

    name = "range"

    def pattern(self, op: PatternBuilder, a: Any, b: Any, c: Any) -> Apply:
        return op.Range(a, b, c)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        bounds = [match.a, match.b, match.c]
        if all(bound.shape is None or len(bound.shape) != 1 for bound in bounds):
            return None
        scalars = [
            op.Squeeze(v, [0]) if v.shape is not None and len(v.shape) else v for v in bounds
        ]
        value: ir.Value = op.Range(*scalars)
        return value


class DropTile(Rule):
    """Tile(x, ones) -> x"""

    name = "tile"

    def pattern(self, op: PatternBuilder, x: Any, repeats: Any) -> Apply:
        return op.Tile(x, repeats)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        repeats = read(match.repeats)
        if repeats is None or (repeats != 1).any():
            return None
        x: ir.Value = match.x
        return x


@dataclasses.dataclass(frozen=True)
class Simplify(RulePass):
    """Remove nodes that do nothing and chains that undo each other.

    ```
    a = Transpose <perm = [1, 0]> (x); y = Transpose <perm = [1, 0]> (a)      →      y = x
    ```
    """

    name: ClassVar[str] = "simplify"
    rules: ClassVar[tuple[Rule, ...]] = (
        DropIdentity(),
        DropDropout(),
        DropCast(),
        ResolveCastLike(),
        MergeCasts(),
        DropTranspose(),
        MergeTransposes(),
        DropReshape(),
        MergeReshapes(),
        ReshapeByConstant(),
        DropSlice(),
        DropPad(),
        DropSingle(),
        DropNeutral(),
        DropExpand(),
        DropNotNot(),
        ChooseWhere(),
        DropNanGuard(),
        DequantizeLast(),
        DropTile(),
        EmptyReduction(),
        ScalarGrid(),
    )

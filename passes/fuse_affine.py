"""Scales and shifts by constants move into the weights and biases next to them.

New weights are derived lazily, so that no two are in memory at once. Results differ by rounding,
and a product that overflowed before it was scaled down may not any more; how large constants may be
is in `magnitudes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import constant, read, scalar
from aigcc.passes.conditions import (
    FLOATS,
    LARGE,
    Array,
    keeping,
    spreads_along,
    tensor_of,
    vector,
)
from aigcc.passes.layers import Layer
from aigcc.passes.magnitudes import holds, largest, may_add, may_multiply, rounds
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule, RulePass


def _layer(op: PatternBuilder, x: Any, *others: str) -> Apply:
    return op.Conv(x, _or=others, _more=True, _as="layer")


def _numbers(value: ir.Value, length: int) -> Array | None:
    """A floating-point constant as a vector in double precision."""
    tensor = constant(value)
    if tensor is None or tensor.dtype not in FLOATS:
        return None
    return vector(tensor.numpy(), length)


def _inverse(numbers: Array | None) -> Array | None:
    return None if numbers is None or not numbers.all() else 1.0 / numbers


def _new_bias(op: Builder, layer: Layer, factors: Array | float, *shifts: Array) -> ir.Value:
    """A new bias: the old one times `factors`, plus the sum of `shifts`.

    Raises:
        NoMatch: the old bias is not a constant, or not a number a channel, or the terms are so
            large that products of the layer would lose their digits among them.
    """
    old: Array | float = 0.0
    if layer.bias is not None:
        if not spreads_along(layer.bias, 1, 2, layer.outputs):
            raise NoMatch("the bias is not one number a channel")
        old = vector(tensor_of(layer.bias, "the bias").numpy(), layer.outputs)
    dtype = layer.dtype
    terms = np.stack([np.broadcast_to(t, (layer.outputs,)) for t in (old * factors, *shifts)])
    bias = terms.sum(axis=0)
    if not np.isfinite(terms).all() or np.abs(bias).max(initial=0.0) > largest(dtype):
        raise NoMatch(f"the bias would overflow {dtype.name.lower()}")
    opposed = ((terms > 0).any(axis=0) & (terms < 0).any(axis=0)).any()
    scale = float(np.abs(factors).max(initial=0.0))
    if (opposed or rounds(bias, 1.0, dtype)) and rounds(terms, layer.reach() * scale, dtype):
        raise NoMatch("the shift is so large that it rounds what it is added to")
    return op.constant(bias.astype(dtype.numpy()), "bias")


class ScaleAfter(Rule):
    """Layer(x, W, b) · s  ->  Layer(x, W · s, b · s), with a number s an output channel"""

    name = "scale-after"

    def pattern(self, op: PatternBuilder, x: Any, s: Any) -> Sequence[Apply]:
        layer = _layer(op, x, "ConvTranspose", "Gemm", "MatMul")
        return [op.Mul(layer, s), op.Div(layer, s)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer = Layer.of(match.layer)
        if layer is None or not layer.scales_outputs(match.s):
            return None
        factors = _numbers(match.s, layer.outputs)
        if match.root.op_type == "Div":
            factors = _inverse(factors)
        if factors is None:
            return None
        bias = None if layer.bias is None else _new_bias(op, layer, factors)
        weight = layer.scaled_outputs(op, factors)
        return layer.rebuilt(op, match.root.outputs[0], weight=weight, bias=bias)


class ScaleAfterShift(Rule):
    """(x W + b) · s  ->  x (W · s) + b · s, with a number s an output channel"""

    name = "scale-after-shift"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, b: Any, s: Any) -> Apply:
        return op.Mul(op.Add(op.MatMul(x, w, _as="layer"), b), s)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer = Layer.of(match.layer)
        if layer is None or not layer.scales_outputs(match.s):
            return None
        if not layer.scales_outputs(match.b):
            return None
        factors, shift = _numbers(match.s, layer.outputs), _numbers(match.b, layer.outputs)
        if factors is None or shift is None:
            return None
        result = match.root.outputs[0]
        bias = _new_bias(op, layer, factors, shift * factors)
        product = layer.rebuilt(op, result, weight=layer.scaled_outputs(op, factors))
        made: ir.Value = op.Add(product, bias, _like=result)
        return made


class ShiftAfter(Rule):
    """Layer(x, W, b) + c  ->  Layer(x, W, b + c), with a number c an output channel"""

    name = "shift-after"

    def pattern(self, op: PatternBuilder, x: Any, c: Any) -> Sequence[Apply]:
        layer = _layer(op, x, "ConvTranspose", "Gemm")
        return [op.Add(layer, c), op.Sub(layer, c)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        return _shifted(op, match, match.root.outputs[0], -1 if match.root.op_type == "Sub" else 1)


class ShiftAfterSum(Rule):
    """(Layer(x, W, b) + y) + c  ->  Layer(x, W, b + c) + y, with a number c an output channel"""

    name = "shift-after-sum"

    def pattern(self, op: PatternBuilder, x: Any, y: Any, c: Any) -> Apply:
        return op.Add(op.Add(_layer(op, x, "ConvTranspose", "Gemm"), y), c)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer = _shifted(op, match, match.layer.outputs[0], 1)
        if layer is None:
            return None
        made: ir.Value = op.Add(layer, match.y, _like=match.root.outputs[0])
        return made


def _shifted(op: Builder, match: Match, like: ir.Value, sign: int) -> ir.Value | None:
    layer = Layer.of(match.layer)
    if layer is None or not layer.scales_outputs(match.c):
        return None
    shift = _numbers(match.c, layer.outputs)
    if shift is None or not layer.is_plain:
        return None
    return layer.rebuilt(op, like, bias=_new_bias(op, layer, 1.0, sign * shift))


class ScaleBefore(Rule):
    """Layer(x · s, W, b)  ->  Layer(x, s · W, b), with a number s an input channel"""

    name = "scale-before"

    def pattern(self, op: PatternBuilder, x: Any, s: Any) -> Sequence[Apply]:
        others = ("ConvTranspose", "Gemm", "MatMul")
        return [_layer(op, op.Mul(x, s), *others), _layer(op, op.Div(x, s, _as="div"), *others)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer = Layer.of(match.layer)
        if layer is None or not layer.scales_inputs(match.s):
            return None
        factors = _numbers(match.s, layer.inputs)
        if hasattr(match, "div"):
            factors = _inverse(factors)
        if factors is None or not layer.takes(match.x):
            return None
        if _is_half_of_gelu(match.x):
            raise NoMatch("the scale ends a Gelu, which runtimes know only as a whole")
        weight = layer.scaled_inputs(op, factors)
        return layer.rebuilt(op, match.root.outputs[0], x=match.x, weight=weight)


def _is_half_of_gelu(x: ir.Value) -> bool:
    """Whether `x` is y · (1 + Erf or Tanh), which opsets without Gelu leave in parts."""
    product = x.producer()
    if product is None or product.op_type != "Mul":
        return False
    sums = [value.producer() for value in product.inputs if value is not None]
    terms = [v for node in sums if node is not None and node.op_type == "Add" for v in node.inputs]
    curves = [value.producer() for value in terms if value is not None]
    return any(node is not None and node.op_type in ("Erf", "Tanh") for node in curves)


class ShiftBefore(Rule):
    """Layer(x + c, W, b)  ->  Layer(x, W, b + W c), with a number c an input channel, no padding"""

    name = "shift-before"

    def pattern(self, op: PatternBuilder, x: Any, c: Any) -> Sequence[Apply]:
        return [
            _layer(op, op.Add(x, c), "Gemm"),
            _layer(op, op.Sub(x, c, _as="sub"), "Gemm"),
        ]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer = Layer.of(match.layer)
        if layer is None or not layer.is_unpadded or not layer.scales_inputs(match.c):
            return None
        shift = _numbers(match.c, layer.inputs)
        if shift is None or not layer.takes(match.x) or not layer.is_plain:
            return None
        if rounds(shift, 1.0, layer.dtype):
            raise NoMatch("the shift is so large that it rounds what it is added to")
        bias = layer.shifted(op, -shift if hasattr(match, "sub") else shift)
        return layer.rebuilt(op, match.root.outputs[0], x=match.x, bias=bias)


def _batch_norm(op: PatternBuilder, x: Any) -> Apply:
    return op.BatchNormalization(x, _more=True, _as="norm")


def _affine(norm: ir.Node, channels: int) -> tuple[Array, Array, Array]:
    """The factors and two shifts, a number a channel, of a BatchNormalization in inference.

    Raises:
        NoMatch: its parameters are not constants, or it is in training mode.
    """
    if norm.attributes.get_int("training_mode", 0) or not norm.attributes.get_int("spatial", 1):
        raise NoMatch("BatchNormalization is not in its usual inference mode")
    numbers = [None if value is None else _numbers(value, channels) for value in norm.inputs[1:5]]
    if any(found is None for found in numbers) or len(numbers) != 4:
        raise NoMatch("the parameters of BatchNormalization are not constants")
    scale, bias, mean, variance = (found for found in numbers if found is not None)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factors = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
        return factors, bias, -mean * factors


class BatchNormAfter(Rule):
    """BatchNormalization(Layer(x, W, b))  ->  Layer(x, f · W, f · b + t)"""

    name = "batch-norm-after"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return _batch_norm(op, _layer(op, x, "ConvTranspose", "Gemm"))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer = Layer.of(match.layer)
        if layer is None or not layer.is_plain:
            return None
        factors, *shifts = _affine(match.norm, layer.outputs)
        weight = layer.scaled_outputs(op, factors)
        bias = _new_bias(op, layer, factors, *shifts)
        return layer.rebuilt(op, match.root.outputs[0], weight=weight, bias=bias)


class BatchNormBefore(Rule):
    """Layer(BatchNormalization(x), W, b)  ->  Layer(x, f · W, b + W t), no padding"""

    name = "batch-norm-before"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return _layer(op, _batch_norm(op, x), "Gemm")

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer = Layer.of(match.layer)
        if layer is None:
            return None
        if not layer.is_unpadded:
            raise NoMatch("the layer is padded, and BatchNormalization shifts what it pads")
        if not layer.is_plain:
            return None
        factors, *shifts = _affine(match.norm, layer.inputs)
        weight = layer.scaled_inputs(op, factors)
        if any(rounds(shift, 1.0, layer.dtype) for shift in shifts):
            raise NoMatch("the mean is so large that it takes the digits of the deviation")
        bias = layer.shifted(op, np.add(*shifts))
        return layer.rebuilt(op, match.root.outputs[0], x=match.x, weight=weight, bias=bias)


def _small(*values: ir.Value) -> list[Array] | None:
    """Small floating-point constants in double precision; None where one is something else."""
    tensors = [constant(value) for value in values]
    if any(t is None or t.dtype not in FLOATS or t.nbytes > LARGE for t in tensors):
        return None
    return [np.asarray(tensor.numpy(), np.float64) for tensor in tensors if tensor is not None]


def _merged(op: Builder, dtype: ir.DataType, numbers: Array, *sources: Array) -> ir.Value | None:
    """A constant made of others, none broadcast to more than it was, that the type holds."""
    if numbers.size > max(array.size for array in sources) or not holds(numbers, dtype):
        return None
    return op.constant(numbers.astype(dtype.numpy()), "merged")


class MergeScales(Rule):
    """(x · a) · b  ->  x · (a · b), for constants; division alike

    Where x · a may overflow, or loses digits that b brings back into sight, both stay.
    """

    name = "scales"

    def pattern(self, op: PatternBuilder, x: Any, a: Any, b: Any) -> Sequence[Apply]:
        times, over = op.Mul(x, a, _as="times"), op.Div(x, a)
        return [op.Mul(times, b), op.Mul(over, b), op.Div(times, b), op.Div(over, b)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        result, constants = match.root.outputs[0], _small(match.a, match.b)
        if result.dtype not in FLOATS or constants is None:
            return None
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            a = constants[0] if hasattr(match, "times") else 1.0 / constants[0]
            b = constants[1] if match.root.op_type == "Mul" else 1.0 / constants[1]
            product = np.asarray(a * b)
        merged = _merged(op, result.dtype, product, a, b)
        if merged is None:
            return None
        if not may_multiply(match.x, a, b, result.dtype):
            raise NoMatch("the product between may leave the range of its type")
        made: ir.Value = op.Mul(match.x, merged, _like=result)
        return made


class MergeShifts(Rule):
    """(x + a) + b  ->  x + (a + b), for constants; subtraction alike

    Where a + b is much smaller than a, both stay: x + a - a rounds x.
    """

    name = "shifts"

    def pattern(self, op: PatternBuilder, x: Any, a: Any, b: Any) -> Sequence[Apply]:
        plus, minus = op.Add(x, a, _as="plus"), op.Sub(x, a)
        return [op.Add(plus, b), op.Add(minus, b), op.Sub(plus, b), op.Sub(minus, b)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        result, constants = match.root.outputs[0], _small(match.a, match.b)
        if result.dtype not in FLOATS or constants is None:
            return None
        a = constants[0] if hasattr(match, "plus") else -constants[0]
        b = constants[1] if match.root.op_type == "Add" else -constants[1]
        merged = _merged(op, result.dtype, np.asarray(a + b), a, b)
        if merged is None:
            return None
        if not may_add(a, b, result.dtype):
            raise NoMatch("a shift is so large that it may round what it is added to")
        made: ir.Value = op.Add(match.x, merged, _like=result)
        return made


class MergeAffine(Rule):
    """(x · a + b) · c  ->  x · (a · c) + b · c, for constants of ordinary sizes"""

    name = "affine"

    def pattern(self, op: PatternBuilder, x: Any, a: Any, b: Any, c: Any) -> Apply:
        return op.Mul(op.Add(op.Mul(x, a), b), c)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        result, constants = match.root.outputs[0], _small(match.a, match.b, match.c)
        if result.dtype not in FLOATS or constants is None or constant(match.x) is not None:
            return None
        a, b, c = constants
        factor = _merged(op, result.dtype, np.asarray(a * c), a, c)
        shift = _merged(op, result.dtype, np.asarray(b * c), b, c)
        if factor is None or shift is None:
            return None
        if not may_multiply(match.x, a, c, result.dtype) or rounds(b, 1.0, result.dtype):
            raise NoMatch("the sum between may leave the range of its type, or round")
        made: ir.Value = op.Add(op.Mul(match.x, factor, _like=result), shift, _like=result)
        return made


class PadBefore(Rule):
    """Conv(Pad(x, p, 0), W)  ->  Conv(x, W, pads + p)"""

    name = "pad-before"

    def pattern(
        self, op: PatternBuilder, x: Any, pads: Any, value: Any = None, axes: Any = None
    ) -> Apply:
        return _layer(op, op.Pad(x, pads, value, axes, _as="pad"))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        layer, mode = Layer.of(match.layer), match.pad.attributes.get_string("mode", "constant")
        if layer is None or layer.node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return None
        if mode != "constant" or (match.value is not None and scalar(match.value) != 0):
            raise NoMatch("the padding is not zeros")
        added = _pads_of_all(match, layer.dims)
        if added is None or (added < 0).any() or added[:, :2].any():
            raise NoMatch("the padding is not constant, or not of the image alone")
        spatial = layer.dims - 2
        old = layer.node.attributes.get_ints("pads", (0,) * (2 * spatial))
        pads = [a + b for a, b in zip(old, added[:, 2:].ravel().tolist(), strict=True)]
        made: ir.Value = op.Conv(
            match.x,
            *layer.node.inputs[1:],
            **keeping(layer.node, "pads"),
            pads=pads,
            _like=match.root.outputs[0],
        )
        return made


def _pads_of_all(match: Match, dims: int) -> Array | None:
    """The padding before (row 0) and after (row 1) each axis, or None if it is not constant."""
    pads, axes = read(match.pads), read(match.axes)
    if pads is None or (axes is None and match.axes is not None):
        return None
    full = np.zeros((2, dims), np.int64)
    full[:, range(dims) if axes is None else axes] = pads.reshape(2, -1)
    return full


@dataclasses.dataclass(frozen=True)
class FuseAffine(RulePass):
    """Take constant scales, shifts, BatchNormalization and padding into the layers next to them.

    ```
    c = Conv (x, w, b); y = BatchNormalization (c, scale, bias, mean, var)
                                                      →      y = Conv (x, w2, b2)
    ```
    """

    name: ClassVar[str] = "fuse-affine"
    rules: ClassVar[tuple[Rule, ...]] = (
        BatchNormAfter(),
        BatchNormBefore(),
        ScaleAfter(),
        ScaleAfterShift(),
        ShiftAfter(),
        ShiftAfterSum(),
        ScaleBefore(),
        ShiftBefore(),
        PadBefore(),
        MergeScales(),
        MergeShifts(),
        MergeAffine(),
    )

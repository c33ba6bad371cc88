"""Activations from multiplications, exponentials and the error function."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from aigcc.ir.weights import scalar
from aigcc.passes.conditions import number
from aigcc.pipeline.pattern import Apply, Match, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule


def gelu(op: Builder, x: ir.Value, *, tanh: bool) -> ir.Value:
    """x * 0.5 * (1 + erf(x / sqrt(2))), or its approximation by tanh."""
    half, one = number(0.5, x), number(1.0, x)
    if tanh:
        cube = op.Mul(op.Mul(op.Mul(x, x), x), number(0.044715, x))
        inner = op.Tanh(op.Mul(op.Add(x, cube), number(math.sqrt(2 / math.pi), x)))
    else:
        inner = op.Erf(op.Mul(x, number(math.sqrt(0.5), x)))
    value: ir.Value = op.Mul(op.Mul(x, half), op.Add(inner, one))
    return value


def sigmoid_product(op: Builder, x: ir.Value, alpha: float) -> ir.Value:
    """x * sigmoid(alpha * x)."""
    inner = x if alpha == 1 else op.Mul(x, number(alpha, x))
    value: ir.Value = op.Mul(x, op.Sigmoid(inner))
    return value


class Gelu(Rule):
    """Gelu(x) -> x / 2 * (1 + Erf(x / sqrt(2))), or with Tanh"""

    name = "gelu"

    def pattern(self, op: PatternBuilder, x: Any) -> list[Apply]:
        return [op.Gelu(x), op.Gelu(x, _domain="com.microsoft")]

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        form = match.root.attributes.get("approximate")
        return gelu(op, match.x, tanh=form is not None and form.as_string() == "tanh")


class FastGelu(Rule):
    """com.microsoft.FastGelu(x, b) -> the form of Gelu with Tanh, of x + b"""

    name = "fast-gelu"

    def pattern(self, op: PatternBuilder, x: Any, b: Any = None) -> Apply:
        return op.FastGelu(x, b, _domain="com.microsoft")

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return gelu(op, match.x if match.b is None else op.Add(match.x, match.b), tanh=True)


class BiasGelu(Rule):
    """com.microsoft.BiasGelu(x, b) -> the form of Gelu with Erf, of x + b"""

    name = "bias-gelu"

    def pattern(self, op: PatternBuilder, x: Any, b: Any) -> Apply:
        return op.BiasGelu(x, b, _domain="com.microsoft")

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return gelu(op, op.Add(match.x, match.b), tanh=False)


class Swish(Rule):
    """Swish(x) -> x * Sigmoid(alpha * x)"""

    name = "swish"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Swish(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return sigmoid_product(op, match.x, match.root.attributes.get_float("alpha", 1.0))


class QuickGelu(Rule):
    """com.microsoft.QuickGelu(x) -> x * Sigmoid(alpha * x)"""

    name = "quick-gelu"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.QuickGelu(x, _domain="com.microsoft")

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        return sigmoid_product(op, match.x, match.root.attributes.get_float("alpha", 1.702))


class HardSwish(Rule):
    """HardSwish(x) -> x * HardSigmoid(x / 6 + 1 / 2)"""

    name = "hard-swish"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.HardSwish(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        value: ir.Value = op.Mul(match.x, op.HardSigmoid(match.x, alpha=1 / 6, beta=0.5))
        return value


class Mish(Rule):
    """Mish(x) -> x * Tanh(Softplus(x))"""

    name = "mish"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Mish(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        value: ir.Value = op.Mul(match.x, op.Tanh(op.Softplus(match.x)))
        return value


class Celu(Rule):
    """Celu(x) -> Max(x, 0) + Min(alpha * (Exp(x / alpha) - 1), 0)"""

    name = "celu"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Celu(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x, alpha = match.x, match.root.attributes.get_float("alpha", 1.0)
        zero, one, width = (number(value, x) for value in (0.0, 1.0, alpha))
        below = op.Mul(op.Sub(op.Exp(op.Div(x, width)), one), width)
        value: ir.Value = op.Add(op.Max(x, zero), op.Min(below, zero))
        return value


class Square(Rule):
    """Pow(x, 2) -> x * x"""

    name = "square"

    def pattern(self, op: PatternBuilder, x: Any, power: Any) -> Apply:
        return op.Pow(x, power)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        power: ir.Value = match.power
        if scalar(power) != 2 or (power.shape is not None and len(power.shape) > 1):
            return None
        value: ir.Value = op.Mul(match.x, match.x)
        return value


class ThresholdedRelu(Rule):
    """ThresholdedRelu(x) -> Where(x > alpha, x, 0)"""

    name = "thresholded-relu"

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.ThresholdedRelu(x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        x = match.x
        alpha = number(match.root.attributes.get_float("alpha", 1.0), x)
        value: ir.Value = op.Where(op.Greater(x, alpha), x, number(0.0, x))
        return value

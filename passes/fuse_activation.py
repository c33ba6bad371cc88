"""Activations that exporters spell out become one node: Gelu, Swish, HardSwish, Mish and others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from aigcc.ir.weights import scalar
from aigcc.passes.conditions import FLOATS
from aigcc.pipeline.pattern import Apply, Either, Match, PatternBuilder, either
from aigcc.pipeline.rules import Builder, Rule, RulePass


def _gelu_outside(op: PatternBuilder, x: Any, curve: Any) -> list[Apply]:
    """The patterns of x · (1 + curve) / 2."""
    one_more = op.Add(curve, 1.0)
    return [
        op.Mul(op.Mul(x, one_more), 0.5),
        op.Mul(either(op.Mul(x, 0.5), op.Div(x, 2.0)), one_more),
        op.Mul(x, either(op.Mul(one_more, 0.5), op.Div(one_more, 2.0))),
        op.Div(op.Mul(x, one_more), 2.0),
    ]


def _like_root(match: Match, x: ir.Value) -> bool:
    """Whether an activation of `x` can stand for the root: floats, and nothing was broadcast."""
    root = match.root.outputs[0]
    if x.dtype not in FLOATS:
        return False
    return x.shape is None or root.shape is None or len(x.shape) == len(root.shape)


class GeluErf(Rule):
    """x · (1 + Erf(x / √2)) / 2  ->  Gelu(x)"""

    name = "gelu"
    opset = 20

    def pattern(self, op: PatternBuilder, x: Any) -> Sequence[Apply]:
        inside = either(op.Div(x, math.sqrt(2)), op.Mul(x, math.sqrt(0.5)))
        return _gelu_outside(op, x, op.Erf(inside))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _like_root(match, match.x):
            return None
        made: ir.Value = op.Gelu(match.x, _like=match.x)
        return made


class GeluTanh(Rule):
    """x · (1 + Tanh(√(2/π) · (x + 0.044715 · x³))) / 2  ->  Gelu(x, approximate="tanh")"""

    name = "gelu-tanh"
    opset = 20

    def pattern(self, op: PatternBuilder, x: Any) -> Sequence[Apply]:
        square = either(op.Mul(x, x), op.Pow(x, 2.0))
        k, slope = 0.044715, math.sqrt(2 / math.pi)
        cubic = either(
            op.Mul(op.Pow(x, 3.0), k),
            op.Mul(op.Mul(square, x), k),
            op.Mul(op.Mul(square, k), x),
            op.Mul(square, op.Mul(x, k)),
        )
        factor = op.Add(op.Mul(square, k), 1.0)
        inside = either(
            op.Mul(either(op.Add(cubic, x), op.Mul(factor, x)), slope),
            op.Mul(op.Mul(x, slope), factor),
        )
        return _gelu_outside(op, x, op.Tanh(inside))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _like_root(match, match.x):
            return None
        made: ir.Value = op.Gelu(match.x, approximate="tanh", _like=match.x)
        return made


class Swish(Rule):
    """x · Sigmoid(α · x)  ->  Swish(x, α), which runtimes make of its parts by themselves"""

    name = "swish"
    opset = 24
    raises = False

    def pattern(self, op: PatternBuilder, x: Any, alpha: Any) -> Sequence[Apply]:
        return [op.Mul(x, op.Sigmoid(x)), op.Mul(x, op.Sigmoid(op.Mul(x, alpha)))]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        given = getattr(match, "alpha", None)
        alpha = 1.0 if given is None else scalar(given)
        if alpha is None or not _like_root(match, match.x):
            return None
        made: ir.Value = op.Swish(
            match.x, alpha=None if alpha == 1 else float(alpha), _like=match.x
        )
        return made


def _clipped(op: PatternBuilder, x: Any, low: Any, high: Any) -> Either:
    """The patterns of a Clip between two numbers."""
    return either(op.Clip(x, low, high), op.Min(op.Max(x, low), high), op.Min(op.Relu(x), high))


class HardSigmoid(Rule):
    """Clip(x + 3, 0, 6) / 6  ->  HardSigmoid(x, 1/6, 1/2)"""

    name = "hard-sigmoid"
    opset = 6

    def pattern(self, op: PatternBuilder, x: Any) -> Sequence[Apply]:
        clipped = _clipped(op, op.Add(x, 3.0), 0.0, 6.0)
        return [op.Div(clipped, 6.0), op.Mul(clipped, 1 / 6)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _like_root(match, match.x):
            return None
        made: ir.Value = op.HardSigmoid(match.x, alpha=1 / 6, beta=0.5, _like=match.x)
        return made


class HardSwish(Rule):
    """x · HardSigmoid(x, 1/6, 1/2)  ->  HardSwish(x)"""

    name = "hard-swish"
    opset = 14

    def pattern(self, op: PatternBuilder, x: Any) -> Sequence[Apply]:
        clipped = _clipped(op, op.Add(x, 3.0), 0.0, 6.0)
        return [
            op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5)),
            op.Div(op.Mul(x, clipped), 6.0),
            op.Mul(op.Mul(x, clipped), 1 / 6),
            op.Mul(either(op.Div(x, 6.0), op.Mul(x, 1 / 6)), clipped),
        ]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _like_root(match, match.x):
            return None
        made: ir.Value = op.HardSwish(match.x, _like=match.x)
        return made


class Mish(Rule):
    """x · Tanh(Softplus(x))  ->  Mish(x)"""

    name = "mish"
    opset = 18

    def pattern(self, op: PatternBuilder, x: Any) -> Apply:
        return op.Mul(x, op.Tanh(op.Softplus(x)))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _like_root(match, match.x):
            return None
        made: ir.Value = op.Mish(match.x, _like=match.x)
        return made


@dataclasses.dataclass(frozen=True)
class FuseActivation(RulePass):
    """Make one activation node from its arithmetic.

    ```
    s = Sigmoid (x); y = Mul (x, s)      →      y = Swish (x)
    ```
    Infinities and NaN come out as before; only a product that overflows on the left, such as that
    of 6 and a number near the largest of the type, need not on the right.
    """

    name: ClassVar[str] = "fuse-activation"
    rules: ClassVar[tuple[Rule, ...]] = (
        GeluErf(),
        GeluTanh(),
        HardSigmoid(),
        HardSwish(),
        Mish(),
        Swish(),
    )

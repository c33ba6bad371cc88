"""ONNX Runtime's own operators from those of the standard."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from aigcc.passes.conditions import number
from aigcc.passes.legal.norms import rms_norm
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Replacement, Rule

_DOMAIN = "com.microsoft"
_EPSILON = 1e-12  # of norms that add first, where they name none


class FusedMatMul(Rule):
    """com.microsoft.FusedMatMul(a, b) -> alpha * MatMul(Transpose(a), Transpose(b))"""

    name = "fused-matmul"

    def pattern(self, op: PatternBuilder, a: Any, b: Any) -> Apply:
        return op.FusedMatMul(a, b, _domain=_DOMAIN)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        attributes = match.root.attributes
        if attributes.get_int("transBatchA", 0) or attributes.get_int("transBatchB", 0):
            raise NoMatch("it moves its batch")
        a, b = (
            _swapped(op, x) if attributes.get_int(name, 0) else x
            for x, name in ((match.a, "transA"), (match.b, "transB"))
        )
        alpha = attributes.get_float("alpha", 1.0)
        value: ir.Value = op.MatMul(a, b)
        return value if alpha == 1 else op.Mul(value, number(alpha, value))


def _swapped(op: Builder, x: ir.Value) -> ir.Value:
    if x.shape is None:
        raise NoMatch("the rank of its input is not known")
    rank = len(x.shape)
    value: ir.Value = op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])
    return value


class SkipLayerNorm(Rule):
    """com.microsoft.SkipLayerNormalization(x, s, g, b, c) -> LayerNormalization(x + s + c, g, b)"""

    name = "skip-layer-norm"
    opset = 17

    def pattern(
        self, op: PatternBuilder, x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None
    ) -> Apply:
        return op.SkipLayerNormalization(x, skip, gamma, beta, bias, _domain=_DOMAIN)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        total = _total(op, match)
        epsilon = match.root.attributes.get_float("epsilon", _EPSILON)
        y = op.LayerNormalization(total, match.gamma, match.beta, axis=-1, epsilon=epsilon)
        return _outputs(match.root, y, total)


class SkipRmsNorm(Rule):
    """com.microsoft.SkipSimplifiedLayerNormalization(x, s, g) -> RMSNormalization(x + s, g)"""

    name = "skip-rms-norm"

    def pattern(self, op: PatternBuilder, x: Any, skip: Any, gamma: Any, bias: Any = None) -> Apply:
        return op.SkipSimplifiedLayerNormalization(x, skip, gamma, bias, _domain=_DOMAIN)

    def rewrite(self, op: Builder, match: Match) -> Replacement:
        total = _total(op, match)
        y = rms_norm(op, total, match.gamma, match.root, _EPSILON)
        return _outputs(match.root, y, total)


def _total(op: Builder, match: Match) -> ir.Value:
    total: ir.Value = op.Add(match.x, match.skip)
    return total if match.bias is None else op.Add(total, match.bias)


def _outputs(node: ir.Node, y: ir.Value, total: ir.Value) -> dict[ir.Value, ir.Value]:
    """The norm and the sum, which is the fourth output; mean and deviation are for training."""
    return {node.outputs[0]: y, **({node.outputs[3]: total} if len(node.outputs) > 3 else {})}

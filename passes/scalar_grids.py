"""One scale for a whole tensor is a scalar, however it was written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import constant
from aigcc.passes.conditions import keeping
from aigcc.pipeline.pattern import Apply, Match, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule


class ScalarGrid(Rule):
    """QuantizeLinear(x, [s], [z]) -> QuantizeLinear(x, s, z), and DequantizeLinear alike

    A scale of shape [1] is one for the whole tensor: of a scale for each index of an axis that has
    more than one, ONNX Runtime says the same. Compilers of devices take it for the latter. Blocks
    are left alone: there the rank of the scale means something.
    """

    name = "scalar-grid"

    def pattern(self, op: PatternBuilder, x: Any, scale: Any, zero: Any = None) -> list[Apply]:
        return [op.QuantizeLinear(x, scale, zero), op.DequantizeLinear(x, scale, zero)]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        root, given = match.root, [match.scale, match.zero]
        grid = [constant(value) for value in given if value is not None]
        if any(tensor is None or tensor.size != 1 or len(tensor.shape) > 1 for tensor in grid):
            return None
        if not any(len(tensor.shape) for tensor in grid if tensor is not None):
            return None
        if root.attributes.get_int("block_size", 0):
            return None
        scalars = [
            op.constant(_scalar(t), name) for t, name in zip(grid, ("scale", "zero"), strict=False)
        ]
        kept = keeping(root, "axis")
        made: ir.Value = op.node(
            root.op_type, [match.x, *scalars], {**kept, "_like": root.outputs[0]}
        )
        return made


def _scalar(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol:
    assert tensor is not None
    return ir.Tensor(np.asarray(tensor.numpy()).reshape(()), dtype=tensor.dtype)

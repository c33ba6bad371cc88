"""Sums, products and extremes of no elements at all, which are constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.passes.conditions import product
from aigcc.pipeline.pattern import Apply, Match, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

_SUMS = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
_LOGS = ("ReduceLogSum", "ReduceLogSumExp")
_EXTREMES = ("ReduceMax", "ReduceMin")
_LARGEST = 1 << 16


class EmptyReduction(Rule):
    """ReduceSum(x) over no elements -> 0; a product is 1, a maximum the least there is"""

    name = "empty-reduction"

    def pattern(self, op: PatternBuilder, x: Any, axes: Any = None) -> list[Apply]:
        names = (*_SUMS, *_LOGS, *_EXTREMES, "ReduceProd")
        return [getattr(op, name)(x, axes) for name in names]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, y = match.x, match.root.outputs[0]
        if x.shape is None or y.shape is None or x.dtype is None or 0 not in list(x.shape):
            return None
        elements = product(y.shape)  # none where nothing is reduced
        if not elements or elements > _LARGEST:
            return None
        number = _of_nothing(match.root.op_type, x.dtype.numpy())
        return None if number is None else op.constant(np.full(y.shape.numpy(), number), "nothing")


def _of_nothing(name: str, dtype: np.dtype[Any]) -> np.ndarray | None:
    """What a reduction of no elements gives; None where the standard does not say."""
    if name in _SUMS or name == "ReduceProd":
        return np.array(int(name == "ReduceProd"), dtype)
    is_max = name != "ReduceMin"
    if dtype == np.bool_:
        return np.array(not is_max, dtype)
    if dtype.kind in "iu":
        if name in _LOGS:
            return None
        info = np.iinfo(dtype)
        return np.array(info.min if is_max else info.max, dtype)
    return np.array(-math.inf if is_max else math.inf, dtype)

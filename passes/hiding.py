"""Numbers that hide scores from a softmax: where they flow, and what float16 has in their place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.positions import lowest_score
from aigcc.passes.masks import FINITE

HIDES = -lowest_score(ir.DataType.FLOAT)
"""From this size on a float32 that reaches only softmaxes stands for infinity."""

_INFINITE = float(np.finfo(np.float32).max) * 0.99
_LARGEST = float(np.finfo(np.float16).max)
_DEEPEST = 24

# Operators that hand the numbers of a mask on, with the inputs that they take them from.
_PASSES_ON: dict[str, frozenset[int]] = {
    **dict.fromkeys(
        ("Cast", "Expand", "Gather", "Identity", "ReduceMax", "Reshape", "Slice", "Split",
         "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze"),
        frozenset({0}),
    ),
    **dict.fromkeys(("Add", "Concat", "Max", "Min", "Mul", "Sub", "Sum"), frozenset(range(9))),
    "Div": frozenset({0}),
    "Where": frozenset({1, 2}),
}  # fmt: skip
_ENDS: dict[str, int] = {"Attention": 3, "Equal": -1, "Greater": -1, "Less": -1, "Softmax": 0}


def hides(value: ir.Value) -> bool:
    """Whether all that a value is for is to be a mask: it reaches the scores of softmaxes alone."""
    return _hides(value, _DEEPEST)


def _hides(value: ir.Value, depth: int) -> bool:
    users = value.uses()
    if not users or value.is_graph_output() or not depth:
        return False
    for node, place in users:
        if node.domain not in ("", "ai.onnx"):
            return False
        if _ENDS.get(node.op_type) in (place, -1):
            continue
        if place not in _PASSES_ON.get(node.op_type, ()):
            return False
        if not all(_hides(output, depth - 1) for output in node.outputs):
            return False
    return True


def visible(array: npt.NDArray[Any], is_mask: bool) -> npt.NDArray[Any]:
    """The numbers of a float32 array that stand for themselves, not for infinity."""
    limit = HIDES if is_mask else _INFINITE
    with np.errstate(invalid="ignore"):
        kept = np.abs(array) < limit
    return array if kept.all() else array[kept]


def narrow(array: npt.NDArray[Any], is_mask: bool = False) -> npt.NDArray[Any]:
    """An array as float16, where infinities come from infinities alone.

    The numbers of a mask become some that stay numbers when scores are added to them.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    overflowed = np.isinf(half) & np.isfinite(array)
    if overflowed.any():
        limit = np.float16(-FINITE[ir.DataType.FLOAT16] if is_mask else _LARGEST)
        half[overflowed] = np.copysign(limit, array[overflowed])
    return half

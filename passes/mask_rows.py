"""Which masks are proven to leave something of each row of scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.extent import FLOATS
from aigcc.analysis.extents import Extents
from aigcc.analysis.positions import Choice, Positions, same_dim
from aigcc.ir.weights import constant

_LARGEST = 1 << 24
_DEEPEST = 16


def keeps_every_row(mask: ir.Value, *, inverted: bool = False) -> bool:
    """Whether a mask provably leaves each row, along its last dim, a key that is not hidden.

    Args:
        mask: bool (True attends), or numbers that are added to scores (-inf hides).
        inverted: True hides.
    """
    return _Rows().are_kept(mask, inverted, _DEEPEST)


class _Rows:
    """Proofs that no row is hidden whole."""

    def __init__(self) -> None:
        self._extents = Extents()
        self._positions = Positions()

    def are_kept(self, mask: ir.Value | None, inverted: bool, depth: int) -> bool:
        if mask is None or mask.shape is None or not len(mask.shape) or not depth:
            return False
        if mask.dtype != ir.DataType.BOOL and self._extents.of(mask).low > -math.inf:
            return True
        tensor = constant(mask)
        if tensor is not None:
            return tensor.nbytes <= _LARGEST and _constant_keeps(tensor.numpy(), inverted)
        if self._first_is_kept(mask, inverted):
            return True
        node = mask.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        inputs = [value for value in node.inputs if value is not None]
        match node.op_type:
            case "Not":
                return self.are_kept(inputs[0], not inverted, depth - 1)
            case "And" | "Or" if (node.op_type == "Or") != inverted:
                return any(self._is_kept_in(mask, value, inverted, depth) for value in inputs)
            case "Where" if mask.dtype != ir.DataType.BOOL:
                return self._choice_keeps(mask, inputs, depth)
            case "Add":
                a, b = inputs
                return any(
                    self._is_kept_in(mask, x, inverted, depth)
                    and self._extents.of(y).low > -math.inf
                    for x, y in ((a, b), (b, a))
                )
            case "Cast" | "Identity" if inputs[0].dtype == mask.dtype or _widens(node):
                return self.are_kept(inputs[0], inverted, depth - 1)
            case "Expand" | "Unsqueeze" | "Reshape" | "Squeeze":
                return self._is_kept_in(mask, inputs[0], inverted, depth)
        return False

    def _is_kept_in(self, mask: ir.Value, part: ir.Value, inverted: bool, depth: int) -> bool:
        """Whether `part` has rows of the same keys, and leaves each one."""
        shape = part.shape
        if shape is None or mask.shape is None or not len(shape):
            return False
        if not same_dim(shape[-1], mask.shape[-1]):
            return False
        return self.are_kept(part, inverted, depth - 1)

    def _choice_keeps(self, mask: ir.Value, inputs: list[ir.Value], depth: int) -> bool:
        condition, x, y = inputs
        low = [self._extents.of(value).low for value in (x, y)]
        if low[0] > -math.inf and self._is_kept_in(mask, condition, False, depth):
            return True
        return low[1] > -math.inf and self._is_kept_in(mask, condition, True, depth)

    def _first_is_kept(self, mask: ir.Value, inverted: bool) -> bool:
        """Whether it depends on positions alone, and the first key is never hidden."""
        form = self._positions.of(mask)
        if not isinstance(form, Choice):
            return False
        start, slopes = form.test.start, form.test.slopes[:-1]
        is_then = start >= 0 and all(slope >= 0 for slope in slopes)
        is_otherwise = start < 0 and all(slope <= 0 for slope in slopes)
        number = form.then if is_then else form.otherwise
        if not (is_then or is_otherwise):
            return False
        return bool(number) != inverted if mask.dtype == ir.DataType.BOOL else number > -math.inf


def _widens(cast: ir.Node) -> bool:
    """Whether a Cast of floats cannot make an infinity of a number."""
    source, made = (v.dtype if v is not None else None for v in (cast.inputs[0], cast.outputs[0]))
    return source in FLOATS and made in FLOATS and FLOATS[made] >= FLOATS[source]


def _constant_keeps(array: npt.NDArray[Any], inverted: bool) -> bool:
    if array.ndim == 0 or 0 in array.shape:
        return False
    kept = array != inverted if array.dtype == bool else array > -np.inf
    return bool(kept.any(axis=-1).all())

"""The values of small tensors, traced through a graph as symbolic expressions.

What a rule does not know for certain, an attribute of a later opset or an input that is known only
when the model runs, it leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from aigcc.ir.shapes.arithmetic import ARITHMETIC
from aigcc.ir.shapes.elements import READABLE, elementwise, fitted
from aigcc.ir.shapes.movement import MOVEMENT
from aigcc.ir.shapes.site import Array, Site, Untraceable

MAX_ELEMENTS = 256
_MAX_BYTES = 1024
_MAX_DEPTH = 100

RULES = {**ARITHMETIC, **MOVEMENT}


class Values:
    """Finds the elements of small tensors by tracing them back to shapes and constants.

    Args:
        opset: The version of the default domain.
        known: Elements of values that nothing in the graph computes.
        defaults_are_constant: Whether an initializer that is also a graph input is a constant,
            as it is up to IR version 3.
    """

    def __init__(
        self,
        opset: int,
        known: Mapping[ir.Value, Array] | None = None,
        *,
        defaults_are_constant: bool = False,
    ) -> None:
        self._opset = opset
        self._memo: dict[ir.Value, Array | None] = dict(known or {})
        self._defaults_are_constant = defaults_are_constant
        self._depth = 0

    def get(self, value: ir.Value) -> Array | None:
        """The elements of `value` in its own shape, or None where they cannot be traced."""
        if value not in self._memo:
            self._memo[value] = self._trace(value)
        return self._memo[value]

    def _trace(self, value: ir.Value) -> Array | None:
        node = value.producer()
        if node is None:
            is_constant = not value.is_graph_input() or self._defaults_are_constant
            return from_tensor(value.const_value) if is_constant else None
        if node.domain != "" or node.op_type not in RULES or self._depth > _MAX_DEPTH:
            return None
        rule, attributes = RULES[node.op_type]
        if any(
            name not in attributes or node.attributes[name].is_ref() for name in node.attributes
        ):
            return None
        self._depth += 1
        try:
            array = rule(Site(node, self._opset, self.get, value.index() or 0))
        except Untraceable:
            return None
        except (ValueError, IndexError, OverflowError):
            # The node is illegal; that is for the type inference of the same node to say.
            return None
        finally:
            self._depth -= 1
        dtype = value.dtype
        if dtype not in READABLE or np.size(array) > MAX_ELEMENTS:
            return None
        return elementwise(lambda element: fitted(dtype, element))(np.asarray(array, dtype=object))


def from_tensor(tensor: ir.TensorProtocol | None) -> Array | None:
    """The elements of a small tensor of numbers or booleans, None for any other."""
    if tensor is None or tensor.dtype not in READABLE or tensor.nbytes > _MAX_BYTES:
        return None
    dtype = tensor.dtype
    return elementwise(lambda element: fitted(dtype, element))(tensor.numpy().astype(object))

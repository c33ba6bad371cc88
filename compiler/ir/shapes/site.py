"""One node as a rule sees it: the dims, dtypes and known elements of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import sympy

from aigcc.ir.shapes.dims import Dim, to_dims

Element: TypeAlias = "int | float | bool | sympy.Expr"
Array = npt.NDArray[np.object_]


class Untraceable(Exception):
    """An input that decides the result has elements that nobody knows before the model runs."""


class Site:
    """One node of a graph.

    Args:
        node: The node.
        opset: The version of its domain.
        known: Gives the elements of a value, or None where they cannot be traced.
        output: The index of the output that is asked for.
    """

    def __init__(
        self,
        node: ir.Node,
        opset: int,
        known: Callable[[ir.Value], Array | None],
        output: int = 0,
    ) -> None:
        self.node = node
        self.opset = opset
        self.output = output
        self._known = known

    def input(self, index: int) -> ir.Value | None:
        """Input `index`, or None where it is left out."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) else None

    def dims(self, index: int) -> list[Dim] | None:
        """The dims of input `index`, or None where its rank is not known."""
        value = self.input(index)
        return None if value is None else to_dims(value.shape)

    def dtype(self, index: int) -> ir.DataType | None:
        """The element type of input `index`."""
        value = self.input(index)
        return None if value is None else value.dtype

    def known(self, index: int) -> Array | None:
        """The elements of input `index`, where it is small and they can be traced."""
        value = self.input(index)
        return None if value is None else self._known(value)

    def array(self, index: int) -> Array:
        """The elements of input `index`.

        Raises:
            Untraceable: They are not known, or there is no such input.
        """
        known = self.known(index)
        if known is None:
            raise Untraceable
        return known

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def elements(self, name: str, index: int, default: Any = None) -> Any:
        """A list that is attribute `name` in old opsets and input `index` in new ones.

        Raises:
            Untraceable: It is an input whose elements are not known.
        """
        if name in self.node.attributes:
            return list(self.node.attributes[name].value)
        if self.input(index) is None:
            return default
        return self.array(index).ravel().tolist()

    def ints(self, name: str, index: int, default: Any = None) -> Any:
        """Like `elements`, of whole numbers that are static.

        Raises:
            Untraceable: It is an input, and not all of its elements are known numbers.
        """
        elements = self.elements(name, index, default)
        if elements is not None and not all(isinstance(element, int) for element in elements):
            raise Untraceable
        return elements

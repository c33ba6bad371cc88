"""A node as the adapters between versions see it, and what they ask of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import read


@dataclasses.dataclass(frozen=True)
class Call:
    """An operator on inputs: values, arrays that become constants, other calls, or absent ones."""

    op_type: str
    inputs: tuple[Operand, ...]
    attributes: Mapping[str, ir.Attr] = dataclasses.field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.known(name)
        return default if attribute is None else attribute.as_int()

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.known(name)
        return default if attribute is None else attribute.as_string()

    def numbers(self, name: str) -> list[int] | None:
        """An attribute of integers, None where it is absent."""
        attribute = self.known(name)
        return None if attribute is None else list(attribute.as_ints())

    def known(self, name: str) -> ir.Attr | None:
        """An attribute, None where it is absent.

        Raises:
            Blocked: it is a parameter of the function that the node is in.
        """
        attribute = self.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            raise Blocked(f"its attribute {name} is a parameter of the function")
        return attribute

    def replace(self, *, drop: Sequence[str] = (), **attributes: Any) -> Call:
        """The same call without some attributes and with others."""
        kept = {name: a for name, a in self.attributes.items() if name not in drop}
        made = ir.convenience.convert_attributes(attributes)
        return dataclasses.replace(self, attributes={**kept, **{a.name: a for a in made}})

    def give(self, *inputs: Operand) -> Call:
        """The same call on other inputs."""
        return dataclasses.replace(self, inputs=inputs)


class Blocked(Exception):
    """A node that means nothing in the other version; the sentence goes on after its name."""


Operand: TypeAlias = "ir.Value | np.ndarray | Call | None"
Adapter = Callable[[Call, ir.Node], Call]


def call(op_type: str, *inputs: Operand, **attributes: Any) -> Call:
    """A call with attributes given as numbers, strings and lists."""
    return Call(op_type, inputs).replace(**attributes)


def integers(values: Sequence[int]) -> np.ndarray:
    """A constant of int64."""
    return np.array(values, np.int64)


def data(node: ir.Node) -> ir.Value:
    """The first input of a node."""
    value = node.inputs[0]
    assert value is not None
    return value


def dims(value: Operand) -> list[int | ir.SymbolicDim]:
    """The shape of an input.

    Raises:
        Blocked: its rank is not known.
    """
    if isinstance(value, np.ndarray):
        return list(value.shape)
    if not isinstance(value, ir.Value) or value.shape is None:
        raise Blocked("has an input of unknown rank: run infer-shapes first")
    return list(value.shape)


def dtype_of(node: ir.Node) -> np.dtype[Any]:
    """The element type of the first input of a node.

    Raises:
        Blocked: it is not known.
    """
    dtype = data(node).dtype
    if dtype is None:
        raise Blocked("the type of its input is not known: run infer-shapes first")
    return dtype.numpy()


def constant(old: Call, place: int) -> np.ndarray:
    """An input that is a constant.

    Raises:
        Blocked: it is computed.
    """
    given = old.inputs[place]
    array = given if isinstance(given, np.ndarray) else None
    if isinstance(given, ir.Value):
        array = read(given)
    if array is None:
        raise Blocked(f"computes its input {place}, which must be an attribute there")
    return array


def is_used(node: ir.Node, output: int) -> bool:
    """Whether anything depends on an output of a node."""
    if len(node.outputs) <= output:
        return False
    return bool(node.outputs[output].uses()) or node.outputs[output].is_graph_output()


def to_inputs(*names: str) -> Adapter:
    """Attributes of integers become inputs of the same order, behind the first one."""

    def adapter(old: Call, node: ir.Node) -> Call:
        arrays = [old.numbers(name) for name in names]
        while arrays and arrays[-1] is None:
            arrays.pop()
        given = [None if array is None else integers(array) for array in arrays]
        return old.replace(drop=names).give(old.inputs[0], *given)

    return adapter

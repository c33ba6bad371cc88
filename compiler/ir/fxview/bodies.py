"""The body of a function for one call of it, typed; and operators that ONNX defines by others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from aigcc.ir.edit import held_graphs
from aigcc.ir.fxview.registry import key
from aigcc.ir.shapes.inference import Walk
from aigcc.ir.shapes.site import Array
from aigcc.ir.shapes.values import Values


@dataclasses.dataclass(frozen=True)
class Body:
    """A copy of a function for one call.

    Attributes:
        function: The copy; it has the attributes of the call, and the types that follow.
        originals: The values of the function that the constants of the copy stand for; those
            whose number the call gives are not among them.
        imports: The opset of each domain.
    """

    function: ir.Function
    originals: Mapping[ir.Value, ir.Value]
    imports: Mapping[str, int]


def one_spelling(imports: Mapping[str, int]) -> dict[str, int]:
    """The opset of each domain, where the default domain has one name."""
    return {"" if name == "ai.onnx" else name: version for name, version in imports.items()}


def body_of(
    call: ir.Node,
    function: ir.Function,
    functions: Mapping[ir.OperatorIdentifier, ir.Function],
    known: Mapping[int, np.ndarray],
) -> Body:
    """The body of a function, copied for one call.

    Args:
        call: The node that calls; its inputs have their types.
        function: What it calls; it stays as it is.
        functions: All functions.
        known: The arrays of inputs that are constant.

    Raises:
        ModelError: a node of the body does not take what the call gives.
    """
    made = function.clone()
    originals: dict[ir.Value, ir.Value] = {}
    for inner, outer in zip(made.all_nodes(), function.all_nodes(), strict=True):
        if not any(a.is_ref() for a in outer.attributes.data.values()):
            originals |= dict(zip(inner.outputs, outer.outputs, strict=True))
        for graph, original in zip(held_graphs(inner), held_graphs(outer), strict=True):
            stored = (g.initializers.values() for g in (graph, original))
            originals |= dict(zip(*stored, strict=True))
        for value in inner.outputs:
            value.type = value.shape = None
        _bind(inner, call, function)
    numbers: dict[ir.Value, Array] = {}
    for index, formal in enumerate(made.inputs):
        actual = call.inputs[index] if index < len(call.inputs) else None
        if actual is None:
            for use in formal.uses():
                use.node.replace_input_with(use.idx, None)
            continue
        formal.type, formal.shape = actual.type, actual.shape
        if index in known:
            numbers[formal] = known[index].astype(object)
    imports = one_spelling(function.opset_imports)
    walk = Walk(functions, Values(imports.get("", 0), numbers), only_missing=False)
    walk.graph(made, imports)
    return Body(made, originals, imports)


def _bind(inner: ir.Node, call: ir.Node, function: ir.Function) -> None:
    """Replace references to attributes of the function by what the call gives, or the default."""
    for name, attribute in list(inner.attributes.data.items()):
        if attribute.ref_attr_name is None:
            continue
        given = call.attributes.data.get(attribute.ref_attr_name)
        given = given or function.attributes.get(attribute.ref_attr_name)
        if given is None or given.value is None:
            del inner.attributes.data[name]
        else:
            inner.attributes.add(ir.Attr(name, given.type, given.value))


@functools.cache
def schema_of(domain: str, op: str, version: int) -> onnx.defs.OpSchema | None:
    """What ONNX says of an operator, None where it says nothing."""
    if version < 1 or not onnx.defs.has(op, domain):
        return None
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None  # it came into being after this version


@functools.cache
def default_of(domain: str, op: str, version: int, name: str) -> Any:
    """The value that an attribute has where it is left out; None if it has none."""
    schema = schema_of(domain, op, version)
    attribute = None if schema is None else schema.attributes.get(name)
    if attribute is None or not attribute.default_value.type:
        return None
    return ir.serde.deserialize_attribute(attribute.default_value).value


def is_defined(schema: onnx.defs.OpSchema | None) -> bool:
    """Whether ONNX defines an operator by others."""
    return schema is not None and (schema.has_function or schema.has_context_dependent_function)


def definition(node: ir.Node, version: int) -> ir.Function | None:
    """The function by which ONNX defines an operator for the inputs of a node, if it does.

    Args:
        node: Its inputs have their types, on which the definition may depend.
        version: The opset of its domain.
    """
    domain, op = key(node)
    schema = schema_of(domain, op, version)
    if schema is None or not is_defined(schema):
        return None
    if schema.has_function:
        body = _latest(schema.function_opset_versions, version)
        data = schema.get_function_with_opset_version(body)
    else:
        body = _latest(schema.context_dependent_function_opset_versions, version)
        data = schema.get_context_dependent_function_with_opset_version(
            body, ir.to_proto(node).SerializeToString(), [_type(value) for value in node.inputs]
        )
    proto = onnx.FunctionProto.FromString(data)
    produced = {*proto.input, *(name for inner in proto.node for name in inner.output)}
    while proto.output[-1] not in produced:  # one that the node leaves out
        del proto.output[-1]
    made: ir.Function = ir.serde.deserialize_function(proto)
    for attribute in schema.attributes.values():
        if attribute.default_value.type:
            made.attributes.add(ir.serde.deserialize_attribute(attribute.default_value))
    return made


def _latest(versions: list[int], version: int) -> int:
    return max((v for v in versions if v <= version), default=min(versions))


def _type(value: ir.Value | None) -> bytes:
    made = onnx.TypeProto() if value is None or value.type is None else ir.to_proto(value).type
    data: bytes = made.SerializeToString()
    return data

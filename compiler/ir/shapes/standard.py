"""One node of a standard operator: what ONNX's own inference says, and what rules of ours say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import onnx
import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.operators import SCALAR_INPUTS
from aigcc.ir.shapes.dims import UNKNOWN, spelled, to_dims
from aigcc.ir.shapes.operands import Dims, Type
from aigcc.ir.shapes.rules import STANDARD, is_doubtful
from aigcc.ir.shapes.site import Array, Site
from aigcc.ir.signatures import node_text

Typed = tuple[Type, Dims]
Out = TypeVar("Out")

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
# Ops of which ONNX is asked and whose output dims depend on the values of floats.
_READS_FLOATS = ("OneHot",)
_TENSORS = (ir.TensorType, ir.SparseTensorType)
_NOTHING: tuple[Type, ir.Shape | None] = (None, None)


@functools.cache
def schema_of(domain: str, op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """What the standard says of an operator, or None where it had none in that opset."""
    if not onnx.defs.has(op_type, domain) or not 0 < opset < 2**31:
        return None
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        # The op came into being after this opset.
        return None


def standard_types(site: Site, schema: onnx.defs.OpSchema) -> list[Typed]:
    """The types and dims of a node's outputs.

    Where the standard's inference is known to differ from what runtimes make, only rules of ours
    count; elsewhere they fill in what it leaves open, mostly the arithmetic of symbolic dims.

    Raises:
        ModelError: The inputs contradict each other.
    """
    node = site.node
    is_asked = not schema.deprecated and not is_doubtful(site)
    theirs = _onnx_types(site, schema) if is_asked else [_NOTHING] * len(node.outputs)
    kinds = [kind for kind, _ in theirs]
    for index, kind in enumerate(_schema_types(node, schema)):
        kinds[index] = kinds[index] or kind
    dims = [to_dims(shape) for _, shape in theirs]
    if any(each is not None and 0 in each for each in dims) and _has_symbolic_dims(node):
        # ONNX's rule for Attention mistakes a symbolic dim for 0.
        dims = [each and [dim if dim != 0 else UNKNOWN for dim in each] for each in dims]
    if any(each is None or UNKNOWN in each for each in dims) and node.op_type in STANDARD:
        ours = list(apply(STANDARD[node.op_type], site))
        ours += [None] * (len(dims) - len(ours))
        dims = [_fill(each, own) for each, own in zip(dims, ours, strict=False)]
    return list(zip(kinds, dims, strict=True))


def _fill(dims: Dims, more: Dims) -> Dims:
    """`dims`, with what is unknown taken from `more`."""
    if dims is None or more is None or len(dims) != len(more):
        return more if dims is None else dims
    return [other if dim is UNKNOWN else dim for dim, other in zip(dims, more, strict=True)]


def _has_symbolic_dims(node: ir.Node) -> bool:
    dims = [dim for value in node.inputs if value is not None for dim in value.shape or ()]
    return 0 not in dims and any(isinstance(dim, ir.SymbolicDim) for dim in dims)


def has_known_inputs(node: ir.Node) -> bool:
    """Whether all inputs of a node have a type and a rank."""
    return all(value is None or is_typed(value) for value in node.inputs)


def is_typed(value: ir.Value) -> bool:
    """Whether a value has a type, and a rank where it needs one."""
    # The elements of a sequence need not share one shape.
    kind = value.type
    return kind is not None and (value.shape is not None or not isinstance(kind, _TENSORS))


def apply(rule: Callable[[Site], Sequence[Out]], site: Site) -> Sequence[Out]:
    """What a rule says of a node; a node that a rule cannot read is an illegal one."""
    try:
        return rule(site)
    except (ValueError, IndexError, TypeError, ArithmeticError) as error:
        why = "their ranks, lengths or the attributes do not fit together"
        raise _unacceptable(site.node, why) from error


def _unacceptable(node: ir.Node, why: str) -> ModelError:
    return ModelError(
        f"{node.op_type} does not accept its inputs: {why}",
        at=place(node),
        hint=f"its inputs are {', '.join(_signature(value) for value in node.inputs)}",
    )


def place(node: ir.Node) -> str:
    """Where a node is, for messages."""
    graph = node.graph.name if node.graph is not None else None
    return f"graph {graph!r}, {node_text(node)}" if graph else node_text(node)


def _schema_types(node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[Type]:
    """The type of each output where the standard's table of types leaves no choice."""
    bound: dict[str, ir.TypeProtocol] = {}
    for index, value in enumerate(node.inputs):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)] if schema.inputs else None
        if formal is not None and formal.is_homogeneous and value is not None and value.type:
            bound.setdefault(formal.type_str, value.type)
    for index in range(len(node.outputs)):
        formal = schema.outputs[min(index, len(schema.outputs) - 1)]
        kind: Type = bound.get(formal.type_str) if formal.is_homogeneous else None
        if kind is None and len(formal.types) == 1:
            (text,) = formal.types
            name = text.removeprefix("tensor(").removesuffix(")").upper()
            kind = ir.TensorType(ir.DataType[name]) if name in ir.DataType.__members__ else None
        yield kind


def _onnx_types(site: Site, schema: onnx.defs.OpSchema) -> list[tuple[Type, ir.Shape | None]]:
    """What ONNX's inference says of the outputs of one node."""
    node = site.node
    proto = _node_proto(node)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    scalars = SCALAR_INPUTS.get(node.op_type, ())
    for index, (name, value) in enumerate(zip(proto.input, node.inputs, strict=True)):
        if value is not None:
            types[name] = _type_proto(value)
            if value.dtype in _INTEGERS or node.op_type in _READS_FLOATS:
                known = site.known(int(name))
                if known is not None and index in scalars and known.size == 1:
                    known = known.reshape(())
                tensor = _tensor_proto(known, value.dtype)
                if tensor is not None:
                    data[name] = tensor
    opset = onnx.OperatorSetIdProto(domain=node.domain, version=site.opset)
    try:
        results = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[opset]
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        if not has_known_inputs(node):
            return [_NOTHING] * len(node.outputs)
        # ONNX says "[ShapeInferenceError] what is wrong", then where it found that in C++.
        why = str(error).strip().splitlines()[0].rpartition("Error] ")[2]
        raise _unacceptable(node, why) from None
    return [_from_proto(results[name]) if name in results else _NOTHING for name in proto.output]


def _from_proto(proto: onnx.TypeProto) -> tuple[Type, ir.Shape | None]:
    element = proto.sequence_type.elem_type if proto.HasField("sequence_type") else proto
    if element.HasField("map_type"):
        # `onnx_ir` has no maps, which classifiers of ai.onnx.ml alone make.
        return None, None
    kind = ir.serde.deserialize_type_proto_for_type(proto)
    return kind, ir.serde.deserialize_type_proto_for_shape(proto)


def _signature(value: ir.Value | None) -> str:
    if value is None:
        return "left out"
    return f"{value.name}: {value.type or '?'}{value.shape if value.shape is not None else '[?]'}"


def _node_proto(node: ir.Node) -> onnx.NodeProto:
    """The node with its inputs and outputs named by position, so that it needs no names."""
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    proto.input.extend("" if value is None else str(i) for i, value in enumerate(node.inputs))
    proto.output.extend("" if value.name == "" else f"o{i}" for i, value in enumerate(node.outputs))
    for attribute in node.attributes.values():
        if attribute.ref_attr_name is None:
            ir.serde.serialize_attribute_into(proto.attribute.add(), attribute)
    return proto


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if not isinstance(value.type, ir.TensorType):
        if value.type is not None:
            ir.serde.serialize_type_into(proto, value.type)
            if value.shape is not None:
                ir.serde.serialize_shape_into(proto, value.shape)
        return proto
    proto.tensor_type.elem_type = value.type.dtype.value
    if value.shape is None:
        return proto
    shape = proto.tensor_type.shape
    shape.SetInParent()
    # The normal form of symbolic dims, so that ONNX finds equal ones equal.
    for dim in to_dims(value.shape) or ():
        text = spelled(dim)
        if isinstance(text, int):
            shape.dim.add(dim_value=text)
        else:
            shape.dim.add(dim_param=text)
    return proto


def _tensor_proto(array: Array | None, dtype: ir.DataType | None) -> onnx.TensorProto | None:
    """The elements as a constant, if all of them are static."""
    if array is None or dtype is None:
        return None
    if not all(isinstance(element, int | float) for element in array.flat):
        return None
    data = array.astype(dtype.numpy())
    return onnx.TensorProto(data_type=dtype.value, dims=array.shape, raw_data=data.tobytes())

"""Type and shape inference in place, node by node, through sub-graphs and functions."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import onnx
import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.edit import held_graphs
from aigcc.ir.shapes.contrib import CONTRIB
from aigcc.ir.shapes.control import CONTROL_FLOW, Type, joined
from aigcc.ir.shapes.dims import UNKNOWN, Dim, is_known, spelled, to_dims, to_shape
from aigcc.ir.shapes.rules import STANDARD, Dims
from aigcc.ir.shapes.site import Array, Site
from aigcc.ir.shapes.values import Values
from aigcc.ir.signatures import node_text

Imports = Mapping[str, int]
Out = TypeVar("Out")

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
# The only ops whose output dims depend on the values of floats.
_READS_FLOATS = ("Resize", "Upsample", "Range", "OneHot")
# ONNX adds output_padding to what auto_pad asks for, where runtimes make that size with it; and in
# old opsets counts windows with ceil_mode that begin behind the last number.
_OURS_FIRST = ("AveragePool", "ConvTranspose", "LpPool", "MaxPool")
_TENSORS = (ir.TensorType, ir.SparseTensorType)


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A node that inference could not see through, though all of its inputs are known.

    Attributes:
        node: The node; what hangs on it is not reported.
        reason: Why its outputs have no type or no rank.
    """

    node: ir.Node
    reason: str

    def __str__(self) -> str:
        return f"{_place(self.node)}: {self.reason}"


def infer_shapes(model: ir.Model, *, only_missing: bool = False) -> list[Stopped]:
    """Give every value of a model its type and shape, as far as they follow from the inputs.

    ONNX's inference runs on one node at a time, so that no weight is ever serialised, and rules of
    our own go on where it stops: at symbolic dims, whose arithmetic is traced through `Shape`,
    `Gather`, `Concat` and the like, and at ONNX Runtime's operators. What a value already says is
    kept unless more is known; a static dim replaces a symbolic one. A function's values get
    what all its calls agree on.

    Args:
        model: The model; changed in place. It must verify.
        only_missing: Leave nodes alone whose outputs have a type and a rank, and return at once
            where that is all of them. For after a rewrite.

    Returns:
        The first nodes, in graph order, whose outputs stay without type or rank.

    Raises:
        ModelError: A node's inputs contradict each other, or its outputs what is declared.
    """
    if only_missing and all(_is_complete(value) for value in _computed_values(model)):
        return []
    imports = _normalised(model.opset_imports)
    values = Values(imports.get("", 0), defaults_are_constant=model.ir_version < 4)
    walk = Walk(model.functions, values, only_missing)
    walk.graph(model.graph, imports)
    walk.settle_functions()
    return list(walk.stopped.values())


def infer_node(node: ir.Node, opset: int) -> None:
    """Give the outputs of one node their types and shapes, from those of its inputs.

    Args:
        node: A node of the default domain or of `com.microsoft`, in a graph or not.
        opset: The version of the node's domain.

    Raises:
        ModelError: The inputs contradict each other, or the outputs what is declared.
    """
    Walk({}, Values(opset), only_missing=False).node(node, {"": opset, node.domain: opset})


def _computed_values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph.all_nodes():
        yield from node.outputs


def _is_done(node: ir.Node) -> bool:
    return all(_is_complete(value) for value in node.outputs) and not held_graphs(node)


def _is_complete(value: ir.Value) -> bool:
    # An output without a name is one that the node leaves out.
    return value.name == "" or _is_typed(value)


def _is_typed(value: ir.Value) -> bool:
    # The elements of a sequence need not share one shape.
    kind = value.type
    return kind is not None and (value.shape is not None or not isinstance(kind, _TENSORS))


def _normalised(imports: Imports) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in imports.items()}


@dataclasses.dataclass
class Walk:
    """One pass over a graph and whatever it holds or calls.

    Attributes:
        functions: The model-local functions.
        values: Traces the elements of small tensors.
        only_missing: Skip nodes whose outputs are complete.
        stopped: The nodes that inference did not see through.
        seen: What the calls so far agree on for the values of functions.
    """

    functions: Mapping[tuple[str, str, str], ir.Function]
    values: Values
    only_missing: bool
    stopped: dict[ir.Node, Stopped] = dataclasses.field(default_factory=dict)
    seen: dict[ir.Value, tuple[Type, Dims]] = dataclasses.field(default_factory=dict)

    def graph(self, graph: ir.Graph | ir.Function, imports: Imports) -> None:
        """Infer all nodes of a graph, in order."""
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                _type_initializer(value)
        for node in graph:
            self.node(node, imports)

    def node(self, node: ir.Node, imports: Imports) -> None:
        """Infer the outputs of one node from its inputs."""
        if self.only_missing and _is_done(node):
            return
        function = self.functions.get(node.op_identifier())
        if function is not None:
            reason = self._call(node, function)
        elif node.domain == "" and node.op_type in CONTROL_FLOW:
            reason = CONTROL_FLOW[node.op_type](self, node, imports)
        else:
            for graph in held_graphs(node):
                self.graph(graph, imports)
            site = Site(node, imports.get(node.domain, 0), self.values.get)
            reason = self._operator(site)
        if not all(_is_complete(value) for value in node.outputs) and _has_known_inputs(node):
            self.stopped[node] = Stopped(node, reason)

    def _operator(self, site: Site) -> str:
        """Infer a node that is no call and has no sub-graph; why it stopped, if it did."""
        node = site.node
        schema = _schema(node.domain, node.op_type, site.opset)
        contrib = CONTRIB.get((node.domain, node.op_type))
        if schema is None and contrib is None:
            return f"nothing is known of {node.domain or 'ai.onnx'}:{node.op_type}"
        if schema is None and contrib is not None:
            for output, (dtype, dims) in zip(node.outputs, _apply(contrib, site), strict=False):
                self.merge(node, output, None if dtype is None else ir.TensorType(dtype), dims)
            return f"the rule for {node.op_type} leaves it open"
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            dims = list(tensor.shape.numpy())
            self.merge(node, node.outputs[0], ir.TensorType(tensor.dtype), dims)
            return "a Constant without a shape"
        return self._standard(site, schema)

    def _standard(self, site: Site, schema: onnx.defs.OpSchema) -> str:
        node = site.node
        types = _onnx_types(site, schema)
        dims = [to_dims(shape) for _, shape in types]
        if any(each is not None and 0 in each for each in dims) and _has_symbolic_dims(node):
            # ONNX's rule for Attention mistakes a symbolic dim for 0.
            dims = [each and [dim if dim != 0 else UNKNOWN for dim in each] for each in dims]
        is_open = any(each is None or UNKNOWN in each for each in dims)
        if (is_open or node.op_type in _OURS_FIRST) and node.op_type in STANDARD:
            pairs = zip(dims, _apply(STANDARD[node.op_type], site), strict=False)
            if node.op_type in _OURS_FIRST:
                dims = [_fill(own, theirs) for theirs, own in pairs]
            else:
                dims = [_fill(theirs, own) for theirs, own in pairs]
        for output, (kind, _), known in zip(node.outputs, types, dims, strict=False):
            self.merge(node, output, kind, known)
        return f"ONNX does not infer {node.op_type} of opset {site.opset}"

    def merge(self, node: ir.Node, value: ir.Value, kind: Type, dims: Dims) -> None:
        """Add to what a value says; a dim that is known stays, except that static beats symbolic.

        Raises:
            ModelError: The value says otherwise.
        """
        if kind is not None:
            if value.type is None:
                value.type = _own(kind)
            elif value.type != kind:
                raise _contradiction(node, value, str(value.type), str(kind))
        if dims is None:
            return
        if value.shape is None:
            value.shape = to_shape(dims)
            return
        old = to_dims(value.shape) or []
        merged = [_merged_dim(a, b) for a, b in zip(old, dims, strict=False)]
        if len(old) != len(dims) or None in merged:
            raise _contradiction(node, value, str(value.shape), str(to_shape(dims)))
        if any(new is not before for new, before in zip(merged, old, strict=True)):
            shape = value.shape.copy()
            for axis, dim in enumerate(to_shape(dim for dim in merged if dim is not None)):
                if merged[axis] is not old[axis]:
                    shape[axis] = dim
            value.shape = shape

    def _call(self, node: ir.Node, function: ir.Function) -> str:
        """Infer a copy of the function's body for the types and attributes of this call."""
        body = function.clone()
        known: dict[ir.Value, Array] = {}
        for index, formal in enumerate(body.inputs):
            actual = node.inputs[index] if index < len(node.inputs) else None
            if actual is None:
                for use in formal.uses():
                    use.node.replace_input_with(use.idx, None)
                continue
            formal.type, formal.shape = actual.type, actual.shape
            array = self.values.get(actual)
            if array is not None:
                known[formal] = array
        for inner in body.all_nodes():
            _bind_attributes(inner, node, function)
            for value in inner.outputs:
                value.type = value.shape = None
        imports = _normalised(function.opset_imports)
        walk = Walk(self.functions, Values(imports.get("", 0), known), False, seen=self.seen)
        walk.graph(body, imports)
        originals = dict(zip(body.all_nodes(), function.all_nodes(), strict=True))
        for inner, stop in walk.stopped.items():
            if inner in originals:
                self.stopped.setdefault(originals[inner], Stopped(originals[inner], stop.reason))
        pairs = list(zip(body.inputs, function.inputs, strict=True))
        for inner, original in originals.items():
            pairs += zip(inner.outputs, original.outputs, strict=True)
        for value, original_value in pairs:
            self._see(original_value, value)
        for output, result in zip(node.outputs, body.outputs, strict=False):
            self.merge(node, output, result.type, to_dims(result.shape))
        return f"the body of function {function.name} does not say"

    def _see(self, original: ir.Value, value: ir.Value) -> None:
        found = value.type, to_dims(value.shape)
        before = self.seen.get(original, found)
        self.seen[original] = joined(before, found)

    def settle_functions(self) -> None:
        """Write down what the calls of each function agree on."""
        for value, (kind, dims) in self.seen.items():
            value.type = kind and _own(kind)
            value.shape = None if dims is None else to_shape(dims)

    def stable_state(
        self,
        body: ir.Graph,
        imports: Imports,
        fixed: Sequence[tuple[Type, Dims]],
        state: Sequence[ir.Value],
    ) -> list[tuple[Type, Dims]]:
        """What holds for a loop's state in every round: the initial types, less what changes.

        Args:
            body: The loop's body, whose outputs are skipped as its inputs are: those of `fixed`.
            imports: The opsets in force.
            fixed: The types of the body's leading inputs that are no state.
            state: The initial values.
        """
        types = [(value.type, to_dims(value.shape)) for value in state]
        while True:
            trial = body.clone(allow_outer_scope_values=True)
            for value, (kind, dims) in zip(trial.inputs, [*fixed, *types], strict=False):
                value.type, value.shape = kind, None if dims is None else to_shape(dims)
            walk = dataclasses.replace(self, only_missing=False, stopped={}, seen={})
            try:
                walk.graph(trial, imports)
            finally:
                for node in trial.all_nodes():
                    # The trial must not stay a user of the values around the loop.
                    node.resize_inputs(0)
            skip = 1 if fixed else 0
            after = [
                joined(before, (value.type, to_dims(value.shape)))
                for before, value in zip(types, trial.outputs[skip:], strict=False)
            ]
            if after == types:
                return types
            types = after


def _own(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    """A copy, since setting the dtype of a value changes its type object."""
    if isinstance(kind, ir.TensorType):
        return ir.TensorType(kind.dtype, denotation=kind.denotation)
    return copy.deepcopy(kind)


def _type_initializer(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    if value.type is None:
        value.type = ir.TensorType(tensor.dtype)
    if value.shape is None:
        value.shape = ir.Shape(tensor.shape.numpy())


def _bind_attributes(inner: ir.Node, call: ir.Node, function: ir.Function) -> None:
    """Replace references to the function's attributes by what the call passes, or the defaults."""
    for name, attribute in list(inner.attributes.items()):
        if attribute.ref_attr_name is None:
            continue
        actual = call.attributes.get(attribute.ref_attr_name)
        actual = actual or function.attributes.get(attribute.ref_attr_name)
        if actual is None or actual.value is None:
            del inner.attributes[name]
        else:
            inner.attributes.add(ir.Attr(name, actual.type, actual.value))


def _has_known_inputs(node: ir.Node) -> bool:
    return all(value is None or _is_typed(value) for value in node.inputs)


def _has_symbolic_dims(node: ir.Node) -> bool:
    dims = [dim for value in node.inputs if value is not None for dim in value.shape or ()]
    return 0 not in dims and any(isinstance(dim, ir.SymbolicDim) for dim in dims)


def _fill(dims: Dims, more: Dims) -> Dims:
    """`dims`, with what is unknown taken from `more`."""
    if dims is None or more is None or len(dims) != len(more):
        return more if dims is None else dims
    return [other if dim is UNKNOWN else dim for dim, other in zip(dims, more, strict=True)]


def _merged_dim(old: Dim, new: Dim) -> Dim | None:
    """The better of two claims about one dim, or None where they contradict each other."""
    if isinstance(old, int) and isinstance(new, int):
        return old if old == new else None
    if isinstance(old, int) or not is_known(new):
        return old
    return new if isinstance(new, int) or not is_known(old) else old


def _contradiction(node: ir.Node, value: ir.Value, declared: str, inferred: str) -> ModelError:
    return ModelError(
        f"value {value.name!r} is declared {declared}, but {node.op_type} makes {inferred}",
        at=_place(node),
        hint="correct the declaration, or clear it where a rewrite changes what the value is",
    )


def _place(node: ir.Node) -> str:
    graph = node.graph.name if node.graph is not None else None
    return f"graph {graph!r}, {node_text(node)}" if graph else node_text(node)


def _apply(rule: Callable[[Site], Sequence[Out]], site: Site) -> Sequence[Out]:
    """What a rule says of a node; a node that a rule cannot read is an illegal one."""
    try:
        return rule(site)
    except (ValueError, IndexError, TypeError) as error:
        why = "their ranks, lengths or the attributes do not fit together"
        raise _unacceptable(site.node, why) from error


def _unacceptable(node: ir.Node, why: str) -> ModelError:
    return ModelError(
        f"{node.op_type} does not accept its inputs: {why}",
        at=_place(node),
        hint=f"its inputs are {', '.join(_signature(value) for value in node.inputs)}",
    )


@functools.cache
def _schema(domain: str, op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    if not onnx.defs.has(op_type, domain) or opset < 1:
        return None
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        # The op came into being after this opset.
        return None


def _onnx_types(site: Site, schema: onnx.defs.OpSchema) -> list[tuple[Type, ir.Shape | None]]:
    """What ONNX's inference says of the outputs of one node."""
    node = site.node
    nothing: tuple[Type, ir.Shape | None] = (None, None)
    if not schema.has_type_and_shape_inference_function:
        if node.op_type not in STANDARD or not node.inputs or node.inputs[0] is None:
            return [nothing] * len(node.outputs)
        # Such ops of ours have one output, of the type of their first input.
        return [(node.inputs[0].type, None)]
    first = site.input(0)
    if node.op_type == "Range" and first and any(v is not None and v.shape for v in node.inputs):
        return [(first.type, None)]  # of tensors [1], which runtimes take as long as they can
    proto = _node_proto(node)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for name, value in zip(proto.input, node.inputs, strict=True):
        if value is not None:
            types[name] = _type_proto(value)
            if value.dtype in _INTEGERS or node.op_type in _READS_FLOATS:
                tensor = _tensor_proto(site.known(int(name)), value.dtype)
                if tensor is not None:
                    data[name] = tensor
    opset = onnx.OperatorSetIdProto(domain=node.domain, version=site.opset)
    try:
        results = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[opset]
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        if not _has_known_inputs(node):
            return [nothing] * len(node.outputs)
        # ONNX says "[ShapeInferenceError] what is wrong", then where it found that in C++.
        why = str(error).strip().splitlines()[0].rpartition("Error] ")[2]
        raise _unacceptable(node, why) from None
    return [_from_proto(results[name]) if name in results else nothing for name in proto.output]


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

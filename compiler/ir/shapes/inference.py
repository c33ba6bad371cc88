"""Type and shape inference in place, node by node, through sub-graphs and functions."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence

import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.edit import held_graphs
from aigcc.ir.shapes.contrib import CONTRIB
from aigcc.ir.shapes.control import CONTROL_FLOW, joined
from aigcc.ir.shapes.declarations import Declarations, name_inputs, symbols_of
from aigcc.ir.shapes.dims import to_dims, to_shape
from aigcc.ir.shapes.operands import Dims, Type
from aigcc.ir.shapes.site import Array, Site
from aigcc.ir.shapes.standard import (
    apply,
    has_known_inputs,
    is_typed,
    place,
    schema_of,
    standard_types,
)
from aigcc.ir.shapes.values import Values

Imports = Mapping[str, int]

_MOST_CALLS = 10_000  # of functions, each with other types: functions may call each other
_PLAIN = (int, float, str, bytes, tuple, list)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something worth knowing about a node that inference met.

    Attributes:
        node: The node.
        reason: What it is about, as a sentence.
    """

    node: ir.Node
    reason: str

    def __str__(self) -> str:
        return f"{place(self.node)}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Stopped(Finding):
    """A node that inference could not see through, though all of its inputs are known.

    What hangs on it is not reported. The reason says why its outputs have no type or no rank.
    """


@dataclasses.dataclass(frozen=True)
class Dropped(Finding):
    """A node of which a false shape was declared; what it makes counts."""


def infer_shapes(model: ir.Model, *, only_missing: bool = False) -> list[Finding]:
    """Give every value of a model its type and shape, as far as they follow from the inputs.

    ONNX's inference runs on one node at a time, so that no weight is ever serialised, and rules of
    our own go on where it stops: at symbolic dims, whose arithmetic is traced through `Shape`,
    `Gather`, `Concat` and the like, and at ONNX Runtime's operators. The inputs' shapes are law;
    what is declared of other values counts where inference finds nothing, and gives names to dims.
    A function's values get what all its calls agree on.

    Args:
        model: The model; changed in place. It must verify.
        only_missing: Leave nodes alone whose outputs have a type and a rank, and return at once
            where that is all of them. For after a rewrite.

    Returns:
        The first nodes, in graph order, whose outputs stay without type or rank, and those of
        which a false shape was declared.

    Raises:
        ModelError: A node's inputs contradict each other, or an output is declared of another type.
    """
    if only_missing and all(_is_complete(value) for value in _computed_values(model)):
        return []
    imports = _normalised(model.opset_imports)
    values = Values(imports.get("", 0), defaults_are_constant=model.ir_version < 4)
    name_inputs(model.graph)
    walk = Walk(model.functions, values, only_missing, Declarations(symbols_of(model.graph)))
    walk.graph(model.graph, imports)
    walk.settle_functions()
    return [*walk.dropped, *walk.stopped.values()]


def infer_node(node: ir.Node, opset: int) -> None:
    """Give the outputs of one node their types and shapes, from those of its inputs.

    Args:
        node: A node of the default domain or of `com.microsoft`, in a graph or not.
        opset: The version of the node's domain.

    Raises:
        ModelError: The inputs contradict each other, or the outputs what is declared.
    """
    walk = Walk({}, Values(opset), only_missing=False)
    walk.node(node, {"": opset, node.domain: opset})
    for false in walk.dropped:
        raise ModelError(
            false.reason,
            at=place(node),
            hint="correct the declaration, or clear it where a rewrite changes what the value is",
        )


def _computed_values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph.all_nodes():
        yield from node.outputs


def _is_done(node: ir.Node) -> bool:
    return all(_is_complete(value) for value in node.outputs) and not held_graphs(node)


def _is_complete(value: ir.Value) -> bool:
    # An output without a name is one that the node leaves out.
    return value.name == "" or is_typed(value)


def _normalised(imports: Imports) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in imports.items()}


@dataclasses.dataclass
class Walk:
    """One pass over a graph and whatever it holds or calls.

    Attributes:
        functions: The model-local functions.
        values: Traces the elements of small tensors.
        only_missing: Skip nodes whose outputs are complete.
        declarations: What the declared names of dims stand for.
        stopped: The nodes that inference did not see through.
        dropped: The nodes of which false shapes were declared.
        seen: What the calls so far agree on for the values of functions.
        called: What functions have made, by how they were called.
    """

    functions: Mapping[tuple[str, str, str], ir.Function]
    values: Values
    only_missing: bool
    declarations: Declarations = dataclasses.field(default_factory=Declarations)
    dropped: list[Dropped] = dataclasses.field(default_factory=list)
    stopped: dict[ir.Node, Stopped] = dataclasses.field(default_factory=dict)
    seen: dict[ir.Value, tuple[Type, Dims]] = dataclasses.field(default_factory=dict)
    called: dict[Hashable, list[tuple[Type, Dims]]] = dataclasses.field(default_factory=dict)

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
        if not all(_is_complete(value) for value in node.outputs) and has_known_inputs(node):
            self.stopped[node] = Stopped(node, reason)

    def _operator(self, site: Site) -> str:
        """Infer a node that is no call and has no sub-graph; why it stopped, if it did."""
        node = site.node
        schema = schema_of(node.domain, node.op_type, site.opset)
        contrib = CONTRIB.get((node.domain, node.op_type))
        if schema is None and contrib is None:
            return f"nothing is known of {node.domain or 'ai.onnx'}:{node.op_type}"
        if schema is None and contrib is not None:
            for output, (dtype, dims) in zip(node.outputs, apply(contrib, site), strict=False):
                self.merge(node, output, None if dtype is None else ir.TensorType(dtype), dims)
            return f"the rule for {node.op_type} leaves it open"
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            dims = list(tensor.shape.numpy())
            self.merge(node, node.outputs[0], ir.TensorType(tensor.dtype), dims)
            return "a Constant without a shape"
        for output, (kind, dims) in zip(node.outputs, standard_types(site, schema), strict=True):
            self.merge(node, output, kind, dims)
        return f"ONNX does not infer {node.op_type} of opset {site.opset}"

    def merge(self, node: ir.Node, value: ir.Value, kind: Type, dims: Dims) -> None:
        """Write down what a node makes, which counts more than what is declared of it.

        Raises:
            ModelError: The value is declared of another type.
        """
        if kind is not None:
            if value.type is None:
                value.type = _own(kind)
            elif value.type != kind:
                raise ModelError(
                    _contradiction(node, value, str(value.type), str(kind)),
                    at=place(node),
                    hint="correct the declaration, or clear it where a rewrite changes the type",
                )
        if dims is not None:
            false = self.declarations.settle(value, dims)
            if false is not None:
                reason = _contradiction(node, value, str(false), str(value.shape))
                self.dropped.append(Dropped(node, reason))

    def _call(self, node: ir.Node, function: ir.Function) -> str:
        """Infer a copy of the function's body for the types and attributes of this call."""
        key = self._key(node)
        if key not in self.called:
            if len(self.called) >= _MOST_CALLS:
                return "functions are called in too many ways"
            self.called[key] = self._call_once(node, function)
        for output, (kind, dims) in zip(node.outputs, self.called[key], strict=False):
            self.merge(node, output, kind, dims)
        return f"the body of function {function.name} does not say"

    def _key(self, call: ir.Node) -> Hashable:
        """What decides the types in the body of a function that is called."""
        operands = []
        for value in call.inputs:
            array = None if value is None else self.values.get(value)
            elements = None if array is None else (array.dtype.str, repr(array.tolist()))
            operands.append(value and (repr(value.type), repr(value.shape), elements))
        given = sorted((name, attribute.value) for name, attribute in call.attributes.items())
        if not all(isinstance(value, _PLAIN) for _, value in given):
            return object()  # tensors and graphs are not compared
        return call.op_identifier(), tuple(operands), repr(given)

    def _call_once(self, node: ir.Node, function: ir.Function) -> list[tuple[Type, Dims]]:
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
        values = Values(imports.get("", 0), known)
        walk = Walk(self.functions, values, False, seen=self.seen, called=self.called)
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
        return [(result.type, to_dims(result.shape)) for result in body.outputs]

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
            walk = dataclasses.replace(
                self,
                only_missing=False,
                declarations=self.declarations.copy(),
                dropped=[],
                stopped={},
                seen={},
                called={},
            )
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


def _contradiction(node: ir.Node, value: ir.Value, declared: str, inferred: str) -> str:
    return f"value {value.name!r} is declared {declared}, but {node.op_type} makes {inferred}"

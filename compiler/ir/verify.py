"""The invariants of the IR, checked over a whole model without touching a weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from aigcc.errors import VerifyError
from aigcc.ir.calls import call_text, check_calls
from aigcc.ir.signatures import (
    Complaint,
    check_body,
    check_call,
    check_imports,
    check_node,
    near,
    node_text,
)

_SHOWN = 10
_NEIGHBOURS = 3
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
GraphLike = ir.Graph | ir.Function


def verify(model: ir.Model) -> None:
    """Check that a model is legal.

    The inputs of the main graph have types. In every graph, sub-graph and function body, each value
    is defined once and before its uses, has a name that no other visible value has, and lists
    exactly the uses that there are; each initializer has data of its declared type and shape; each
    op exists in the imported opset and has the inputs, outputs, attributes and types that its
    schema asks for, where types are known; sub-graphs fit the node that holds them; calls resolve
    and are not recursive, and stand for a million nodes at most. Ops of a domain that ONNX does
    not know are taken as they are. Two nodes may share a name, as it serves diagnosis alone.

    Args:
        model: Any model; it is not changed.

    Raises:
        VerifyError: What is wrong, ten faults at most, with the nodes around the first.
    """
    faults = _Verifier(model).run()
    if faults:
        raise _error(faults)


@dataclasses.dataclass(frozen=True)
class _Fault:
    what: str
    place: str
    node: ir.Node | None = None
    hint: str | None = None

    def where(self) -> str:
        return self.place if self.node is None else f"{self.place}, {node_text(self.node)}"


@dataclasses.dataclass
class _Scope:
    """What is visible at one point of a graph.

    Attributes:
        place: The path to the graph, for messages.
        imports: The opset of each domain.
        parameters: The attributes of the function around, or None outside of functions.
        graphs: The graph and those around it.
        defined: All values defined so far, here and in the graphs around.
        names: The same by name.
    """

    place: str
    imports: Mapping[str, int]
    parameters: Iterable[str] | None
    graphs: tuple[ir.Graph, ...]
    defined: set[ir.Value | None]
    names: dict[str, ir.Value]


class _Verifier:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.faults: list[_Fault] = []
        self.nodes: dict[ir.Node, str] = {}
        self.values: list[ir.Value] = []
        self.uses = 0
        self.missing_imports: set[tuple[str, str]] = set()
        self.function_names: dict[str, list[str]] = {}
        for domain, name, _ in model.functions:
            self.function_names.setdefault(domain, []).append(name)

    def run(self) -> list[_Fault]:
        model = self.model
        place = f"graph {model.graph.name!r}" if model.graph.name else "the main graph"
        self.root(model.graph, place, model.opset_imports, None)
        for value in model.graph.inputs:
            if value.type is None:
                self.fault(f"graph input {value.name!r} has no type", place)
        for identifier, function in model.functions.items():
            place = f"function {call_text(identifier)}"
            if identifier != function.identifier():
                self.fault(f"it is filed as {call_text(function.identifier())}", place)
            if function.graph.initializers:
                what = "a function body cannot have initializers: they would be lost on saving"
                self.fault(what, place, hint="make them Constant nodes")
            self.root(function, place, function.opset_imports, function.attributes.data)
        for what, where, hint in check_calls(model):
            self.fault(what, where, hint=hint)
        self.links()
        return self.faults

    def fault(
        self, what: str, place: str, node: ir.Node | None = None, hint: str | None = None
    ) -> None:
        self.faults.append(_Fault(what, place, node, hint))

    def root(
        self,
        graph: GraphLike,
        place: str,
        imports: Mapping[str, int],
        parameters: Iterable[str] | None,
    ) -> None:
        """Check the main graph or a function's body, which see nothing but themselves."""
        for complaint in check_imports(imports):
            self.fault(complaint.what, place, hint=complaint.hint)
        known = {"" if name == "ai.onnx" else name: version for name, version in imports.items()}
        owner = graph.graph if isinstance(graph, ir.Function) else graph
        self.graph(owner, _Scope(place, known, parameters, (owner,), set(), {}))

    def graph(self, graph: ir.Graph, scope: _Scope) -> None:
        """Check the graph that a scope is for; the values defined there are left in the scope."""
        first = len(self.values)
        for value in graph.inputs:
            self.define(value, scope)
        for name, value in graph.initializers.data.items():
            self.initializer(name, value, scope)
        for node in graph:
            self.node(node, graph, scope)
        own = set(self.values[first:])
        for value in graph.outputs:
            if value not in scope.defined:
                what, hint = _undefined(value, None, scope)
                self.fault(f"graph output: {what}", scope.place, hint=hint)
            elif value not in own:
                what = f"output {value.name!r} is a value of the graph around, not of this one"
                self.fault(what, scope.place, hint="pass it through an Identity")

    def define(self, value: ir.Value, scope: _Scope, node: ir.Node | None = None) -> None:
        """Make a value visible, under a name that is not taken."""
        name = value.name
        if value in scope.defined:
            self.fault(f"value {name!r} is defined twice", scope.place, node)
            return
        scope.defined.add(value)
        self.values.append(value)
        if not name:
            if node is None or value.uses() or value.is_graph_output():
                self.fault("a value that is used has no name", scope.place, node)
        elif scope.names.setdefault(name, value) is not value:
            what = f"two values are named {name!r}"
            self.fault(what, scope.place, node, "a sub-graph may not repeat a name from around it")

    def initializer(self, name: str, value: ir.Value, scope: _Scope) -> None:
        """Check that an initializer has data of the type and shape that it declares."""
        if not value.is_graph_input():
            self.define(value, scope)
        tensor = value.const_value
        if tensor is None:
            self.fault(f"initializer {name!r} has no data", scope.place)
            return
        if value.name != name:
            self.fault(f"initializer {value.name!r} is filed as {name!r}", scope.place)
        if value.producer() is not None:
            self.fault(f"initializer {name!r} is also the output of a node", scope.place)
        if value.type is not None and value.type.dtype != tensor.dtype:
            what = f"initializer {name!r} is declared {value.dtype}, its data is {tensor.dtype}"
            self.fault(what, scope.place)
        shape = value.shape
        if shape is not None and shape != tensor.shape and not _fits(shape, tensor.shape.numpy()):
            what = f"initializer {name!r} is declared {shape}, its data has shape {tensor.shape}"
            self.fault(what, scope.place)

    def node(self, node: ir.Node, graph: ir.Graph, scope: _Scope) -> None:
        """Check one node, then define its outputs."""
        if node.graph is not graph:
            self.fault("the node believes to be in another graph", scope.place, node)
        self.nodes[node] = scope.place
        defined = scope.defined
        for value in node.inputs:
            if value in defined:
                self.uses += 1
            elif value is not None:
                what, hint = _undefined(value, node, scope)
                self.fault(what, scope.place, node, hint)
        for complaint in self.signature(node, scope):
            self.fault(complaint.what, scope.place, node, complaint.hint)
        for attribute in node.attributes.data.values():
            if attribute.ref_attr_name is not None:
                self.reference(attribute.ref_attr_name, node, scope)
            elif attribute.type in _GRAPHS:
                self.subgraphs(attribute, node, scope)
        for index, value in enumerate(node.outputs):
            if value.producer() is not node or value.index() != index:
                what = f"output {value.name!r} does not name this node as its producer"
                self.fault(what, scope.place, node)
            self.define(value, scope, node)

    def signature(self, node: ir.Node, scope: _Scope) -> Iterable[Complaint]:
        """Check a node against its schema, or the function that it calls."""
        domain = node.domain
        opset = scope.imports.get(domain)
        if opset is None:
            if (scope.place, domain) in self.missing_imports:
                return ()
            self.missing_imports.add((scope.place, domain))
            name = f"domain {domain!r}" if domain else "the default domain"
            hint = near(domain, scope.imports) or "add it to the model's opset_imports"
            return [Complaint(f"no opset of {name} is imported", hint)]
        if domain not in self.function_names:
            return check_node(node, opset)
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            return check_call(node, function)
        if domain not in ("", "com.microsoft"):
            what = f"there is no function {call_text(node.op_identifier())}"
            return [Complaint(what, near(node.op_type, self.function_names[domain]))]
        return check_node(node, opset)

    def reference(self, name: str, node: ir.Node, scope: _Scope) -> None:
        """Check that an attribute that stands for a function's attribute is in such a function."""
        if scope.parameters is None:
            what = f"attribute reference @{name} outside of a function"
            self.fault(what, scope.place, node)
        elif name not in scope.parameters:
            what = f"the function has no attribute {name!r}"
            self.fault(what, scope.place, node, near(name, scope.parameters))

    def subgraphs(self, attribute: ir.Attr, node: ir.Node, scope: _Scope) -> None:
        """Check the graphs that a node holds, which see all that is defined before the node."""
        is_one = attribute.type == ir.AttributeType.GRAPH
        for graph in [attribute.as_graph()] if is_one else attribute.as_graphs():
            place = f"{scope.place}, {node_text(node)}, {attribute.name}"
            inner = dataclasses.replace(scope, place=place, graphs=(*scope.graphs, graph))
            first = len(self.values)
            self.graph(graph, inner)
            for value in self.values[first:]:
                scope.defined.discard(value)
                if value.name and scope.names.get(value.name) is value:
                    del scope.names[value.name]
            for complaint in check_body(node, attribute.name, graph, scope.imports.get("", 0)):
                self.fault(complaint.what, scope.place, node, complaint.hint)

    def links(self) -> None:
        """Check that the uses that values list are the inputs that nodes have."""
        listed = 0
        for value in self.values:
            uses = value.uses()
            listed += len(uses)
            for user, index in uses:
                if user not in self.nodes:
                    what = f"value {value.name!r} lists a use by a node outside of the model"
                    hint = "remove nodes with graph.remove(node, safe=True), which ends their uses"
                    self.fault(what, node_text(user), hint=hint)
                elif index >= len(user.inputs) or user.inputs[index] is not value:
                    what = f"value {value.name!r} lists a use as input {index} that there is not"
                    self.fault(what, self.nodes[user], user)
        if listed < self.uses:
            for node, place in self.nodes.items():
                for index, used in enumerate(node.inputs):
                    if used is not None and (node, index) not in used.uses():
                        what = f"value {used.name!r} does not list its use as input {index}"
                        self.fault(what, place, node, "change inputs with replace_input_with")


def _fits(declared: ir.Shape, actual: Sequence[int]) -> bool:
    return len(declared) == len(actual) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(declared, actual, strict=True)
    )


def _undefined(value: ir.Value, node: ir.Node | None, scope: _Scope) -> tuple[str, str | None]:
    """Why a value cannot be used here, and what to do."""
    name, producer = value.name or "", value.producer()
    if producer is None:
        if value.graph is not None and value.graph not in scope.graphs:
            return _invisible(name, value.graph, scope)
        if name in scope.names:
            return f"a value named {name!r} is used that is not the {name!r} of this graph", None
        what = f"value {name!r} is no graph input, no initializer and no output of a node"
        return what, near(name, scope.names)
    if producer.graph is None:
        what = f"value {name!r} comes from a {producer.op_type} that is in no graph"
        return what, "replace all uses of a node's outputs before removing it"
    if producer.graph not in scope.graphs:
        return _invisible(name, producer.graph, scope)
    cycle = _cycle(node, producer) if node is not None else []
    if cycle:
        return f"value {name!r} depends on itself: {' -> '.join(cycle)}", None
    return (
        f"value {name!r} is used before it is made, by a {producer.op_type}",
        "sort the graph with graph.sort()",
    )


def _invisible(name: str, graph: ir.Graph, scope: _Scope) -> tuple[str, str | None]:
    what = f"value {name!r} belongs to graph {graph.name!r}, which is not visible here"
    if scope.parameters is None:
        return what, None
    return what, "a function body sees its inputs alone: pass the value as an input"


def _cycle(node: ir.Node, producer: ir.Node) -> list[str]:
    """The values on a way from `node` back to `node` by way of `producer`; empty if none."""
    next_on_the_way: dict[ir.Node, ir.Node | None] = {producer: None}
    pending = [producer]
    while pending:
        user = pending.pop()
        for before in user.predecessors():
            if before not in next_on_the_way:
                next_on_the_way[before] = user
                pending.append(before)
    if node not in next_on_the_way:
        return []
    path = [node]
    while (step := next_on_the_way[path[-1]]) is not None:
        path.append(step)
    return [step.outputs[0].name or "?" for step in (*path, node)]


def _error(faults: list[_Fault]) -> VerifyError:
    first, *rest = faults
    lines = [first.what]
    lines += [f"also: {fault.what} (at {fault.where()})" for fault in rest[: _SHOWN - 1]]
    if len(faults) > _SHOWN:
        lines.append(f"and {len(faults) - _SHOWN} more")
    at = [first.where(), *_equations(first.node)]
    return VerifyError("\n".join(lines), at="\n".join(at), hint=first.hint)


def _equations(node: ir.Node | None) -> Iterator[str]:
    """The text of the nodes around one, which is marked."""
    if node is None or node.graph is None:
        return
    nodes = list(node.graph)
    place = nodes.index(node) if node in nodes else 0
    start = max(0, place - _NEIGHBOURS)
    for each in nodes[start : place + _NEIGHBOURS + 1]:
        yield f"    {'>>' if each is node else '  '} {_equation(each)}"


def _equation(node: ir.Node) -> str:
    outputs = ", ".join(value.name or "_" for value in node.outputs)
    inputs = ", ".join("_" if value is None else value.name or "?" for value in node.inputs)
    attributes = ", ".join(
        f"{name} = {_attribute(attribute)}" for name, attribute in node.attributes.items()
    )
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    types = ", ".join(
        f"{value.type or '?'}{value.shape if value.shape is not None else '[?]'}"
        for value in node.outputs
    )
    return f"{outputs} = {op} {f'<{attributes}> ' if attributes else ''}({inputs})  # {types}"


def _attribute(attribute: ir.Attr) -> str:
    if attribute.ref_attr_name is not None:
        return f"@{attribute.ref_attr_name}"
    if attribute.type in _GRAPHS or attribute.type == ir.AttributeType.TENSOR:
        return "{...}"
    text = str(attribute.value)
    return text if len(text) <= 40 else f"{text[:37]}..."

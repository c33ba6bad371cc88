"""The way back from onnx-graphsurgeon: a new graph in which nothing untouched has changed."""

from __future__ import annotations

import dataclasses
import re
from collections import ChainMap
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.util.misc import convert_to_onnx_attr_type

from aigcc.errors import ModelError
from aigcc.ir.surgeon.entry import Admission, Origin, Weight, graph_facts, tensor_facts
from aigcc.ir.weights import raw_bytes

_Scope = ChainMap[str, onnx_ir.Value]
_ELEMENT = re.compile(r"(.+)\[([0-9]+)\]")
_FLOATS = (onnx_ir.AttributeType.FLOAT, onnx_ir.AttributeType.FLOATS)


def bring_home(guest: Admission, model: onnx_ir.Model) -> None:
    """Put what became of `guest` into `model`, or leave `model` as it is.

    Args:
        guest: The admission of `model`, after surgery.
        model: Gets a new graph and new functions.

    Raises:
        ModelError: If the guest graph is not a legal model.
    """
    home = _Return(guest)
    graph = home.graph(guest.graph)
    functions = [home.function(function) for function in guest.graph.functions]
    home.remap_devices()
    for made in (graph, *(function.graph for function in functions)):
        try:
            made.sort()
        except ValueError as error:
            raise ModelError("the graph has a cycle", at=f"graph {made.name!r}") from error
    model.graph = graph
    model.functions.clear()
    model.functions.update({function.identifier(): function for function in functions})
    after, before = graph_facts(guest.graph), guest.origins.graphs[id(guest.graph)].shown
    names = ("ir_version", "producer_name", "producer_version")
    for name, new, old in zip(names, after[-3:], before[-3:], strict=True):
        if new != old:
            setattr(model, name, new)


class _Return:
    def __init__(self, guest: Admission) -> None:
        self._origins = guest.origins
        self._guests = {id(o.home): o.guest for o in guest.origins.tensors.values()}
        self._made_by_nodes: dict[onnx_ir.Graph, dict[str | None, onnx_ir.Value]] = {}
        self._moved: dict[onnx_ir.Value, onnx_ir.Value] = {}
        self._nodes: list[onnx_ir.Node] = []

    def graph(self, guest: gs.Graph, outer: _Scope | None = None) -> onnx_ir.Graph:
        """The main graph, or a sub-graph that sees the values of `outer`."""
        home = _home(self._origins.graphs, guest)
        scope = _Scope() if outer is None else outer.new_child()
        initializers = self._initializers(guest, home, scope)
        inputs = [self._declare(tensor, home, scope) for tensor in guest.inputs]
        kept = set(initializers)
        for index, value in enumerate(home.inputs if home else ()):
            if value.is_initializer() and self._moved.get(value) in kept:
                inputs.insert(index, self._moved[value])
        made = self._body(guest, home, scope, inputs, initializers)
        if outer is None:
            made.opset_imports.update(_imports(guest, self._origins.graphs.get(id(guest))))
        elif home:
            made.opset_imports.update(home.opset_imports)
        return made

    def function(self, guest: gs.Function) -> onnx_ir.Function:
        """A model-local function; it holds new constants in Constant nodes."""
        home = _home(self._origins.graphs, guest)
        scope = _Scope()
        constants = []
        for tensor in _constants(guest):
            value = self._declare(tensor, None, scope)
            attribute = onnx_ir.AttrTensor("value", self._tensor(tensor))
            constants.append(onnx_ir.Node("", "Constant", [], [attribute], outputs=[value]))
        inputs = [self._declare(tensor, home and home.graph, scope) for tensor in guest.inputs]
        body = self._body(guest, home and home.graph, scope, inputs, [])
        body.extend(constants)  # sorting moves them to the front
        body.opset_imports.update(_imports(guest, self._origins.graphs.get(id(guest))))
        attributes = self._attributes(guest, home, scope, f"function {guest.name!r}")
        overload = home.overload if home else ""
        return onnx_ir.Function(
            guest.domain or "", guest.name, overload, graph=body, attributes=attributes
        )

    def remap_devices(self) -> None:
        """Point the sharding of nodes at the new values."""
        for node in self._nodes:
            node.device_configurations = tuple(
                dataclasses.replace(
                    configuration,
                    sharding_specs=tuple(
                        dataclasses.replace(spec, value=self._moved[spec.value])
                        for spec in configuration.sharding_specs
                        if spec.value in self._moved
                    ),
                )
                for configuration in node.device_configurations
            )

    def _initializers(
        self, guest: gs.Graph, home: onnx_ir.Graph | None, scope: _Scope
    ) -> list[onnx_ir.Value]:
        """The old initializers that are still used, or never were, then the new ones."""
        used = {tensor.name: tensor for tensor in _constants(guest)}
        inner = [c for sub in guest.subgraphs(recursive=True) for c in _constants(sub)]
        for tensor in inner:
            owner = _home(self._origins.tensors, tensor)
            if owner is not None and owner.graph is home:
                used.setdefault(tensor.name, tensor)
        made = []
        for value in home.initializers.values() if home else ():
            tensor = self._guests.get(id(value))
            if tensor is None:
                self._moved[value] = scope[str(value.name)] = _copy(value, str(value.name))
                made.append(self._moved[value])
            elif tensor.name in used:
                made.append(self._declare(used.pop(tensor.name), home, scope))
        for name, tensor in used.items():
            if name not in scope:
                made.append(self._declare(tensor, home, scope))
        return made

    def _body(
        self,
        guest: gs.Graph,
        home: onnx_ir.Graph | None,
        scope: _Scope,
        inputs: list[onnx_ir.Value],
        initializers: list[onnx_ir.Value],
    ) -> onnx_ir.Graph:
        for node in guest.nodes:
            for tensor in node.outputs:
                if tensor.name:
                    self._declare(tensor, home, scope)
        origin = self._origins.graphs.get(id(guest))
        named = origin is None or (guest.name, guest.doc_string) != origin.shown[:2]
        made = onnx_ir.Graph(
            inputs,
            [self._output(tensor, guest, scope) for tensor in guest.outputs],
            nodes=[self._node(node, scope) for node in guest.nodes],
            initializers=initializers,
            name=guest.name if named or not home else home.name,
            doc_string=guest.doc_string if named or not home else home.doc_string,
            metadata_props=dict(home.metadata_props) if home else None,
        )
        made.meta.update(home.meta if home else {})
        return made

    def _output(self, tensor: gs.Tensor, guest: gs.Graph, scope: _Scope) -> onnx_ir.Value:
        if tensor.name in scope.maps[0]:
            return scope.maps[0][tensor.name]
        raise ModelError(
            f"output {tensor.name!r} is produced by no node of its graph",
            at=f"graph {guest.name!r}",
            hint="give it to the outputs of a node, or take it out of graph.outputs",
        )

    def _node(self, guest: gs.Node, scope: _Scope) -> onnx_ir.Node:
        home = _home(self._origins.nodes, guest)
        at = f"node {guest.name!r} ({guest.op})"
        same = home is not None and (guest.op, guest.domain or "") == (home.op_type, home.domain)
        properties = dict(home.metadata_props) if home else {}
        if not same:
            properties["aigcc.made_by"] = "surgery"
        inputs = [self._resolve(tensor, scope, at) for tensor in guest.inputs]
        outputs = [scope[t.name] if t.name else onnx_ir.Value(name="") for t in guest.outputs]
        made = onnx_ir.Node(
            guest.domain or "",
            guest.op,
            inputs,
            self._attributes(guest, home, scope, at),
            overload=home.overload if same else "",
            outputs=outputs,
            name=guest.name if home else guest.name or None,
            doc_string=home.doc_string if home else None,
            metadata_props=properties,
            device_configurations=home.device_configurations if home else (),
        )
        made.meta.update(home.meta if home else {})
        self._nodes.append(made)
        return made

    def _resolve(self, tensor: gs.Tensor, scope: _Scope, at: str) -> onnx_ir.Value | None:
        if not tensor.name:
            return None
        if tensor.name not in scope:
            raise ModelError(
                f"nothing produces {tensor.name!r}",
                at=at,
                hint="add the node that makes it to graph.nodes, or the value to graph.inputs",
            )
        return scope[tensor.name]

    def _declare(
        self, tensor: gs.Tensor, home: onnx_ir.Graph | None, scope: _Scope
    ) -> onnx_ir.Value:
        """Make the value for a guest tensor and put its name in scope."""
        if tensor.name in scope.maps[0]:
            raise ModelError(
                f"two values are called {tensor.name!r}",
                at=f"graph {home.name!r}" if home else None,
                hint="give each output, input and constant a name of its own",
            )
        old = _home(self._origins.tensors, tensor)
        if isinstance(tensor, gs.Constant):
            made = self._constant(tensor, old)
        else:
            made = self._variable(tensor, old or self._named(tensor.name, home))
        if old is not None:
            self._moved[old] = made
        scope[tensor.name] = made
        return made

    def _constant(self, tensor: gs.Constant, old: onnx_ir.Value | None) -> onnx_ir.Value:
        weight = self._tensor(tensor)
        if old is not None and old.const_value is weight:
            return _copy(old, tensor.name)
        made = onnx_ir.Value(
            name=tensor.name,
            type=onnx_ir.TensorType(weight.dtype),
            shape=onnx_ir.Shape(weight.shape.numpy()),
            const_value=weight,
            doc_string=old.doc_string if old else None,
        )
        for key, text in old.metadata_props.items() if old else ():
            if not key.startswith("aigcc."):  # facts about the old numbers
                made.metadata_props[key] = text
        return made

    def _variable(self, tensor: gs.Variable, old: onnx_ir.Value | None) -> onnx_ir.Value:
        origin = self._origins.tensors.get(id(tensor))
        made = _copy(old, tensor.name) if old else onnx_ir.Value(name=tensor.name)
        made.const_value = None
        facts = tensor_facts(tensor)
        if facts == (origin.shown if origin else (None, None)):
            return made
        dtype, shape = facts
        made.type = None if dtype is None else _type(tensor.type, _home_dtype(dtype))
        if shape is not None:
            sizes = [None if isinstance(d, int) and d < 0 else d for d in shape]
            made.shape = onnx_ir.Shape(sizes)
        else:
            made.shape = None
        return made

    def _named(self, name: str, home: onnx_ir.Graph | None) -> onnx_ir.Value | None:
        """What a node made under that name before, for guests that were copied or made anew."""
        if home is None:
            return None
        if home not in self._made_by_nodes:
            outputs = [value for node in home for value in node.outputs]
            self._made_by_nodes[home] = {value.name: value for value in outputs}
        return self._made_by_nodes[home].get(name)

    def _tensor(self, constant: gs.Constant) -> onnx_ir.TensorProtocol:
        """The weight of a constant: the old one unless its numbers or its dtype changed."""
        values = constant._values
        if isinstance(values, Weight):
            return values.source
        if isinstance(values, LazyValues) and isinstance(values.tensor, onnx.TensorProto):
            return onnx_ir.serde.deserialize_tensor(values.tensor)
        array = np.asarray(constant.values)
        if array.dtype.kind in "OSU":
            return onnx_ir.serde.deserialize_tensor(
                onnx.numpy_helper.from_array(array, constant.name)
            )
        dtype = _home_dtype(constant.export_dtype)
        made = onnx_ir.Tensor(array.astype(dtype.numpy(), copy=False), name=constant.name)
        old = self._origins.weights.get(id(constant))
        if old is None or old.dtype != dtype or old.shape != made.shape:
            return made
        return old if raw_bytes(old) == raw_bytes(made) else made

    def _attributes(
        self,
        guest: gs.Node | gs.Function,
        home: onnx_ir.Node | onnx_ir.Function | None,
        scope: _Scope,
        at: str,
    ) -> list[onnx_ir.Attr]:
        shown = self._origins.nodes[id(guest)].shown if home else {}
        old = dict(home.attributes) if home else {}
        single, lists = _split_lists(guest.attrs)
        for name, attribute in old.items():
            if attribute.type == onnx_ir.AttributeType.GRAPHS and name not in shown:
                lists.setdefault(name, [])
        made = []
        for name in dict.fromkeys([*old, *single, *lists]):
            if name in lists:
                doc = old[name].doc_string if name in old else None
                graphs = [self.graph(graph, scope) for graph in lists[name]]
                made.append(onnx_ir.AttrGraphs(name, graphs, doc))
            elif name in old and name not in shown:  # the guest could not hold it
                made.append(old[name])
            elif name not in single:
                continue
            elif name in old and _same(single[name], shown[name]):
                made.append(old[name])
            elif single[name] is None and isinstance(guest, gs.Function):
                made.append(onnx_ir.Attr(name, onnx_ir.AttributeType.UNDEFINED, None))
            else:
                made.append(self._attribute(name, single[name], old.get(name), scope, at))
        return made

    def _attribute(
        self, name: str, value: Any, old: onnx_ir.Attr | None, scope: _Scope, at: str
    ) -> onnx_ir.Attr:
        doc = old.doc_string if old else None
        if isinstance(value, gs.Graph):
            return onnx_ir.AttrGraph(name, self.graph(value, scope), doc)
        if isinstance(value, gs.Constant):
            return onnx_ir.AttrTensor(name, self._tensor(value), doc)
        if isinstance(value, gs.Node.AttributeRef):
            kind = onnx_ir.AttributeType(convert_to_onnx_attr_type(value.type))
            return onnx_ir.RefAttr(name, value.name, kind, doc)
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        if isinstance(value, type | np.dtype):
            value = int(_home_dtype(value))
        try:
            if old is not None and (old.type in _FLOATS or value == []):
                return onnx_ir.Attr(name, old.type, value, doc_string=doc)
            made = onnx.helper.make_attribute(name, value, doc)
            return onnx_ir.serde.deserialize_attribute(made)
        except (ValueError, TypeError, onnx_ir.serde.SerdeError) as error:
            raise ModelError(
                f"attribute {name!r} cannot be {value!r}: ONNX has numbers, strings, tensors, "
                "graphs, and non-empty lists of one kind of them",
                at=at,
            ) from error


def _split_lists(attributes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[gs.Graph]]]:
    """A guest's attributes, and apart from them the lists of graphs: `name[0]`, `name[1]`, ..."""
    single: dict[str, Any] = {}
    numbered: dict[str, dict[int, gs.Graph]] = {}
    for name, value in attributes.items():
        match = _ELEMENT.fullmatch(name)
        if match and isinstance(value, gs.Graph):
            numbered.setdefault(match[1], {})[int(match[2])] = value
        else:
            single[name] = value
    return single, {name: [found[i] for i in sorted(found)] for name, found in numbered.items()}


def _home(origins: dict[int, Origin], guest: Any) -> Any:
    origin = origins.get(id(guest))
    return None if origin is None else origin.home


def _copy(value: onnx_ir.Value, name: str) -> onnx_ir.Value:
    made = onnx_ir.Value(
        name=name,
        type=value.type,
        shape=value.shape,
        const_value=value.const_value,
        doc_string=value.doc_string,
        metadata_props=dict(value.metadata_props),
    )
    made.meta.update(value.meta)
    return made


def _constants(guest: gs.Graph) -> list[gs.Constant]:
    """The constants that the nodes and outputs of a graph use, sub-graphs aside."""
    used = [tensor for node in guest.nodes for tensor in node.inputs] + guest.outputs
    found: dict[str, gs.Constant] = {}
    for tensor in used:
        if isinstance(tensor, gs.Constant):
            known = found.setdefault(tensor.name, tensor)
            if known._values is not tensor._values:
                raise ModelError(
                    f"two constants with different values are called {tensor.name!r}",
                    at=f"graph {guest.name!r}",
                    hint="give each a name of its own",
                )
    return list(found.values())


def _same(value: Any, shown: Any) -> bool:
    """Whether an attribute is as it was."""
    if isinstance(value, gs.Constant):
        return value is shown and isinstance(value._values, Weight)
    if isinstance(value, gs.Graph):
        return False  # its nodes may have changed
    return type(value) is type(shown) and bool(value == shown)


def _imports(guest: gs.Graph, origin: Origin | None) -> dict[str, int]:
    """The opsets of a graph or function, with version 1 of each domain that is new."""
    imports = {entry.domain: entry.version for entry in guest.import_domains or ()}
    if origin is None or guest.opset != origin.shown[2]:
        imports[""] = guest.opset
    nodes = [*guest.nodes, *(n for sub in guest.subgraphs(recursive=True) for n in sub.nodes)]
    for node in nodes:
        if node.domain:
            imports.setdefault(node.domain, 1)
    return imports


def _home_dtype(dtype: Any) -> onnx_ir.DataType:
    if isinstance(dtype, int):
        return onnx_ir.DataType(dtype)
    return onnx_ir.DataType.from_numpy(np.dtype(dtype))


def _type(kind: str, dtype: onnx_ir.DataType) -> onnx_ir.TypeProtocol:
    tensor = onnx_ir.TensorType(dtype)
    return onnx_ir.SequenceType(tensor) if kind == "sequence_type" else tensor

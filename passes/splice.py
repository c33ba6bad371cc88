"""Sub-graphs that become part of the graph around them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from aigcc.ir.edit import held_graphs
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names


class Splicer:
    """Moves the nodes of sub-graphs, and copies of them, to where the sub-graph's node stands.

    Names may be those of values in other sub-graphs, so that they are given anew where they are
    not the only ones.
    """

    def __init__(self, module: Module) -> None:
        self.names = Names(module)
        self._count: Counter[str] = Counter()
        for graph in module.graphs():
            self._count.update(_names(graph))

    def move(self, body: ir.Graph, graph: GraphLike, place: ir.Node) -> list[ir.Value]:
        """Move all of a sub-graph without inputs in front of a node; returns what its outputs are.

        The sub-graph is left empty.
        """
        outputs = list(body.outputs)
        body.outputs.clear()
        self.hoist(body, graph, place, outputs)
        nodes = list(body)
        for node in nodes:
            self._apart(node)
        body.remove(nodes)
        graph.insert_before(place, nodes)
        return outputs

    def copy(
        self, body: ir.Graph, inputs: Sequence[ir.Value], graph: GraphLike, place: ir.Node
    ) -> list[ir.Value]:
        """Put a copy of a sub-graph without initializers, on some inputs, in front of a node."""
        made = body.clone(allow_outer_scope_values=True)
        for inner in [made, *made.subgraphs()]:
            for value in _values(inner):
                value.type = copy.deepcopy(value.type)  # which `value.dtype = ...` would change
            self._count.update(_names(inner))
        for old, new in zip(made.inputs, inputs, strict=True):
            for node, position in tuple(old.uses()):
                node.replace_input_with(position, new)
        given = dict(zip(made.inputs, inputs, strict=True))
        return [given.get(value, value) for value in self.move(made, graph, place)]

    def hoist(
        self, body: ir.Graph, graph: GraphLike, place: ir.Node, outputs: list[ir.Value]
    ) -> None:
        """Move the initializers of a sub-graph out; those among `outputs` are replaced there."""
        for value in list(body.initializers.values()):
            del body.initializers[str(value.name)]
            self._rename(value)
            if isinstance(graph, ir.Graph):
                graph.register_initializer(value)
                continue
            assert value.const_value is not None
            constant = ir.Node(
                "", "Constant", [], [ir.AttrTensor("value", value.const_value)], num_outputs=1
            )
            (new,) = constant.outputs
            new.name, new.type, new.shape = value.name, value.type, value.shape
            new.const_value = value.const_value
            graph.insert_before(place, constant)
            value.replace_all_uses_with(new)
            outputs[:] = [new if output is value else output for output in outputs]

    def _apart(self, node: ir.Node) -> None:
        """Rename what a node defines, sub-graphs included, where other values have its name."""
        if node.name and self._count[node.name] > 1:
            self._count[node.name] -= 1
            node.name = self.names.fresh(node.name)
        for value in node.outputs:
            self._rename(value)
        for graph in held_graphs(node):
            for value in (*graph.inputs, *graph.initializers.values()):
                self._rename(value)
            for inner in graph:
                self._apart(inner)

    def _rename(self, value: ir.Value) -> None:
        name = value.name
        if name and self._count[name] > 1:
            self._count[name] -= 1
            value.name = self.names.fresh(name)


def _values(graph: GraphLike) -> list[ir.Value]:
    inner = [] if isinstance(graph, ir.Function) else graph.initializers.values()
    own = dict.fromkeys([*graph.inputs, *inner])
    return [*own, *(value for node in graph for value in node.outputs)]


def _names(graph: GraphLike) -> list[str]:
    named = [value.name for value in _values(graph)] + [node.name for node in graph]
    return [name for name in named if name]

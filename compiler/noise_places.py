"""Where a module draws random numbers: tables in the place of draws, counted by rounds of loops."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from aigcc.ir.draws import DRAW, DRAWN, is_draw
from aigcc.ir.edit import held_graphs, remove_node
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.names import Names
from aigcc.noise_forms import FORMS
from aigcc.noise_tables import LENGTH, Counter, Noise
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder, replace_value

_SCAN = 9  # the opset from which on Scan is what it is


def replace_draws(module: Module) -> None:
    """Let tables stand for the draws of a module; draws that have no form for it stay."""
    names = Names(module)
    for root, opset in module.roots():
        _Replacer(module, names, opset).visit(root, ())


@dataclasses.dataclass(frozen=True)
class _Replacer:
    module: Module
    names: Names
    opset: int

    def visit(self, graph: GraphLike, counters: Sequence[Counter]) -> None:
        """Replace the draws of a graph and of what it holds.

        Args:
            graph: The graph.
            counters: Of the loops around it.
        """
        for node in list(graph):
            if is_draw(node):
                self._replace(graph, node, counters)
            elif DRAW in node.metadata_props and held_graphs(node):
                name = node.metadata_props[DRAW]
                is_scan = node.op_type == "Scan" and self.opset >= _SCAN
                if is_scan:
                    node = self._counted(graph, node)
                own: list[Counter] = []
                for inner in held_graphs(node):
                    if is_scan or node.op_type == "Loop":
                        own = [(inner.inputs[0], 1 + place_of(name) % (LENGTH - 1))]
                    self.visit(inner, [*counters, *own])

    def _replace(self, graph: GraphLike, node: ir.Node, counters: Sequence[Counter]) -> None:
        name = node.metadata_props[DRAW]
        builder = Builder(graph, self.names, node.name or node.op_type, "noise", self.opset)
        try:
            noise = Noise(builder, place_of(name), counters)
            values = FORMS[node.op_type](node, noise)
        except NoMatch:
            builder.discard()
            return
        graph.insert_before(node, builder.made)
        for made in builder.made:
            made.metadata_props[DRAWN] = node.op_type
        for old, new in zip(node.outputs, values, strict=False):
            maker = new.producer()
            assert maker is not None
            maker.name, maker.metadata_props[DRAW] = node.name, name
            replace_value(graph, old, new, self.names, fresh=True)
        remove_node(node)

    def _counted(self, graph: GraphLike, node: ir.Node) -> ir.Node:
        """A Scan with the number of the round as its first state, in the place of one without."""
        body = node.attributes["body"].as_graph()
        builder = Builder(graph, self.names, node.name or "Scan", "noise", self.opset)
        start = builder.constant(np.asarray(0, np.int64))
        counter = ir.Value(
            name=self.names.fresh("round"),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([]),
        )
        inner = Builder(body, self.names, "round", "noise", self.opset)
        following = inner.Add(counter, np.asarray(1, np.int64))
        body.extend(inner.made)
        body.inputs.insert(0, counter)
        body.outputs.insert(0, following)
        inputs, attributes = list(node.inputs), list(node.attributes.values())
        node.attributes.clear()
        made = ir.Node(
            "",
            "Scan",
            [start, *inputs],
            attributes,
            num_outputs=len(node.outputs) + 1,
            name=node.name,
            metadata_props=dict(node.metadata_props),
        )
        made.outputs[0].name = self.names.fresh("rounds")
        graph.insert_before(node, [*builder.made, made])
        for old, new in zip(node.outputs, made.outputs[1:], strict=True):
            new.type, new.shape = old.type, old.shape
            new.name = self.names.fresh("scanned")
            replace_value(graph, old, new, self.names, fresh=True)
        graph.remove(node)
        return made


def place_of(name: str) -> int:
    """Where in the table a draw of some name begins."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % LENGTH

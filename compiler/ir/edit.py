"""Nodes together with the graphs inside them, which onnx_ir leaves to its callers."""

from __future__ import annotations

import onnx_ir as ir


def held_graphs(node: ir.Node) -> list[ir.Graph]:
    """The sub-graphs in the attributes of a node; not those inside of them."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def remove_node(node: ir.Node) -> None:
    """Take a node out of its graph, and end all uses that it and its sub-graphs make of values.

    Raises:
        ValueError: one of its outputs is still used.
    """
    owner = node.graph
    assert owner is not None
    for graph in held_graphs(node):
        for inner in graph.all_nodes():
            inner.resize_inputs(0)
    owner.remove(node, safe=True)

"""Edits that onnx_ir leaves half done: removing a node together with the graphs inside it."""

from __future__ import annotations

import onnx_ir as ir


def remove_node(node: ir.Node) -> None:
    """Take a node out of its graph, and end all uses that it and its sub-graphs make of values.

    Raises:
        ValueError: one of its outputs is still used.
    """
    owner = node.graph
    assert owner is not None
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            _end_uses(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                _end_uses(graph)
    owner.remove(node, safe=True)


def _end_uses(graph: ir.Graph) -> None:
    for node in graph.all_nodes():
        node.resize_inputs(0)

"""Common subexpressions: equal nodes on equal inputs are computed once."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Hashable, MutableMapping
from typing import ClassVar

import onnx_ir as ir

from aigcc.ir.module import GraphLike, Module
from aigcc.ir.operators import is_deterministic
from aigcc.ir.weights import fingerprint
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

Seen = MutableMapping[Hashable, ir.Node]


@dataclasses.dataclass(frozen=True)
class MergeSubexpressions(Pass):
    """Replace a node by an earlier one that computes the same.

    ```
    a = Exp (x); b = Exp (x); y = Add (a, b)      →      a = Exp (x); y = Add (a, a)
    ```
    A sub-graph also reuses what its outer graph computed before. Random operators are left alone.
    """

    name: ClassVar[str] = "merge-subexpressions"

    def run(self, module: Module, ctx: Context) -> None:
        """Merge in the main graph and in every function, sub-graphs included."""
        roots: list[GraphLike] = [module.graph, *module.model.functions.values()]
        for graph in roots:
            _merge(graph, ChainMap(), ctx)


def _merge(graph: GraphLike, seen: ChainMap[Hashable, ir.Node], ctx: Context) -> None:
    for node in graph:
        inner = [a for a in node.attributes.values() if not a.is_ref() and _holds_graphs(a)]
        for attribute in inner:
            graphs = (
                [attribute.as_graph()]
                if attribute.type == ir.AttributeType.GRAPH
                else attribute.as_graphs()
            )
            for subgraph in graphs:
                _merge(subgraph, seen.new_child(), ctx)
        if inner or not is_deterministic(node):
            continue
        key = _key(node)
        earlier = seen.setdefault(key, node)
        if earlier is not node and not any(v.is_graph_output() for v in node.outputs):
            if not ctx.rewrite(node, f"computes the same as {earlier.name}"):
                return
            for old, new in zip(node.outputs, earlier.outputs, strict=True):
                old.replace_all_uses_with(new)
            graph.remove(node, safe=True)


def _holds_graphs(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _key(node: ir.Node) -> Hashable:
    attributes = tuple(
        sorted((name, _attribute_key(attribute)) for name, attribute in node.attributes.items())
    )
    used = tuple(bool(value.uses() or value.name) for value in node.outputs)
    return (node.op_identifier(), tuple(id(v) for v in node.inputs), attributes, used)


def _attribute_key(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype}{tensor.shape}{fingerprint(tensor).hex()}"
    return f"{attribute.type}{attribute.value!r}"

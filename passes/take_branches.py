"""Branches that are always taken become part of the graph around them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from aigcc.ir.edit import remove_node
from aigcc.ir.module import GraphLike, Module
from aigcc.ir.shapes.inference import infer_shapes
from aigcc.ir.weights import scalar
from aigcc.passes.splice import Splicer
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.pipeline.rules import replace_value


@dataclasses.dataclass(frozen=True)
class TakeBranches(Pass):
    """Replace an If whose condition is constant by the branch that it takes.

    ```
    y = If (true) <then_branch = { a = Neg (x) }, else_branch = { b = Exp (x) }>  →  y = Neg (x)
    ```
    Conditions that follow from shapes are constant after fold-shapes.
    """

    name: ClassVar[str] = "take-branches"

    def run(self, module: Module, ctx: Context) -> None:
        """Inline in every graph, and in what was inlined."""
        splicer, before = Splicer(module), ctx.total
        for graph in list(module.graphs()):
            _take(graph, splicer, ctx)
        if ctx.total > before:
            infer_shapes(module.model)


def _take(graph: GraphLike, splicer: Splicer, ctx: Context) -> None:
    waiting = [node for node in graph if _is_if(node)]
    while waiting:
        node = waiting.pop()
        taken = _taken(node)
        if taken is None:
            continue
        inner = [each for each in taken if _is_if(each)]
        if not ctx.rewrite(node, f"the condition is always {bool(scalar(node.inputs[0]))}"):
            return
        _inline(graph, node, taken, splicer)
        waiting.extend(inner)


def _is_if(node: ir.Node) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def _taken(node: ir.Node) -> ir.Graph | None:
    """The branch that an If always takes; none of one in a branch that was dropped."""
    condition = scalar(node.inputs[0]) if node.inputs else None
    if condition is None:
        return None
    return node.attributes["then_branch" if condition else "else_branch"].as_graph()


def _inline(graph: GraphLike, node: ir.Node, branch: ir.Graph, splicer: Splicer) -> None:
    own = {value for inner in branch for value in inner.outputs}
    results = splicer.move(branch, graph, node)
    for old, new in zip(node.outputs, results, strict=True):
        replace_value(graph, old, new, splicer.names, fresh=new in own)
        own.discard(new)  # which has the name of an output now
    remove_node(node)

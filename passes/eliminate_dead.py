"""Dead code: nodes, outputs, initializers, functions and imports that nothing uses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx
import onnx_ir as ir

from aigcc.ir.edit import remove_node
from aigcc.ir.module import GraphLike, Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass


@dataclasses.dataclass(frozen=True)
class EliminateDead(Pass):
    """Remove what no output depends on. ONNX operators have no side effects."""

    name: ClassVar[str] = "eliminate-dead"

    def run(self, module: Module, ctx: Context) -> None:
        """Sweep inner graphs before outer ones, so that freed captures die in the same run."""
        for graph in reversed(list(module.graphs())):
            _remove_nodes(graph, ctx)
        for graph in [module.graph, *module.graph.subgraphs()]:
            _remove_initializers(graph, ctx)
        _remove_functions(module, ctx)
        _remove_imports(module)


def _remove_nodes(graph: GraphLike, ctx: Context) -> None:
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            if not ctx.rewrite(node, f"{node.op_type} is used by nothing", by="node"):
                return
            remove_node(node)
        else:
            _drop_outputs(node, ctx)


def _drop_outputs(node: ir.Node, ctx: Context) -> None:
    """Trailing optional outputs that nobody uses need not be computed."""
    used = [bool(value.uses()) or value.is_graph_output() for value in node.outputs]
    keep = len(used) - used[::-1].index(True)
    if keep == len(used) or node.domain not in ("", "ai.onnx"):
        return
    if not onnx.defs.has(node.op_type):
        return
    # The oldest schema suffices: outputs that were required once stay required.
    if keep < onnx.defs.get_schema(node.op_type).min_output:
        return
    if any(value.name for value in node.outputs[keep:]) and ctx.rewrite(
        node, f"{len(used) - keep} outputs are used by nothing", by="output"
    ):
        node.resize_outputs(keep)


def _remove_initializers(graph: ir.Graph, ctx: Context) -> None:
    for name, value in list(graph.initializers.items()):
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        if not ctx.rewrite(None, f"initializer {name} is used by nothing", by="initializer"):
            return
        del graph.initializers[name]


def _remove_functions(module: Module, ctx: Context) -> None:
    functions = module.model.functions
    called: set[ir.OperatorIdentifier] = set()
    pending = [node.op_identifier() for node in module.graph.all_nodes()]
    while pending:
        identifier = pending.pop()
        if identifier in functions and identifier not in called:
            called.add(identifier)
            pending.extend(node.op_identifier() for node in functions[identifier].all_nodes())
    for identifier in [known for known in functions if known not in called]:
        if not ctx.rewrite(None, f"function {identifier[1]} is never called", by="function"):
            return
        del functions[identifier]


def _remove_imports(module: Module) -> None:
    used = {node.domain for node in module.nodes()} | {"", "ai.onnx"}
    for domain in [known for known in module.model.opset_imports if known not in used]:
        del module.model.opset_imports[domain]

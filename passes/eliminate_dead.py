"""Dead code: nodes, outputs, parameters, initializers, functions and imports nothing uses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx
import onnx_ir as ir

from aigcc.ir.edit import remove_node
from aigcc.ir.module import GraphLike, Module
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass

_WITH_CACHE = 3  # outputs of an Attention: its result, keys and values


@dataclasses.dataclass(frozen=True)
class EliminateDead(Pass):
    """Remove what no output depends on. ONNX operators have no side effects."""

    name: ClassVar[str] = "eliminate-dead"

    def run(self, module: Module, ctx: Context) -> None:
        """Sweep inner graphs before outer ones, so that freed captures die in the same run."""
        for root, opset in reversed(list(module.roots())):
            graphs: list[GraphLike] = [root, *root.subgraphs()]
            for graph in reversed(graphs):
                _remove_nodes(module, graph, opset, ctx)
            if isinstance(root, ir.Function):
                _remove_parameters(module, root, ctx)
        for graph in [module.graph, *module.graph.subgraphs()]:
            _remove_initializers(graph, ctx)
        _remove_functions(module, ctx)
        _remove_imports(module)


def _remove_nodes(module: Module, graph: GraphLike, opset: int, ctx: Context) -> None:
    for node in reversed(graph):
        used = [bool(value.uses()) or value.is_graph_output() for value in node.outputs]
        if not any(used):
            if not ctx.rewrite(node, f"{node.op_type} is used by nothing", by="node"):
                return
            remove_node(node)
            continue
        keep = len(used) - used[::-1].index(True)
        unused = node.outputs[keep:]
        if (
            any(value.name for value in unused)
            and node.op_identifier() not in module.model.functions
            and _may_drop(node, keep, opset)
            and ctx.rewrite(node, f"{len(unused)} outputs are used by nothing", by="output")
        ):
            node.resize_outputs(keep)


def _may_drop(node: ir.Node, keep: int, opset: int) -> bool:
    """Whether a node of the standard computes the same without its outputs from `keep` on.

    How many outputs there are decides what a Split or a Loop computes, and up to opset 13 whether
    a BatchNormalization trains, which later needs all three. ONNX Runtime's Attention gives back
    the cache that it takes, or fails.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type == "BatchNormalization":
        return False
    if not onnx.defs.has(node.op_type, opset):
        return False
    if node.op_type == "Attention" and any(node.inputs[4:6]) and keep < _WITH_CACHE:
        return False
    formals = onnx.defs.get_schema(node.op_type, opset).outputs
    option = onnx.defs.OpSchema.FormalParameterOption.Optional
    return all(formal.option == option for formal in formals[min(keep, len(formals) - 1) :])


def _remove_parameters(module: Module, function: ir.Function, ctx: Context) -> None:
    dead = [
        place
        for place, value in enumerate(function.inputs)
        if not value.uses() and not value.is_graph_output()
    ]
    calls = [node for node in module.nodes() if node.op_identifier() == function.identifier()]
    for place in reversed(dead):
        name = function.inputs[place].name
        message = f"parameter {name} of function {function.name} is used by nothing"
        if not ctx.rewrite(None, message, by="parameter"):
            return
        del function.inputs[place]
        for call in calls:
            left = [value for index, value in enumerate(call.inputs) if index != place]
            call.resize_inputs(len(left))
            for index, value in enumerate(left):
                call.replace_input_with(index, value)


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

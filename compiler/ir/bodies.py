"""What branches and bodies of loops give: each value once, and made inside, by copies of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from aigcc.ir.edit import held_graphs
from aigcc.ir.module import Module
from aigcc.ir.names import Names

Output = tuple[ir.Node, ir.Graph, int]
"""The node that holds a graph, the graph, and the position of one of its outputs."""


def unwritten_outputs(module: Module) -> Iterator[Output]:
    """Outputs that ONNX Runtime leaves unwritten.

    One of two that are the same value, and in a Scan those that are inputs as they are.
    """
    yield from _outputs(
        module,
        lambda node, value, before: (
            value in before or (node.op_type == "Scan" and _is_given(value))
        ),
    )


def passed_outputs(module: Module) -> Iterator[Output]:
    """Outputs that are inputs as they are, which OpenVINO takes for no state of a loop."""
    yield from _outputs(module, lambda node, value, before: _is_given(value))


def put_copy(graph: ir.Graph, index: int, names: Names) -> None:
    """Let an output be a copy of the value that it is."""
    value = graph.outputs[index]
    name = names.fresh(f"{value.name}/copy")
    made = ir.Value(name=name, type=value.type, shape=value.shape)
    graph.append(ir.node("Identity", [value], outputs=[made], name=name))
    graph.outputs[index] = made


def with_written(module: Module) -> Module:
    """The module, or a copy whose outputs ONNX Runtime writes, all of them."""
    if next(unwritten_outputs(module), None) is None:
        return module
    made = module.clone()
    names = Names(made)
    for _, graph, index in list(unwritten_outputs(made)):
        put_copy(graph, index, names)
    return made


def _outputs(
    module: Module, is_one: Callable[[ir.Node, ir.Value, Sequence[ir.Value]], bool]
) -> Iterator[Output]:
    for node in module.nodes():
        for graph in held_graphs(node):
            for index, value in enumerate(graph.outputs):
                if is_one(node, value, graph.outputs[:index]):
                    yield node, graph, index


def _is_given(value: ir.Value) -> bool:
    return value.producer() is None and value.is_graph_input()

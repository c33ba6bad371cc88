"""Draws: the nodes that make random numbers, and names for them that survive rewrites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import onnx_ir as ir

from aigcc.ir.edit import held_graphs
from aigcc.ir.module import Module
from aigcc.ir.operators import RANDOM
from aigcc.ir.weights import scalar

DRAW = "aigcc.draw"
"""Metadata of a node that draws, and of one that holds or calls others which do: its name."""

DRAWN = "aigcc.drawn"
"""Metadata of a node that makes equal noise in the place of a draw: the operator of that."""


def is_inner(node: ir.Node) -> bool:
    """Whether a node only helps to make equal noise, and does not give what the draw gave."""
    return DRAWN in node.metadata_props and DRAW not in node.metadata_props


def is_draw(node: ir.Node) -> bool:
    """Whether a node makes random numbers itself; a Dropout does where it may be in training."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type != "Dropout":
        return node.op_type in RANDOM
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return training is not None and scalar(training) != 0


def count_draws(module: Module) -> int:
    """How many nodes draw, those in sub-graphs and functions included."""
    return sum(map(is_draw, module.nodes()))


def drawing_functions(module: Module) -> set[ir.OperatorIdentifier]:
    """The functions of a module in which numbers are drawn, there or in what they call."""
    functions = module.model.functions
    callers: defaultdict[ir.OperatorIdentifier, set[ir.OperatorIdentifier]] = defaultdict(set)
    waiting = []
    for key, function in functions.items():
        for node in function.all_nodes():
            callers[node.op_identifier()].add(key)
            if is_draw(node):
                waiting.append(key)
    found: set[ir.OperatorIdentifier] = set()
    while waiting:
        key = waiting.pop()
        if key not in found:
            found.add(key)
            waiting.extend(callers[key])
    return found


def name_draws(module: Module) -> None:
    """Give each draw a name, and each node around draws one, where they have none yet.

    A name is that of the first output, after the name of the node around it, so that two copies of
    a model get equal ones; whatever passes make of the node keeps it.
    """
    called = drawing_functions(module)

    def draws(node: ir.Node) -> bool:
        return is_draw(node) or node.op_identifier() in called

    for root, _ in module.roots():
        waiting: list[tuple[Iterable[ir.Node], str]] = [(root, "")]
        for nodes, within in waiting:
            for node in nodes:
                held = held_graphs(node)
                if draws(node) or any(draws(each) for graph in held for each in graph.all_nodes()):
                    name = f"{within}{node.outputs[0].name}"
                    name = node.metadata_props.setdefault(DRAW, name)
                    waiting.extend((graph, f"{name}/") for graph in held)

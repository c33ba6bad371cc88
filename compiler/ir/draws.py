"""Draws: the nodes that make random numbers, and names for them that survive rewrites."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from aigcc.ir.edit import held_graphs
from aigcc.ir.module import Module
from aigcc.ir.operators import RANDOM, is_random
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


def name_draws(module: Module) -> None:
    """Give each draw a name, and each node around draws one, where they have none yet.

    A name is that of the first output, after the name of the node around it, so that two copies of
    a model get equal ones; whatever passes make of the node keeps it.
    """
    functions = module.model.functions
    for root in (module.graph, *functions.values()):
        waiting: list[tuple[Iterable[ir.Node], str]] = [(root, "")]
        for nodes, within in waiting:
            for node in nodes:
                if is_draw(node) or is_random(node, functions):
                    name = f"{within}{node.outputs[0].name}"
                    name = node.metadata_props.setdefault(DRAW, name)
                    waiting.extend((graph, f"{name}/") for graph in held_graphs(node))

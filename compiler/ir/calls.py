"""Which functions call which, and how many nodes their calls stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

MOST_NODES = 1_000_000
"""Of all bodies, each as often as it is called: runtimes put bodies where they are called."""


def check_calls(model: ir.Model) -> Iterator[tuple[str, str, str | None]]:
    """What is wrong with calls: a function that calls itself, calls that stand for too many nodes.

    Yields:
        What is wrong, where, and what to do.
    """
    made = {key: Counter(_operators(function)) for key, function in model.functions.items()}
    waiting = {key: counts.keys() & made.keys() for key, counts in made.items()}
    sizes: dict[ir.OperatorIdentifier, int] = {}
    while leaves := [key for key, called in waiting.items() if not called & waiting.keys()]:
        for key in leaves:
            del waiting[key]
            sizes[key] = sum(sizes.get(each, 1) * count for each, count in made[key].items())
    for key in waiting:
        yield "the function calls itself", f"function {call_text(key)}", None
    total = sum(sizes.get(key, 1) for key in _operators(model.graph))
    if total > MOST_NODES:
        yield (
            f"calls of functions stand for {total:,} nodes",
            "the main graph",
            f"runtimes put bodies where they are called; at most {MOST_NODES:,} nodes are taken",
        )


def call_text(identifier: ir.OperatorIdentifier) -> str:
    """A function's name for people."""
    domain, name, overload = identifier
    return f"{domain}::{name}" + (f":{overload}" if overload else "")


def _operators(graph: ir.Graph | ir.Function) -> Iterator[ir.OperatorIdentifier]:
    return (node.op_identifier() for node in graph.all_nodes())

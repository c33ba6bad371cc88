"""Inputs whose numbers say shapes: an engine would need their range beforehand."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.target import Problem, node_label

# Inputs of operators that say what shape is made, by position.
_SHAPES: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Upsample": (1,),
}
_ENDS = frozenset({"Shape", "Size"})  # which say what the shapes of inputs alone say


def find_shape_inputs(module: Module) -> Iterator[Problem]:
    """Nodes that make shapes of what an input holds, with the input."""
    inputs = set(module.graph.inputs)
    known: dict[ir.Value, ir.Value | None] = {}
    for node in module.nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        for position in _SHAPES.get(node.op_type, (0,) if _stacks(node) else ()):
            value = node.inputs[position] if position < len(node.inputs) else None
            source = None if value is None else _source(value, inputs, known)
            if source is not None:
                yield Problem(
                    f"{node.op_type} makes a shape of what the input {source.name!r} holds",
                    node_label(node),
                    f"give {source.name!r} a fixed value before the build",
                )
                break


def _stacks(node: ir.Node) -> bool:
    """Whether a node is a Loop that makes as many parts of an output as it has rounds."""
    return node.op_type == "Loop" and len(node.outputs) > len(node.inputs) - 2


def _source(
    value: ir.Value, inputs: set[ir.Value], known: dict[ir.Value, ir.Value | None]
) -> ir.Value | None:
    """The first input whose numbers a value depends on, other than by its shape; or None."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current in inputs or known.get(current) is not None:
            known[value] = current if current in inputs else known[current]
            return known[value]
        producer = current.producer()
        if producer is None or producer.op_type in _ENDS or current in known:
            continue
        fresh = {v for v in producer.inputs if v is not None} - seen
        seen |= fresh
        pending += fresh
    known.update(dict.fromkeys(seen))
    return None

"""What makes TensorRT-RTX's builder crash or give up, found beforehand in a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.target import Problem, node_label

# Operators that the builder looks through: their output holds the same numbers.
_MOVES = frozenset(
    {
        "Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_SPELL = "let the pipeline end with legalize, which writes MatMul and Softmax"


def find_faults(module: Module, *, narrows: bool) -> Iterator[Problem]:
    """The nodes at which the builder would fail, each with what it is.

    Args:
        module: At any place of the pipeline.
        narrows: Whether float32 may still become float16.
    """
    narrows = narrows and not _has_float16(module)
    for graph in [module.graph, *module.graph.subgraphs(), *module.model.functions.values()]:
        attentions = [
            node for node in graph if node.op_type == "Attention" and node.domain in ("", "ai.onnx")
        ]
        yield from _shared_factors(attentions)
        if not narrows:
            yield from _in_float32(attentions)


def _has_float16(module: Module) -> bool:
    return any(
        value.dtype == ir.DataType.FLOAT16 for node in module.nodes() for value in node.outputs
    )


def _shared_factors(attentions: Iterable[ir.Node]) -> Iterator[Problem]:
    """Attentions whose query or key is a factor of an earlier one: a segmentation fault.

    Written as products and a softmax they build, and are fused as well.
    """
    first: dict[ir.Value, ir.Node] = {}
    for node in attentions:
        factors = [_origin(value) for value in node.inputs[:2] if value is not None]
        taken = next((first[factor] for factor in factors if factor in first), None)
        if taken is None and len(factors) == len(set(factors)):
            first.update(dict.fromkeys(factors, node))
            continue
        other = "its key" if taken is None else f"a factor of {node_label(taken)}"
        yield Problem(
            f"the builder crashes where the query of an Attention or its key is also {other}",
            node_label(node),
            _SPELL,
        )


def _in_float32(attentions: Iterable[ir.Node]) -> Iterator[Problem]:
    """Attentions in float32: none is fused, and beside products of the same query some fail."""
    for node in attentions:
        if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT:
            yield Problem("there is no fused Attention in float32", node_label(node), _SPELL)


def _origin(value: ir.Value) -> ir.Value:
    """The value whose numbers these are."""
    producer = value.producer()
    while producer is not None and producer.op_type in _MOVES and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value

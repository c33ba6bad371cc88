"""What makes TensorRT-RTX's builder crash or give up, found beforehand in a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.passes.legal.windows import hidden_keys
from aigcc.target import Problem, node_label
from aigcc.targets.gpu.shapes import find_shape_inputs

# Operators that the builder looks through: their output holds the same numbers.
_MOVES = frozenset(
    {
        "Cast", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_CONTROL = frozenset({"If", "Loop", "Scan"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_MATRIX = 2  # axes
_NORMS = frozenset({"GroupNormalization", "InstanceNormalization"})
_FLOAT = ir.DataType.FLOAT
_SPELL = "let the pipeline end with legalize, which writes it as simpler operators"


def find_faults(module: Module, *, narrows: bool) -> Iterator[Problem]:
    """The nodes at which the builder would fail, each with what it is.

    Args:
        module: At any place of the pipeline.
        narrows: Whether float32 may still become float16.
    """
    narrows = narrows and not _has_float16(module)
    yield from find_shape_inputs(module)
    main = module.graph
    for graph in [main, *main.subgraphs(), *module.model.functions.values()]:
        attentions = [
            node for node in graph if node.op_type == "Attention" and node.domain in ("", "ai.onnx")
        ]
        yield from _shared_factors(attentions)
        if not narrows:
            yield from _in_float32(list(graph))
        if graph is not main:
            yield from _in_branches(list(graph), attentions)
        for node in graph:
            yield from _of_node(node)


def _of_node(node: ir.Node) -> Iterator[Problem]:
    """Faults that a node shows by itself."""
    for value in node.outputs:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            yield Problem(f"{value.name!r} is no tensor", node_label(node), "unpack-sequences")
    ranks = [len(v.shape) if v is not None and v.shape is not None else 0 for v in node.inputs]
    if node.op_type == "MatMul" and 1 in ranks and max(ranks) > _MATRIX:
        yield Problem("a product of a vector and a stack of matrices", node_label(node), _SPELL)
    if node.op_type == "Attention" and (missing := hidden_keys(node)):
        message = f"the mask of an Attention is {missing} keys shorter than there are keys"
        yield Problem(message, node_label(node), _SPELL)
    if node.op_type == "Loop":
        yield from _growing_states(node)
    if node.op_type == "If":
        yield from _uneven_branches(node)


def _growing_states(node: ir.Node) -> Iterator[Problem]:
    """States whose shape is another one after a round."""
    states = node.attributes["body"].as_graph().outputs[1:]
    for before, after in zip(node.inputs[2:], states, strict=False):
        if before is None or before.shape is None or after.shape is None:
            continue
        if len(before.shape) != len(after.shape) or any(
            isinstance(old, int) and isinstance(new, int) and old != new
            for old, new in zip(before.shape, after.shape, strict=True)
        ):
            yield Problem(
                f"a round of the Loop makes {after.shape} of a state that begins as {before.shape}",
                node_label(node),
                "let its shape stay, for instance with a buffer of the largest size",
            )


def _uneven_branches(node: ir.Node) -> Iterator[Problem]:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for one, other in zip(*(branch.outputs for branch in branches), strict=True):
        shapes = (one.shape, other.shape)
        if None not in shapes and len(one.shape or ()) != len(other.shape or ()):
            yield Problem(
                f"the branches of an If give shapes of different ranks, {shapes[0]} and "
                f"{shapes[1]}",
                node_label(node),
                "let both give the same rank, or freeze what decides between them",
            )


def _in_branches(nodes: list[ir.Node], attentions: list[ir.Node]) -> Iterator[Problem]:
    """Operators that are no single layer, where a branch or a loop holds them."""
    for node in attentions:
        yield Problem("no Attention may be in a branch or a loop", node_label(node), _SPELL)
    if any(node.op_type in _CONTROL for node in nodes):
        for node in nodes:
            if node.op_type in _RECURRENT:
                yield Problem(
                    f"{node.op_type} may not be beside an If or a Loop in a branch",
                    node_label(node),
                    _SPELL,
                )


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


def _in_float32(nodes: list[ir.Node]) -> Iterator[Problem]:
    """What is not left as one operator in float32.

    No Attention is fused there, and beside products of the same query some fail. Where norms stay
    float32, it is since their values are far from 0, and one pass of sums loses the digits.
    """
    for node in nodes:
        if node.inputs and node.inputs[0] is not None and node.inputs[0].dtype == _FLOAT:
            if node.op_type == "Attention":
                yield Problem("there is no fused Attention in float32", node_label(node), _SPELL)
            if node.op_type in _NORMS:
                message = f"{node.op_type} in float32 loses digits of values far from 0"
                yield Problem(message, node_label(node), _SPELL)


def _origin(value: ir.Value) -> ir.Value:
    """The value whose numbers these are."""
    producer = value.producer()
    while producer is not None and producer.op_type in _MOVES and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value

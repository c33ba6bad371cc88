"""Shape inference of the operators that run sub-graphs: If, Loop, Scan and SequenceMap."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from aigcc.errors import ModelError
from aigcc.ir.shapes.dims import UNKNOWN, Dim, to_dims
from aigcc.ir.shapes.operands import Dims, Type

if TYPE_CHECKING:
    from aigcc.ir.shapes.inference import Imports, Walk


def joined(a: tuple[Type, Dims], b: tuple[Type, Dims]) -> tuple[Type, Dims]:
    """What two types have in common."""
    kind = a[0] if a[0] == b[0] else None
    if a[1] is None or b[1] is None or len(a[1]) != len(b[1]):
        return kind, None
    return kind, [x if x == y else UNKNOWN for x, y in zip(a[1], b[1], strict=True)]


def _if(walk: Walk, node: ir.Node, imports: Imports) -> str:
    """Infer the branches that may be taken; where it is known which, the other need not be legal.

    Raises:
        ModelError: A branch that may be taken contradicts itself.
    """
    names = ["then_branch", "else_branch"]
    condition = None if node.inputs[0] is None else walk.values.get(node.inputs[0])
    known = None if condition is None or condition.size != 1 else condition.item()
    if isinstance(known, bool):
        names = names[:1] if known else names[1:]
    branches = [node.attributes[name].as_graph() for name in names]
    for branch in branches:
        try:
            walk.graph(branch, imports)
        except ModelError as error:
            advice = "if this branch is never taken, freeze what decides it: --set INPUT=VALUE"
            hint = f"{error.hint}; {advice}" if error.hint else advice
            raise ModelError(error.what, at=error.at, hint=hint) from error
    for output, *results in zip(node.outputs, *(b.outputs for b in branches), strict=False):
        kind, dims = functools.reduce(joined, [(r.type, to_dims(r.shape)) for r in results])
        walk.merge(node, output, kind, dims)
    return "the branches of If do not agree, or do not say"


def _loop(walk: Walk, node: ir.Node, imports: Imports) -> str:
    body = node.attributes["body"].as_graph()
    state = [value for value in node.inputs[2:] if value is not None]
    fixed: list[tuple[Type, Dims]] = [
        (ir.TensorType(ir.DataType.INT64), []),
        (ir.TensorType(ir.DataType.BOOL), []),
    ]
    types = walk.stable_state(body, imports, fixed, state)
    for value, (kind, dims) in zip(body.inputs, [*fixed, *types], strict=False):
        walk.merge(node, value, kind, dims)
    walk.graph(body, imports)
    for output, (kind, dims) in zip(node.outputs, types, strict=False):
        walk.merge(node, output, kind, dims)
    rounds = len(state)
    for output, result in zip(node.outputs[rounds:], body.outputs[1 + rounds :], strict=False):
        dims = to_dims(result.shape)
        walk.merge(node, output, result.type, None if dims is None else [UNKNOWN, *dims])
    return "the rounds of Loop do not agree, or its body does not say"


def _scan(walk: Walk, node: ir.Node, imports: Imports) -> str:
    if imports.get("", 0) < 9:
        return _batched_scan(walk, node, imports)
    body = node.attributes["body"].as_graph()
    count = node.attributes["num_scan_inputs"].as_int()
    operands = [value for value in node.inputs if value is not None]
    split = len(operands) - count
    state, sequences = operands[:split], operands[split:]
    axes = node.attributes.get_ints("scan_input_axes") or (0,) * count
    length: Dim = UNKNOWN
    for value, inner, axis in zip(sequences, body.inputs[split:], axes, strict=False):
        dims = to_dims(value.shape)
        if dims is not None:
            length = dims.pop(axis)
        walk.merge(node, inner, value.type, dims)
    for value, inner in zip(state, body.inputs, strict=False):
        walk.merge(node, inner, value.type, to_dims(value.shape))
    walk.graph(body, imports)
    for output, value in zip(node.outputs, state, strict=False):
        walk.merge(node, output, value.type, to_dims(value.shape))
    axes = node.attributes.get_ints("scan_output_axes") or (0,) * len(body.outputs)
    for output, result, axis in zip(node.outputs[split:], body.outputs[split:], axes, strict=False):
        dims = to_dims(result.shape)
        if dims is not None:
            dims.insert(axis + len(dims) + 1 if axis < 0 else axis, length)
        walk.merge(node, output, result.type, dims)
    return "the body of Scan does not say"


def _batched_scan(walk: Walk, node: ir.Node, imports: Imports) -> str:
    """Scan of opset 8: axis 0 is the batch, axis 1 of what is scanned the sequence."""
    body = node.attributes["body"].as_graph()
    operands = node.inputs[1:]  # after the lengths of the sequences
    split = len(operands) - node.attributes["num_scan_inputs"].as_int()
    batch: Dim = UNKNOWN
    length: Dim = UNKNOWN
    for index, (value, inner) in enumerate(zip(operands, body.inputs, strict=False)):
        dims = None if value is None else to_dims(value.shape)
        if dims is not None:
            batch = dims.pop(0)
        if dims is not None and index >= split:
            length = dims.pop(0)
        walk.merge(node, inner, None if value is None else value.type, dims)
    walk.graph(body, imports)
    for index, (output, result) in enumerate(zip(node.outputs, body.outputs, strict=False)):
        dims, outer = to_dims(result.shape), [batch] if index < split else [batch, length]
        walk.merge(node, output, result.type, None if dims is None else [*outer, *dims])
    return "the body of Scan does not say"


def _sequence_map(walk: Walk, node: ir.Node, imports: Imports) -> str:
    body = node.attributes["body"].as_graph()
    operands = [value for value in node.inputs if value is not None]
    for value, inner in zip(operands, body.inputs, strict=False):
        kind, dims = value.type, to_dims(value.shape)
        if isinstance(kind, ir.SequenceType):
            kind, dims = kind.elem_type, _of_any_element(dims)
        walk.merge(node, inner, kind, dims)
    walk.graph(body, imports)
    for output, result in zip(node.outputs, body.outputs, strict=False):
        kind = None if result.type is None else ir.SequenceType(result.type)
        walk.merge(node, output, kind, _of_any_element(to_dims(result.shape)))
    return "the body of SequenceMap does not say"


def _of_any_element(dims: Dims) -> Dims:
    """The dims that all elements of a sequence share: a symbol may differ from one to the next."""
    return None if dims is None else [dim if isinstance(dim, int) else UNKNOWN for dim in dims]


CONTROL_FLOW: Mapping[str, Callable[[Walk, ir.Node, Imports], str]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceMap": _sequence_map,
}
"""By operator: infers a node and its sub-graphs, and says why it stopped, if it did."""

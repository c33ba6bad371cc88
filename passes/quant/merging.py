"""Outputs of quantised kernels that a runtime hands on as integers, through other operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from aigcc.passes.quant.placement import Scheme

# What only moves numbers: runtimes change places with Q/DQ there.
_MOVES = frozenset({"Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def merged_outputs(places: Iterable[tuple[ir.Node, Scheme]]) -> frozenset[str]:
    """The names of outputs that must have one grid for the whole tensor.

    An operator between a DequantizeLinear and a QuantizeLinear may be run on integers: those that
    a kernel's row in the table says merge then take no scale for each channel.

    Args:
        places: The nodes that will be quantised, all of them as they were, and how.
    """
    kernels = {
        node: scheme.kernels[node.op_type] for node, scheme in places if scheme.is_calibrated
    }
    writers = {node.outputs[0] for node, kernel in kernels.items() if kernel.output}
    found = set()
    for node, kernel in kernels.items():
        value = node.outputs[0]
        for user in _users(value):
            is_between = (
                user.op_type in kernel.merges
                and all(_source(v) in writers for v in user.inputs)
                and any(after in kernels for after in _users(user.outputs[0]))
            )
            if is_between:
                found.add(str(value.name))
    return frozenset(found)


def _users(value: ir.Value) -> Iterator[ir.Node]:
    """What computes with a value, moved or not."""
    for user, _ in value.uses():
        if user.op_type in _MOVES:
            yield from _users(user.outputs[0])
        else:
            yield user


def _source(value: ir.Value | None) -> ir.Value | None:
    """Where a value was computed."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in _MOVES:
            return value
        value = node.inputs[0]
    return None

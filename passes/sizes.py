"""Sizes of dims as values of the graph."""

from __future__ import annotations

import onnx_ir as ir

from aigcc.analysis.positions import same_dim
from aigcc.pipeline.rules import Builder


def size_of(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The size of a dim as an int64 [1].

    It is read off a graph input where one has the same symbol, so that equal nodes can be merged.
    """
    assert value.shape is not None
    place = axis % len(value.shape)
    for source in op.graph.inputs:
        for other, dim in enumerate(source.shape or ()):
            if same_dim(dim, value.shape[place]):
                read: ir.Value = op.Shape(source, start=other, end=other + 1)
                return read
    own: ir.Value = op.Shape(value, start=place, end=place + 1)
    return own

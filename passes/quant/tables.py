"""Embedding tables: rows of narrow numbers that are scaled behind the Gather."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from aigcc.passes.quant.terms import Term
from aigcc.pipeline.rules import Builder


def gathered(own: Builder, node: ir.Node, numbers: ir.Value, term: Term) -> ir.Value:
    """Rows of a table, looked up as numbers and scales, so that no other row is ever float.

    ```
    y = Gather (t, i)  →  { q = Gather (tq, i); s = Gather (ts, i); y = Mul (Cast (q), s) }
    ```
    With scales by block it is a DequantizeLinear of the rows. A table that an output projection
    reads the other way round has its rows along axis 1, and what was looked up is turned.
    """
    ids, output, block = node.inputs[1], node.outputs[0], term.grid.block
    assert ids is not None and output.dtype is not None
    is_turned = term.grid.axis == (1 if block is None else 0)
    axis = 1 if is_turned else 0
    scale = term.scale if block is not None else np.expand_dims(term.scale, 1 - axis)
    steps = own.Gather(scale.astype(output.dtype.numpy()), ids, axis=axis)
    rows = own.Gather(numbers, ids, axis=axis)
    if block is None:
        value: ir.Value = own.Mul(own.Cast(rows, to=int(output.dtype)), steps)
    else:
        value = own.DequantizeLinear(rows, steps, axis=0 if is_turned else -1, block_size=block)
    if is_turned:
        assert ids.shape is not None
        value = own.Transpose(value, perm=[*range(1, len(ids.shape) + 1), 0])
    return value

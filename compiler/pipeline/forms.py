"""How operators are spelt in older opsets, where attributes stood for what are inputs now.

Rules write the newest form, and `Builder` makes that of the module's own opset of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from aigcc.ir.weights import read
from aigcc.pipeline.pattern import NoMatch

# Operator -> the opset from which on inputs 1, 2, .. are inputs, and the attributes before it.
_ATTRIBUTES: dict[str, tuple[int, tuple[str, ...]]] = {
    "Clip": (11, ("min", "max")),
    "Pad": (11, ("pads", "value")),
    "ReduceSum": (13, ("axes",)),
    "Slice": (10, ("starts", "ends", "axes")),
    "Split": (13, ("split",)),
    "Squeeze": (13, ("axes",)),
    "TopK": (10, ("k",)),
    "Unsqueeze": (13, ("axes",)),
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        ),
        (18, ("axes",)),
    ),
}
_COUNTED_PARTS = 18
_CONSTANTS_OF_ALL_TYPES = 9


def has_constants(dtype: ir.DataType, opset: int) -> bool:
    """Whether there are Constant nodes of a type, which functions need, having no initializers."""
    return opset >= _CONSTANTS_OF_ALL_TYPES or dtype.is_floating_point()


def spelt(
    op_type: str, inputs: Sequence[Any], attributes: Mapping[str, Any], opset: int, outputs: int
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The inputs and attributes of a node in an opset, from those of the newest form.

    Args:
        op_type: An operator of the default domain.
        inputs: Values; arrays or lists where it gets constants.
        attributes: By name; None where one is left out.
        opset: The version of the default domain.
        outputs: How many outputs the node has.

    Raises:
        NoMatch: the opset has no such node.
    """
    since, names = _ATTRIBUTES.get(op_type, (0, ()))
    if op_type == "Split" and len(inputs) == 1 and opset >= _COUNTED_PARTS:
        attributes = {"num_outputs": outputs, **attributes}
    elif opset < since:
        first, *others = inputs
        pairs = zip(names, others, strict=False)
        given = {n: _constant(item, op_type, since) for n, item in pairs if item is not None}
        inputs, attributes = [first, *others[len(names) :]], {**attributes, **given}
    _check(op_type, len(inputs), [n for n, a in attributes.items() if a is not None], opset)
    return inputs, attributes


def _constant(item: Any, op_type: str, since: int) -> Any:
    array = read(item) if isinstance(item, ir.Value) else np.asarray(item)
    if array is None:
        raise NoMatch(f"{op_type} of computed numbers needs opset {since}")
    return array.item() if op_type == "TopK" else array.tolist()


def _check(op_type: str, inputs: int, attributes: Sequence[str], opset: int) -> None:
    schema = _schema(op_type, opset)
    if schema is None:
        raise NoMatch(f"opset {opset} has no {op_type}")
    if inputs > schema.max_input:
        raise NoMatch(f"{op_type} of opset {opset} has {schema.max_input} inputs at most")
    missing = [name for name in attributes if name not in schema.attributes]
    if missing:
        raise NoMatch(f"{op_type} of opset {opset} has no {missing[0]}")


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(op_type, opset) if onnx.defs.has(op_type, opset) else None

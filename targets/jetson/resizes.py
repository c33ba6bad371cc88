"""Resizes that TVM's front end computes at other places than ONNX says, or refuses."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.weights import read
from aigcc.target import Problem, node_label

_RANKS = (3, 4, 5)


def find_wrong_resizes(module: Module) -> Iterator[Problem]:
    """Resizes that legalize has to spell, each with the reason."""
    for node in module.nodes():
        if node.op_type == "Resize" and node.domain in ("", "ai.onnx"):
            reason = _reason(node)
            if reason:
                hint = "let the pipeline end with legalize, which spells it"
                yield Problem(f"Resize {reason}", node_label(node), hint)


def _reason(node: ir.Node) -> str:
    before = _dims(node.inputs[0])
    after = _dims(node.outputs[0])
    if before is None or after is None:
        return "has a shape that is not known"
    if len(before) not in _RANKS:
        return f"of {len(before)} axes is not taken"
    if before[:2] != after[:2]:
        return "of the first two axes is not taken"
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "align_corners" and 1 in after[2:]:
        return "to a size of 1 divides by zero when corners are aligned"
    scales = read(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scales is None or len(scales) != len(before):
        return ""
    for scale, size in zip(scales.tolist(), before, strict=True):
        if not (scale * size).is_integer():
            return f"by {scale:g} of a size of {size} gives no whole size"
    return ""


def _dims(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    return dims if len(dims) == len(value.shape) else None

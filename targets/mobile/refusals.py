"""What ONNX Runtime's kernels refuse when they run, and a table of operators cannot say."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.passes.legal.integers import has_one_element
from aigcc.passes.legal.windows import hidden_keys
from aigcc.target import Problem, node_label


def refusals(module: Module) -> Iterator[Problem]:
    """All that is refused, besides what the capability table says."""
    for node in module.nodes():
        look = _LOOKS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if look is not None and (reason := look(node)):
            yield Problem(f"{node.op_type}: {reason}", node=node_label(node))
    for function in module.model.functions.values():
        for node in function.all_nodes():
            if node.op_type == "MeanVarianceNormalization" and "axes" not in node.attributes:
                reason = "within a function its axes must be given"
                yield Problem(f"{node.op_type}: {reason}", node=node_label(node))


def _short_mask(node: ir.Node) -> str:
    missing = hidden_keys(node)
    return f"its mask is {missing} keys shorter than there are keys" if missing else ""


def _zero_points(node: ir.Node) -> str:
    position = _SINGLE[node.op_type]
    value = node.inputs[position] if len(node.inputs) > position else None
    if value is None or value.shape is None or has_one_element(value):
        return ""
    return f"its zero point {value.name!r} must be one number"


def _empty_extremes(node: ir.Node) -> str:
    """There is no kernel for the largest of no booleans."""
    x = node.inputs[0]
    if x is None or x.dtype != ir.DataType.BOOL:
        return ""
    is_full = x.shape is not None and all(isinstance(dim, int) and dim for dim in x.shape)
    return "" if is_full else f"{x.name!r} may have no elements, and they are booleans"


_SINGLE = {"ConvInteger": 3, "MatMulInteger": 2, "QLinearMatMul": 2}
"""Where a zero point stands that may not differ from channel to channel, or row to row."""

_LOOKS: dict[str, Callable[[ir.Node], str]] = {
    "Attention": _short_mask,
    "ReduceMax": _empty_extremes,
    "ReduceMin": _empty_extremes,
    **dict.fromkeys(_SINGLE, _zero_points),
}

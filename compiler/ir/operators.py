"""Facts about operators that several passes need."""

from __future__ import annotations

import onnx_ir as ir

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


def is_deterministic(node: ir.Node) -> bool:
    """Whether equal inputs always give equal outputs, as far as the standard says."""
    if node.domain in ("", "ai.onnx"):
        if node.op_type == "Dropout":
            return len(node.inputs) < 3 or node.inputs[2] is None
        return node.op_type not in _RANDOM
    return node.domain in ("com.microsoft", "ai.onnx.ml")


def op_key(node: ir.Node) -> str:
    """`Op` for the default domain, `domain::Op` for others: as target tables have them."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"

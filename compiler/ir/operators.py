"""Facts about operators that several passes need."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from aigcc.ir.edit import held_graphs

RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators of the standard that draw random numbers whenever they run."""

_RANDOM_CONTRIB = frozenset({"BiasDropout", "BitmaskBiasDropout", "BitmaskDropout", "Sampling"})


def is_random(node: ir.Node, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> bool:
    """Whether a node draws random numbers, itself, in a sub-graph or in a function that it calls.

    What is not known counts as random, too.
    """
    function = functions.get(node.op_identifier())
    if function is not None:
        return any(is_random(inner, functions) for inner in function)
    inside = (inner for graph in held_graphs(node) for inner in graph)
    return not is_deterministic(node) or any(is_random(inner, functions) for inner in inside)


def is_deterministic(node: ir.Node) -> bool:
    """Whether equal inputs always give equal outputs, as far as the standard says."""
    if node.domain in ("", "ai.onnx"):
        if node.op_type == "Dropout":
            return len(node.inputs) < 3 or node.inputs[2] is None
        return node.op_type not in RANDOM
    return node.domain in ("com.microsoft", "ai.onnx.ml") and node.op_type not in _RANDOM_CONTRIB


def op_key(node: ir.Node) -> str:
    """`Op` for the default domain, `domain::Op` for others: as target tables have them."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


SCALAR_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), (0,)),
    "Dropout": (1, 2),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "Range": (0, 1, 2),
}
"""Inputs whose one element may have any rank when it is computed, and none when it is constant."""

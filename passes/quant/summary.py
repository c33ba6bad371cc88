"""How many nodes were quantised, and in a few words why others were not: one line for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import onnx_ir as ir

from aigcc.ir.module import Module
from aigcc.ir.weights import constant
from aigcc.passes.quant.placement import weight_of
from aigcc.passes.quant.refusals import is_matrix, refusal
from aigcc.pipeline.context import Remark
from aigcc.target import node_label

# Why a node keeps its precision: remarks have one of these under "why".
BUDGET = "to keep the budget"
INSIDE = "in a sub-graph or function"
LITTLE = "too little time to be saved"
NO_KERNEL = "no kernel takes them"
SLOWER = "8 bits are slower here"
UNTIMED = "cannot be timed alone"

_QUANTISED = "quantised"


def holders(module: Module) -> list[ir.Node]:
    """The nodes of all graphs that multiply with weights, whatever form these have."""
    return [node for node in module.nodes() if _holds_weight(node)]


def summarise(
    nodes: Collection[ir.Node], quantised: Collection[ir.Node], why: str, remarks: Iterable[Remark]
) -> str:
    """Such as "3 of 9 nodes quantised; 6 kept: 8 bits are slower here".

    Args:
        nodes: What could have been quantised, `holders`.
        quantised: What of them is.
        why: The reason of nodes that could be, and were not chosen.
        remarks: The reasons of others.
    """
    said = {
        remark.node: str(remark.numbers["why"]) for remark in remarks if "why" in remark.numbers
    }
    kept = Counter(said.get(node_label(n), why) for n in nodes if n not in quantised)
    text = f"{len(nodes) - kept.total()} of {len(nodes)} nodes quantised"
    if not kept:
        return text
    reasons = [f"{count} {reason}" for reason, count in kept.most_common()]
    return f"{text}; {kept.total()} kept: {', '.join(reasons if len(kept) > 1 else kept)}"


def summary_of(remarks: Iterable[Mapping[str, Any]]) -> str:
    """The line that a build left among its remarks; empty where nothing was to be quantised."""
    lines = [row["message"] for row in remarks if _QUANTISED in row["numbers"]]
    return lines[-1] if lines else ""


def tried(remarks: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a search tried, and what came of it, a line each."""
    return [row["message"] for row in remarks if "tried" in row["numbers"]]


def _holds_weight(node: ir.Node) -> bool:
    if weight_of(node) is not None:
        return True
    return bool(refusal(node)) and any(is_matrix(constant(value)) for value in node.inputs)

"""The precision that a program really runs in, against what was planned."""

from __future__ import annotations

from collections.abc import Mapping

from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.passes.quant.placement import find_scheme
from aigcc.passes.quant.quantise import FULL, PRECISION
from aigcc.target import Target, node_label

_SHOWN = 12


def refuse_mismatches(module: Module, target: Target, precision: Mapping[str, str]) -> None:
    """Do nothing if every product that was quantised is computed in the dtype of its scheme.

    Nodes that the target cannot tell the precision of are left out.

    Args:
        module: The module that was lowered; quantised nodes keep the name of their scheme.
        target: For whom.
        precision: Dtypes that were read back from the program, by node.

    Raises:
        TargetError: some are not; names each with what it was to run in and what it runs in.
    """
    wrong = []
    for node in module.graph:
        scheme = node.metadata_props.get(PRECISION, FULL)
        found = precision.get(node_label(node))
        if scheme == FULL or found is None:
            continue
        planned = find_scheme(scheme, target).computes_in
        if planned not in ("float", found):
            wrong.append(f"{node_label(node)} ({node.op_type}) as {scheme} runs in {found}")
    if wrong:
        shown = wrong[:_SHOWN] + ([f"and {len(wrong) - _SHOWN} more"] if wrong[_SHOWN:] else [])
        raise TargetError(
            f"{len(wrong)} of the quantised nodes do not run in the precision that was planned",
            at="\n      ".join(shown),
            hint="leave these nodes full in the recipe, or report the form that the runtime missed",
        )

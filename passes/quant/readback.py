"""The precision that a program really runs in, against what was planned."""

from __future__ import annotations

from collections.abc import Mapping

from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.passes.quant.placement import find_scheme
from aigcc.passes.quant.quantise import FULL, PRECISION
from aigcc.target import Target, node_label

_SHOWN = 12


def refuse_mismatches(module: Module, target: Target, precision: Mapping[str, str]) -> list[str]:
    """The products that were quantised and that nothing was read back of.

    All others are computed in the dtype of their scheme.

    Args:
        module: The module that was lowered; quantised nodes keep the name of their scheme.
        target: For whom.
        precision: Dtypes that were read back from the program, by node.

    Raises:
        TargetError: some are not; names each with what it was to run in and what it runs in.
    """
    wrong, unknown = [], []
    for node in module.graph:
        name = node.metadata_props.get(PRECISION, FULL)
        if name == FULL or (scheme := find_scheme(name, target)).computes_in == "float":
            continue
        found = precision.get(node_label(node))
        if found is None and node.op_type.removesuffix("Integer") in scheme.kernels:
            unknown.append(node_label(node))
        elif found not in (None, scheme.computes_in):
            wrong.append(f"{node_label(node)} ({node.op_type}) as {name} runs in {found}")
    if wrong:
        shown = wrong[:_SHOWN] + ([f"and {len(wrong) - _SHOWN} more"] if wrong[_SHOWN:] else [])
        raise TargetError(
            f"{len(wrong)} of the quantised nodes do not run in the precision that was planned",
            at="\n      ".join(shown),
            hint="leave these nodes full in the recipe, or report the form that the runtime missed",
        )
    return unknown

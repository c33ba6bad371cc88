"""The precision that a program really runs in, against what was planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from aigcc.errors import TargetError
from aigcc.ir.module import Module
from aigcc.passes.quant.placement import find_scheme
from aigcc.passes.quant.quantise import FULL, PRECISION
from aigcc.target import Target, node_label

_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A product that does not run in the precision that was planned.

    Attributes:
        node: Its label.
        op: Its operator.
        scheme: What was planned.
        found: The dtype that it runs in.
    """

    node: str
    op: str
    scheme: str
    found: str

    def __str__(self) -> str:
        return f"{self.node} ({self.op}) as {self.scheme} runs in {self.found}"


def read_back(
    module: Module, target: Target, precision: Mapping[str, str]
) -> tuple[list[Mismatch], list[str]]:
    """The products that run in another dtype than planned, and those nothing was read back of.

    Args:
        module: The module that was lowered; quantised nodes keep the name of their scheme.
        target: For whom.
        precision: Dtypes that were read back from the program, by node.
    """
    wrong, unknown = [], []
    for node in module.graph:
        name = node.metadata_props.get(PRECISION, FULL)
        if name == FULL or (scheme := find_scheme(name, target)).computes_in == "float":
            continue
        label = node_label(node)
        found = precision.get(label)
        if found is None and node.op_type.removesuffix("Integer") in scheme.kernels:
            unknown.append(label)
        elif found not in (None, scheme.computes_in):
            wrong.append(Mismatch(label, node.op_type, name, found))
    return wrong, unknown


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
    wrong, unknown = read_back(module, target, precision)
    if wrong:
        shown = [str(each) for each in wrong[:_SHOWN]]
        shown += [f"and {len(wrong) - _SHOWN} more"] if wrong[_SHOWN:] else []
        raise TargetError(
            f"{len(wrong)} of the quantised nodes do not run in the precision that was planned",
            at="\n      ".join(shown),
            hint="leave these nodes full in the recipe, or report the form that the runtime missed",
        )
    return unknown

"""What a pass is handed besides the module: target, samples, and where it says what it did."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from aigcc.errors import CompileError

if TYPE_CHECKING:
    from aigcc.analysis.budget import Budget
    from aigcc.analysis.calibration.calibrate import Calibration
    from aigcc.analysis.recipe import Recipe
    from aigcc.ir.module import Module
    from aigcc.samples import Samples
    from aigcc.target import Target

_ANY = 1 << 30  # no opset is higher
Kind = Literal["applied", "declined", "note"]


@dataclasses.dataclass(frozen=True)
class Remark:
    """One thing that a pass did, or declined to do, and why."""

    kind: Kind
    maker: str
    node: str
    message: str
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        place = f" {self.node}:" if self.node else ""
        return f"[{self.maker}]{place} {self.message}"


@dataclasses.dataclass
class Context:
    """The surroundings of a run; one for all the passes of a pipeline.

    Attributes:
        target: The device that the module is prepared for, or None.
        samples: Inputs to measure on, or None.
        calibration_samples: Inputs to calibrate on; those to measure on where there are none.
        calibration: Statistics of activations that a pass has left for later ones.
        original: The model as it was read, which a build is compared with in the end; None where
            that is what the first pass gets.
        recipe: The precisions that a pass has chosen.
        budget: What a pass that changes values has promised to keep.
        threads: How many threads a pass may use; None means all cores, and more than there are
            cores means as many as there are.
        limit: Stop after so many rewrites in the whole run; None means no limit.
        progress: Called with a short text and a fraction from 0 to 1 by long-running work.
        remarks: What has been said so far.
        rewrites: Rewrites so far, by maker (`pass` or `pass/rule`).
        opset: The highest opset that a rewrite so far was worth.

    Raises:
        CompileError: `limit` is below 0, or `threads` below 1.
    """

    target: Target | None = None
    samples: Samples | None = None
    calibration_samples: Samples | None = None
    calibration: Calibration | None = None
    original: Module | None = None
    recipe: Recipe | None = None
    budget: Budget | None = None
    threads: int | None = None
    limit: int | None = None
    progress: Callable[[str, float], None] = lambda text, fraction: None
    remarks: list[Remark] = dataclasses.field(default_factory=list)
    rewrites: Counter[str] = dataclasses.field(default_factory=Counter)
    maker: str = ""
    opset: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise CompileError(f"limit is {self.limit}", hint="0 or more rewrites; None for all")
        self.threads = usable_threads(self.threads)

    @property
    def total(self) -> int:
        """Rewrites so far in the whole run."""
        return self.rewrites.total()

    def rewrite(self, node: ir.Node | None, message: str, *, by: str = "") -> bool:
        """Ask to make one rewrite, and count it.

        Returns False when the run's limit is reached: then the caller must leave the module as it
        is. Every change of a module passes through here, which is what makes runs bisectable.
        """
        if self.limit is not None and self.total >= self.limit:
            return False
        maker = f"{self.maker}/{by}" if by else self.maker
        self.rewrites[maker] += 1
        self.remarks.append(Remark("applied", maker, _label(node), message))
        return True

    def opsets(self, key: str) -> tuple[int, int]:
        """The lowest and the highest default opset in which an operator runs: on the target, and in
        ONNX Runtime, in which modules are compared.

        Args:
            key: As `op_key` gives it; of an operator that both have.
        """
        from aigcc.targets import reference

        tables = [reference(), *([] if self.target is None else [self.target.can])]
        found = [table.versions.get(key, (0, _ANY)) for table in tables]
        return max(low for low, _ in found), min(high for _, high in found)

    def decline(self, node: ir.Node | None, message: str, *, by: str = "", **numbers: Any) -> None:
        """Say why a rewrite that was in reach was not made."""
        self._say("declined", node, message, by, numbers)

    def note(self, node: ir.Node | None, message: str, *, by: str = "", **numbers: Any) -> None:
        """Say something worth knowing that is neither a rewrite nor a refusal."""
        self._say("note", node, message, by, numbers)

    def _say(
        self, kind: Kind, node: ir.Node | None, message: str, by: str, numbers: dict[str, Any]
    ) -> None:
        maker = f"{self.maker}/{by}" if by else self.maker
        remark = Remark(kind, maker, _label(node), message, numbers)
        if remark not in self.remarks[-64:]:
            self.remarks.append(remark)


def usable_threads(wanted: int | None) -> int | None:
    """As many threads as are wanted, at most one a core; None is left to whoever runs.

    Raises:
        CompileError: fewer than one.
    """
    if wanted is None:
        return None
    if wanted < 1:
        raise CompileError(f"{wanted} threads cannot run", hint="1 or more; None for all cores")
    return min(wanted, os.cpu_count() or 1)


def _label(node: ir.Node | None) -> str:
    if node is None:
        return ""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type

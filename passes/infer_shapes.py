"""Shape inference as a pass: element types and shapes for every value that lacks them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from aigcc.ir.module import Module
from aigcc.ir.shapes.inference import Dropped, infer_shapes
from aigcc.options import option
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass
from aigcc.target import node_label


@dataclasses.dataclass(frozen=True)
class InferShapes(Pass):
    """Fill in element types and shapes; says which node stopped it, and what was declared falsely.

    The shapes of the model's inputs are law. A shape that is declared of another value, and that
    is not what its node makes, is dropped.
    """

    name: ClassVar[str] = "infer-shapes"
    only_missing: bool = option(False, "leave modules alone in which every value has a shape")

    def run(self, module: Module, ctx: Context) -> None:
        """Infer, keeping what is known already. Types are facts, so this counts no rewrites."""
        for found in infer_shapes(module.model, only_missing=self.only_missing):
            says = "a false shape is dropped" if isinstance(found, Dropped) else "inference stops"
            ctx.note(found.node, f"{says} at {node_label(found.node)}: {found.reason}")

"""The canonical form: no constants to compute, nothing dead, nothing twice, nothing in vain."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from aigcc.ir.bodies import put_copy, unwritten_outputs
from aigcc.ir.module import Module
from aigcc.ir.names import Names
from aigcc.options import option
from aigcc.passes.eliminate_dead import EliminateDead
from aigcc.passes.fold_constants import FoldConstants
from aigcc.passes.fold_shapes import FoldShapes
from aigcc.passes.infer_shapes import InferShapes
from aigcc.passes.lift_constants import LiftConstants
from aigcc.passes.merge_initializers import MergeInitializers
from aigcc.passes.merge_subexpressions import MergeSubexpressions
from aigcc.passes.simplify import Simplify
from aigcc.passes.take_branches import TakeBranches
from aigcc.passes.unpack_sequences import UnpackSequences
from aigcc.passes.unroll_loops import UnrollLoops
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass


@dataclasses.dataclass(frozen=True)
class Canonicalize(Pass):
    """Run the clean-up passes until none finds anything more.

    Once: lift-constants, infer-shapes, unpack-sequences. In rounds: fold-shapes, fold-constants,
    take-branches, unroll-loops, simplify, merge-initializers, merge-subexpressions, eliminate-dead.
    """

    name: ClassVar[str] = "canonicalize"
    limit: int = option(1 << 20, "bytes; see fold-constants")
    rounds: int = option(10, "give up after so many rounds (a remark says so)")

    def run(self, module: Module, ctx: Context) -> None:
        """Repeat to the fixed point."""
        maker = ctx.maker
        steps: list[Pass] = [
            InferShapes(only_missing=True),
            FoldShapes(),
            FoldConstants(limit=self.limit),
            TakeBranches(),
            UnrollLoops(),
            Simplify(),
            MergeInitializers(),
            MergeSubexpressions(),
            EliminateDead(),
        ]
        names = Names(module)
        for node, graph, index in list(unwritten_outputs(module)):
            if not ctx.rewrite(node, f"{node.op_type} whose outputs are all written"):
                return
            put_copy(graph, index, names)
        _run(LiftConstants(), maker, module, ctx)
        _run(InferShapes(), maker, module, ctx)
        _run(UnpackSequences(), maker, module, ctx)
        for _ in range(self.rounds):
            before = ctx.total
            for step in steps:
                _run(step, maker, module, ctx)
            if ctx.total == before:
                break
        else:
            ctx.maker = maker
            ctx.note(None, f"still finding work after {self.rounds} rounds")
        ctx.maker = maker


def _run(step: Pass, maker: str, module: Module, ctx: Context) -> None:
    ctx.maker = f"{maker}/{step.name}"
    step.run(module, ctx)

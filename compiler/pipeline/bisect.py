"""Bisection: which rewrite of a pipeline is the first that changes the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from aigcc.analysis.metrics import compare_outputs
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context, Remark
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.runtime import OrtSession
from aigcc.samples import Samples
from aigcc.target import Target


@dataclasses.dataclass(frozen=True)
class FirstWrong:
    """The answer of a bisection.

    Attributes:
        rewrites: How many rewrites the whole pipeline makes.
        number: The first wrong one, counted from 1; 0 where all are right.
        remark: What it was.
        before: Relative error without it.
        error: Relative error with it; infinite where the module no longer runs.
    """

    rewrites: int
    number: int = 0
    remark: Remark | None = None
    before: float = 0.0
    error: float = 0.0


def find_first_wrong(
    module: Module,
    passes: Sequence[Pass],
    samples: Samples,
    *,
    tolerance: float,
    target: Target | None = None,
    progress: Callable[[str, float], None] = lambda text, fraction: None,
) -> FirstWrong:
    """Bisect over the number of rewrites, running the first sample each time.

    Args:
        module: The input of the pipeline; it is left as it is.
        passes: The pipeline.
        samples: The first of them is used.
        tolerance: The largest max|a-b| / max|a| that counts as right.
        target: What the passes may ask.
        progress: Told how far the search is.
    """
    feeds = next(iter(samples))
    reference = OrtSession(module, optimise=False).run(feeds)

    def attempt(limit: int | None) -> tuple[float, Context]:
        trial, ctx = module.clone(), Context(target=target, samples=samples, limit=limit)
        try:
            PassManager(passes).run(trial, ctx)
            outputs = OrtSession(trial, optimise=False).run(feeds)
        except CompileError:
            return float("inf"), ctx
        return max(row.relative for row in compare_outputs(reference, outputs)), ctx

    error, ctx = attempt(None)
    total = ctx.total
    if error <= tolerance:
        return FirstWrong(total)
    right, wrong, before = 0, total, 0.0
    while wrong - right > 1:
        middle = (right + wrong) // 2
        progress(f"trying {middle} of {total} rewrites", 1 - (wrong - right) / total)
        found, _ = attempt(middle)
        if found <= tolerance:
            right, before = middle, found
        else:
            wrong = middle
    error, ctx = attempt(wrong)
    applied = [remark for remark in ctx.remarks if remark.kind == "applied"]
    return FirstWrong(total, wrong, applied[-1], before, error)

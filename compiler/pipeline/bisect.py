"""Bisection: which rewrite of a pipeline is the first that changes the outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from aigcc.analysis.metrics import compare_outputs
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.pipeline.context import Context, Remark
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.reference import Reference
from aigcc.samples import Samples, refuse_empty
from aigcc.target import Target


@dataclasses.dataclass(frozen=True)
class FirstWrong:
    """The answer of a bisection.

    Attributes:
        rewrites: How many rewrites the whole pipeline makes.
        number: The first wrong one, counted from 1; 0 where all are right, and where a pass
            changes the outputs with no rewrite that it counted.
        remark: What it was; None where all are right.
        before: Relative error without it.
        error: Relative error with it; infinite where the module no longer runs.
        failure: Why it no longer runs.
    """

    rewrites: int
    number: int = 0
    remark: Remark | None = None
    before: float = 0.0
    error: float = 0.0
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class _Attempt:
    error: float
    ctx: Context
    failure: str = ""


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

    Raises:
        CompileError: the module does not run before the first pass, or its outputs are empty.
    """
    feeds = next(iter(samples))
    reference = Reference(module).run(feeds)
    refuse_empty(sum(array.size for array in reference.values()), samples.source)

    def attempt(passes: Sequence[Pass], limit: int | None = None) -> _Attempt:
        trial, ctx = module.clone(), Context(target=target, samples=samples, limit=limit)
        try:
            PassManager(passes).run(trial, ctx)
            outputs = Reference(trial, rounds=True).run(feeds)
            rows = compare_outputs(reference, outputs)
        except CompileError as error:
            return _Attempt(math.inf, ctx, str(error))
        return _Attempt(max((row.relative for row in rows), default=0.0), ctx)

    whole = attempt(passes)
    total = whole.ctx.total
    if whole.error <= tolerance:
        return FirstWrong(total)
    right, wrong, before = 0, total, 0.0
    while wrong - right > 1:
        middle = (right + wrong) // 2
        progress(f"trying {middle} of {total} rewrites", 1 - (wrong - right) / total)
        tried = attempt(passes, middle)
        if tried.error <= tolerance:
            right, before = middle, tried.error
        else:
            wrong = middle
    last = attempt(passes, wrong)
    applied = [remark for remark in last.ctx.remarks if remark.kind == "applied"]
    if last.error <= tolerance or not applied:
        return _first_wrong_pass(passes, attempt, total, tolerance)
    return FirstWrong(total, wrong, applied[-1], before, last.error, last.failure)


def _first_wrong_pass(
    passes: Sequence[Pass],
    attempt: Callable[[Sequence[Pass]], _Attempt],
    total: int,
    tolerance: float,
) -> FirstWrong:
    """The pass after which outputs are wrong, where no counted rewrite explains it."""
    before, count = 0.0, 1
    while (found := attempt(passes[:count])).error <= tolerance and count < len(passes):
        before, count = found.error, count + 1
    message = "the pass fails, or changes the module without asking ctx.rewrite"
    remark = Remark("note", passes[count - 1].name, "", message)
    return FirstWrong(total, 0, remark, before, found.error, found.failure)

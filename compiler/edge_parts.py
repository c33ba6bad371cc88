"""The exact parts of a pipeline at the edges of a model's inputs, and the rewrite to blame."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from aigcc.edge_check import SECONDS, EdgeCheck, EdgeFault, EdgeReport
from aigcc.errors import CompileError
from aigcc.figures import seconds
from aigcc.ir.module import Module
from aigcc.pipeline.attempts import Attempt, FirstWrong, Open, Search, meant
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.pipeline.parts import Part, Parts
from aigcc.samples import Samples
from aigcc.target import Target

_BISECT_SECONDS = 20.0  # what is wrong is bisected at once where that takes no longer


@dataclasses.dataclass(frozen=True)
class EdgeJudge:
    """Compares what passes made of a module with what they got.

    Attributes:
        samples: The first of them is what edges are derived from.
        tolerance: The largest max|a-b| / max|a| that rounding explains.
        target: What the passes may ask.
        threads: As for `OrtSession`.
        seconds: How long a run of the original takes, where that is known.
    """

    samples: Samples
    tolerance: float
    target: Target | None = None
    threads: int | None = None
    seconds: float = 0.0

    def refuse(
        self, parts: Sequence[Part], command: str, error: type[CompileError] = CompileError
    ) -> dict[str, Any] | None:
        """What all parts did at edges; nothing of it is wrong. None where there are no parts.

        Args:
            parts: See `aigcc.pipeline.parts`.
            command: Names the rewrite that is to blame.
            error: What is raised.

        Raises:
            CompileError: a part does something else than what it got; names the rewrite where
                finding it is quick.
        """
        total = EdgeReport()
        for part in parts:
            check, report = self._compare(part)
            if check is not None and report.faults:
                fault = report.faults[0]
                where = ",".join(map(str, part.passes))
                hint = f"{command} names the rewrite"
                if self._is_quick(part, check):
                    found = self._find(part, check, fault)
                    where, hint = found or where, f"to find it again: {command}"
                raise error(f"with {fault.edge.name} {fault.what}", at=where, hint=hint)
            total = total.joined(report)
        return total.describe() if parts else None

    def find(self, parts: Sequence[Part]) -> tuple[EdgeFault, FirstWrong] | None:
        """The first fault at an edge, and the rewrite that is to blame; None if there is none."""
        for part in parts:
            check, report = self._compare(part)
            if check is not None and report.faults:
                return report.faults[0], self._bisect(part, check, report.faults[0])
        return None

    def _compare(self, part: Part) -> tuple[EdgeCheck | None, EdgeReport]:
        if 4 * self.seconds > SECONDS:
            return None, EdgeReport(left_out=f"a run takes {seconds(self.seconds)}")
        try:
            sample = next(iter(self.samples.fitted(part.before)))
            check = EdgeCheck(part.before, sample, self.tolerance, self.threads)
            return check, check.compare(part.after, far=part.is_first)
        except CompileError as error:
            return None, EdgeReport(left_out=error.what)

    def _is_quick(self, part: Part, check: EdgeCheck) -> bool:
        one = sum(run.seconds for run in part.runs) + 3 * check.seconds
        return one * math.log2(part.rewrites + 4) < _BISECT_SECONDS

    def _bisect(self, part: Part, check: EdgeCheck, fault: EdgeFault) -> FirstWrong:
        search = _AtEdge(part.before, self.samples, 0.0, self.target, lambda text, fraction: None)
        search.judge = lambda module: check.error(fault.edge, module)
        return search.find(part.passes, meant)

    def _find(self, part: Part, check: EdgeCheck, fault: EdgeFault) -> str:
        found = self._bisect(part, check, fault)
        if found.remark is None:
            return ""
        number = f"rewrite {found.number} of {found.rewrites}, " if found.number else ""
        return f"{number}{found.remark}"


class _AtEdge(Search):
    """A search that asks an edge, and not a sample, how wrong a module is."""

    judge: Callable[[Module], float]

    def attempt(self, passes: Sequence[Pass], open: Open, limit: int | None = None) -> Attempt:
        """Judge the module after some rewrites."""
        ctx = Context(target=self._target, samples=self._samples, limit=limit)
        made = self._module.clone()
        try:
            PassManager(passes).run(made, ctx)
            return Attempt(self.judge(made), ctx)
        except CompileError as error:
            return Attempt(math.inf, ctx, str(error))


def find_at_edges(
    module: Module,
    pipeline: Sequence[Pass],
    samples: Samples,
    tolerance: float,
    target: Target | None,
) -> tuple[EdgeFault, FirstWrong] | None:
    """Run a pipeline, and find the rewrite after which an edge comes out otherwise; None if none.

    Raises:
        CompileError: a pass failed.
    """
    parts, made = Parts(), module.clone()
    PassManager(pipeline, observers=[parts]).run(made, Context(target=target, samples=samples))
    return EdgeJudge(samples, tolerance, target).find(parts.found(made))

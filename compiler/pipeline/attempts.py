"""Attempts to find a wrong rewrite: pipelines that stop early, and how wrong outputs are then."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence

from aigcc.analysis.metrics import compare_outputs
from aigcc.errors import CompileError
from aigcc.ir.module import Module
from aigcc.noise import equal_noise
from aigcc.pipeline.context import Context, Remark
from aigcc.pipeline.levels import Blame, blame
from aigcc.pipeline.manager import Pass, PassManager
from aigcc.reference import Reference
from aigcc.runtime import Level, OrtSession
from aigcc.samples import Samples, refuse_empty
from aigcc.target import Session, Target

Progress = Callable[[str, float], None]
Open = Callable[[Module], Session | None]


@dataclasses.dataclass(frozen=True)
class FirstWrong:
    """The answer of a bisection.

    Attributes:
        rewrites: How many rewrites the whole pipeline makes.
        number: The first wrong one, counted from 1; 0 where all are right, and where a pass
            changes the outputs with no rewrite that it counted.
        remark: What it was; None where all are right.
        before: Relative error without it; NaN where the program does not run there.
        error: Relative error with it; infinite where the module no longer runs.
        failure: Why it no longer runs.
        deployed: What ran the modules as they are deployed; empty where nothing did.
        only_deployed: Whether all rewrites are right by what they mean, and the rest of the answer
            is about the program as it is deployed.
        original: Relative error of the model before the first pass, as it is deployed, where that
            is wrong; a rewrite is then judged by the model as it is deployed.
        blame: What of ONNX Runtime breaks the program, where that is found.
    """

    rewrites: int
    number: int = 0
    remark: Remark | None = None
    before: float = 0.0
    error: float = 0.0
    failure: str = ""
    deployed: str = ""
    only_deployed: bool = False
    original: float = 0.0
    blame: Blame | None = None

    @property
    def is_right(self) -> bool:
        """Whether nothing is wrong, however it runs."""
        return self.remark is None and not self.only_deployed


def meant(module: Module) -> Session:
    """A module as it means, without any optimisations."""
    return Reference(module, rounds=True)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """How wrong the outputs are after some rewrites; unknown where nothing runs them here."""

    error: float
    ctx: Context
    failure: str = ""
    is_unknown: bool = False


class Search:
    """Runs a module after some of the rewrites of a pipeline, on one sample."""

    def __init__(
        self,
        module: Module,
        samples: Samples,
        tolerance: float,
        target: Target | None,
        progress: Progress,
    ) -> None:
        self._module = module
        self._samples = samples
        self._tolerance = tolerance
        self._target = target
        self._progress = progress
        self._feeds = next(iter(samples))
        self._reference = Reference(module).run(self._feeds)
        refuse_empty(sum(array.size for array in self._reference.values()), samples.source)

    def judge_by(self, open: Open) -> None:
        """Take for right what the module itself makes of the sample when it runs in some way.

        Raises:
            CompileError: it does not run so.
        """
        session = open(self._module)
        assert session is not None
        self._reference = session.run(self._feeds)

    def deployed(self, module: Module) -> Session | None:
        """A module as it is deployed."""
        if self._target is None:
            return OrtSession(equal_noise(module))
        return self._target.open(equal_noise(module))

    def run(self, passes: Sequence[Pass], limit: int | None) -> tuple[Module, Context]:
        """What passes make of the module, and what they say of it."""
        made = self._module.clone()
        ctx = Context(target=self._target, samples=self._samples, limit=limit)
        PassManager(passes).run(made, ctx)
        return made, ctx

    def attempt(self, passes: Sequence[Pass], open: Open, limit: int | None = None) -> Attempt:
        """Run the module after some rewrites."""
        made = self._module.clone()
        ctx = Context(target=self._target, samples=self._samples, limit=limit)
        try:
            PassManager(passes).run(made, ctx)
            session = open(made)
            if session is None:
                return Attempt(math.nan, ctx, is_unknown=True)
            return Attempt(self._error(session), ctx)
        except CompileError as error:
            is_unknown = open is not meant and not self._must_run(made)
            return Attempt(math.inf, ctx, str(error), is_unknown)

    def _must_run(self, made: Module) -> bool:
        """Whether what deploys modules has to take this one: a legal one, or one of its types."""
        if self._target is None:
            return not Reference(made, rounds=True).note
        return not self._target.check(made)

    def _error(self, session: Session) -> float:
        rows = compare_outputs(self._reference, session.run(self._feeds))
        return max((row.relative for row in rows), default=0.0)

    def _is_right(self, attempt: Attempt) -> bool:
        return attempt.is_unknown or attempt.error <= self._tolerance

    def find(self, passes: Sequence[Pass], open: Open, whole: Attempt | None = None) -> FirstWrong:
        """The first wrong rewrite of modules that run in one way."""
        whole = whole or self.attempt(passes, open)
        total = whole.ctx.total
        if self._is_right(whole):
            return FirstWrong(total)
        right, wrong, before = 0, total, 0.0
        while wrong - right > 1:
            middle = (right + wrong) // 2
            text = f"trying {middle} of {total} rewrites"
            self._progress(text, 1 - (wrong - right) / total)
            tried = self.attempt(passes, open, middle)
            if self._is_right(tried):
                right, before = middle, math.nan if tried.is_unknown else tried.error
            else:
                wrong = middle
        last = self.attempt(passes, open, wrong)
        applied = [remark for remark in last.ctx.remarks if remark.kind == "applied"]
        if self._is_right(last) or not applied:
            return self._find_pass(passes, open, total)
        return FirstWrong(total, wrong, applied[-1], before, last.error, last.failure)

    def _find_pass(self, passes: Sequence[Pass], open: Open, total: int) -> FirstWrong:
        """The pass after which outputs are wrong, where no counted rewrite explains it."""
        before, count = 0.0, 1
        while self._is_right(found := self.attempt(passes[:count], open)) and count < len(passes):
            before, count = found.error, count + 1
        message = "the pass fails, or changes the module without asking ctx.rewrite"
        remark = Remark("note", passes[count - 1].name, "", message)
        return FirstWrong(total, 0, remark, before, found.error, found.failure)

    def blame(self, module: Module) -> Blame | None:
        """What of ONNX Runtime breaks a module; None where something else runs it, or breaks it."""
        made = equal_noise(module)

        def is_right(level: Level, without: Collection[str]) -> bool:
            self._progress(f"trying ONNX Runtime's level {level!r}", 1.0)
            try:
                session = OrtSession(made, optimise=level, without=without)
                return self._error(session) <= self._tolerance
            except CompileError:
                return False

        return blame(is_right) if self._target is None or self._target.is_onnxruntime else None

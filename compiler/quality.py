"""Whether a built program computes what its model does, and what to say where it does not."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.analysis.budget import Budget
from aigcc.analysis.calibration.cache import digest_of
from aigcc.analysis.damage import Damage, check_outputs
from aigcc.analysis.metrics import OutputError, compare_outputs
from aigcc.errors import CompileError, TargetError
from aigcc.figures import number
from aigcc.ir.module import Module
from aigcc.noise import describe_noise
from aigcc.options import show
from aigcc.pipeline.attempts import FirstWrong
from aigcc.pipeline.bisect import find_first_wrong
from aigcc.pipeline.context import Context
from aigcc.pipeline.manager import Pass, PassRun
from aigcc.ranges import declared
from aigcc.reference import ROUNDINGS, Reference, explains, rounded_otherwise
from aigcc.samples import Samples, refuse_empty
from aigcc.sizes import Elsewhere, compare_elsewhere
from aigcc.target import Session, Target

_BISECT_SECONDS = 20.0  # a wrong build is bisected at once where that takes no longer


@dataclasses.dataclass
class Quality:
    """How far a program's outputs are from the original's.

    Attributes:
        worst: By output, the row of the sample on which it is furthest off.
        sample: By output, the number of that sample.
        elements: By output, values over all samples.
        not_finite: By output, values that are NaN or infinite in the original: no measure of them.
        count: Samples.
        seconds: Of the last run of the original.
        failure: Why the program gave no outputs that compare for the last sample.
        reference: What stood in for the original, and why; empty where nothing had to.
        is_lowered: Whether the program itself ran, and not the module that was lowered to it.
        rounding: By output that a program with other roundings than the original's gets as wrong:
            the relative error of such a one.
        damage: The figures that a budget bounds, where there is one.
        calibrated: How many of the samples activations were calibrated on.
        elsewhere: How far off it is in other sizes than the samples'.
        noise: What is to be said of the random numbers that the original draws, if it does.
    """

    worst: dict[str, OutputError] = dataclasses.field(default_factory=dict)
    sample: dict[str, int] = dataclasses.field(default_factory=dict)
    elements: Counter[str] = dataclasses.field(default_factory=Counter)
    not_finite: Counter[str] = dataclasses.field(default_factory=Counter)
    count: int = 0
    seconds: float = 0.0
    failure: CompileError | None = None
    reference: str = ""
    is_lowered: bool = True
    rounding: dict[str, float] = dataclasses.field(default_factory=dict)
    damage: Damage | None = None
    calibrated: int = 0
    elsewhere: list[Elsewhere] = dataclasses.field(default_factory=list)
    noise: str = ""

    def add(
        self, feeds: Mapping[str, Any], expected: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        """Take in the outputs for one sample."""
        for row in compare_outputs(expected, given):
            known = self.worst.get(row.name)
            if known is None or not known.elements or row.relative > known.relative:
                self.worst[row.name], self.sample[row.name] = row, self.count
            self.elements[row.name] += row.elements
        for name, array in expected.items():
            if array.dtype.kind not in "OSU":
                self.not_finite[name] += int((~np.isfinite(array)).sum())
        if self.damage is not None:
            self.damage.add(feeds, expected, given)
        self.count += 1

    def wrong(self, tolerance: float) -> list[OutputError]:
        """The outputs that are further off than `tolerance`."""
        return [row for row in self.worst.values() if not row.relative <= tolerance]

    def unexplained(
        self, tolerance: float, original: Module, samples: Samples
    ) -> list[OutputError]:
        """The outputs that are further off than `tolerance`, and than rounding makes them.

        Notes in `rounding` those that rounding explains.
        """
        found = []
        for row in self.wrong(tolerance):
            rounding = rounding_of(row.name, original, samples, self.sample[row.name])
            if explains(rounding, row.relative, tolerance) and not row.broken:
                self.rounding[row.name] = rounding
            else:
                found.append(row)
        return found

    def refuse(self, budget: Budget, where: str) -> None:
        """Do nothing if the program keeps a budget's bounds on quality.

        Raises:
            TargetError: it fails, gives NaN or infinite numbers, or breaks a bound.
        """
        assert self.damage is not None
        if self.failure is not None:
            raise TargetError(f"the built program fails: {self.failure}", at=where)
        missed = budget.shortfall(self.damage.figures(), self.damage.original())
        if missed:
            raise TargetError(
                f"the built program breaks {budget.named()}: {missed}",
                at=where,
                hint="give --budget, which chooses the nodes to quantise"
                if budget.implied_by
                else "ask for less, or let assign-precision choose which nodes are quantised",
            )

    def refuse_elsewhere(self, tolerance: float, where: str) -> None:
        """Do nothing if the program is as right in other sizes as it is in the samples'.

        Raises:
            TargetError: it is not.
        """
        errors = [row.relative for row in self.worst.values() if not row.broken]
        for other in self.elsewhere:
            other.refuse(max(tolerance, ROUNDINGS * max(errors, default=0.0)), where)

    def describe(self, samples: Samples) -> dict[str, Any]:
        """The facts that the manifest keeps."""
        facts = samples.describe()
        return {
            **facts,
            "notes": [*facts["notes"], *self._notes()],
            "count": self.count,
            "sizes": [other.sizes for other in self.elsewhere],
            "bounds": [] if self.damage is None else self.damage.bounds(),
            "is_lowered": self.is_lowered,
            "calibrated": self.calibrated,
            "noise": self.noise,
            "outputs": [
                {
                    **dataclasses.asdict(row),
                    "not_finite": self.not_finite[row.name],
                    "rounding": self.rounding.get(row.name),
                }
                for row in self.worst.values()
            ],
        }

    def _notes(self) -> Iterator[str]:
        if self.reference:
            yield f"compared with {self.reference}"
        for name, error in self.rounding.items():
            off = f"puts {name} off by {number(error, '.2g')}"
            if self.reference:
                yield f"the original's own rounding {off}"
            else:
                more = "give real inputs with --samples"
                yield f"rounding alone {off}, so this figure says nothing; {more}"


def measure(
    original: Module,
    session: Session,
    samples: Samples,
    threads: int | None = None,
    budget: Budget | None = None,
    *,
    inputs: Sequence[ir.Value] = (),
) -> Quality:
    """Run a program and its original on all samples, one at a time, until the program fails.

    The original draws equal noise in each run, and the program has to (see `equal_noise`).
    With a budget the figures that it bounds are taken as well. Where dims of the program's `inputs`
    vary, other sizes are looked at besides.

    Raises:
        CompileError: the original cannot run, or has no output that the budget can be measured on;
            the samples are so small that all outputs are empty.
    """
    if budget is not None:
        check_outputs(budget, original)
    damage = None if budget is None else Damage(budget)
    quality = Quality(damage=damage, noise=describe_noise(original))
    reference = Reference(original, threads)
    quality.reference = reference.note
    for feeds in samples:
        started = time.perf_counter()
        expected = samples.run(reference, feeds)
        quality.seconds = time.perf_counter() - started
        try:
            quality.add(feeds, expected, session.run(feeds))
        except CompileError as error:
            quality.failure = error
            break
    else:
        refuse_empty(quality.elements.total(), samples.source)
        first = next(iter(samples))
        quality.elsewhere = compare_elsewhere(
            inputs, first, reference.run, session, declared(original)
        )
    return quality


def rounding_of(output: str, original: Module, samples: Samples, sample: int) -> float:
    """How far other roundings than the reference's put an output of a model off, for one sample."""
    feeds = next(islice(iter(samples), sample, None))
    right = Reference(original).run(feeds)
    other = rounded_otherwise(original).run(feeds)
    (row,) = compare_outputs({output: right[output]}, {output: other[output]})
    return row.relative


def count_calibrated(ctx: Context) -> int:
    """How many of the samples to measure on activations were calibrated on."""
    if ctx.calibration is None or ctx.samples is None:
        return 0
    if ctx.calibration_samples is None:
        return ctx.calibration.samples
    seen = set(map(digest_of, ctx.calibration_samples))
    return sum(digest_of(feeds) in seen for feeds in ctx.samples)


@dataclasses.dataclass(frozen=True)
class Suspects:
    """What may have made a build wrong.

    Attributes:
        original: The module before the first pass.
        pipeline: The passes.
        runs: What each of them did.
        target: What lowered the result.
        samples: What the result was measured on.
        command: Names the first wrong rewrite.
    """

    original: Module
    pipeline: Sequence[Pass]
    runs: Sequence[PassRun]
    target: Target
    samples: Samples
    command: str

    def refuse(self, quality: Quality) -> None:
        """Do nothing if all outputs are right, or as wrong as rounding makes them anyway.

        Raises:
            TargetError: one is not; names the rewrite that broke it where finding it is quick.
        """
        fault, sample = "", quality.count
        if quality.failure is not None:
            fault = f"the built program fails: {quality.failure}"
        wrong = quality.unexplained(self.target.tolerance, self.original, self.samples)
        if wrong and not fault:
            fault, sample = self._describe(wrong[0]), quality.sample[wrong[0].name]
        if not fault:
            return
        where, hint = show(self.target, self.target.name), f"{self.command} names the rewrite"
        if self._is_quick(quality):
            where, hint = self._find(sample)
        raise TargetError(fault, at=where, hint=hint) from quality.failure

    def _describe(self, row: OutputError) -> str:
        fault = (
            f"{row.broken} of {row.elements} values are NaN or infinite in one program only"
            if row.broken
            else f"its relative error is {row.relative:.2g}, more than the "
            f"{self.target.tolerance:.2g} that {self.target.name} allows here"
        )
        return f"output {row.name!r} is wrong: {fault}"

    def _is_quick(self, quality: Quality) -> bool:
        steps = math.log2(sum(run.rewrites for run in self.runs) + 4)
        one = sum(run.seconds for run in self.runs) + 3 * quality.seconds
        return one * steps < _BISECT_SECONDS

    def _find(self, sample: int) -> tuple[str, str]:
        """Where the fault is, and what to do."""
        read = self.samples.read
        found = find_first_wrong(
            self.original,
            self.pipeline,
            dataclasses.replace(self.samples, read=lambda: islice(read(), sample, None)),
            tolerance=self.target.tolerance,
            target=self.target,
        )
        if found.remark is None and found.only_deployed:
            return (
                f"{found.deployed}, not the passes: the model as it was read "
                f"{'fails' if found.failure else 'is wrong'} there, too{_blamed(found)}",
                "give inputs on which that does not show with --samples, or change the model",
            )
        if found.remark is None:
            return (
                f"lowering for {show(self.target, self.target.name)}: the passes are right",
                "build with --verify=structure, and look at the result with aigcc compare",
            )
        place = f"rewrite {found.number} of {found.rewrites}, " if found.number else ""
        return f"{place}{found.remark}{_blamed(found)}", f"to find it again: {self.command}"


def _blamed(found: FirstWrong) -> str:
    """What is to be said of a runtime that breaks what the passes leave right."""
    if not found.only_deployed or found.remark is None:
        return "" if found.blame is None else f"; {found.blame}"
    text = f"\n      it is right by what it means, and wrong as {found.deployed} runs it"
    return text if found.blame is None else f"{text}: {found.blame}"

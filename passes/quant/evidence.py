"""What a search judges mixtures by: samples, what the model makes of them, and ranges."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from aigcc.analysis.budget import Budget
from aigcc.analysis.calibration.cache import digest_of, digest_with
from aigcc.analysis.calibration.calibrate import Calibration
from aigcc.cache import cache_folder
from aigcc.ir.module import Module
from aigcc.passes.quant.latency import machine
from aigcc.passes.quant.memory import Memory
from aigcc.passes.quant.quantise import Method, Place, calibrated, channels_of, ranges
from aigcc.passes.quant.region import RangeOf, Tuning
from aigcc.pipeline.context import Context
from aigcc.reference import Reference
from aigcc.samples import Feeds, Samples, refuse_empty

_SAMPLES = 8
_REVISION = 3  # of how figures are measured: what was measured otherwise is left alone
_MOST = 32  # to calibrate a fold on: with more, ranges hardly change

Outputs = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What calibration on some samples says about activations."""

    range_of: RangeOf
    tuning: Tuning

    @classmethod
    def of(cls, calibration: Calibration | None, method: Method) -> Ranges:
        """Ranges by a method, and statistics of channels."""
        return cls(ranges(calibration, method), Tuning(channels_of(calibration)))


@dataclasses.dataclass(frozen=True)
class Fold:
    """Ranges, and the samples to judge them by, which had no part in them if there are two folds.

    Attributes:
        ranges: Of a program to build.
        judged: Positions among the feeds.
        probes: Those of them that sensitivity is measured on.
    """

    ranges: Ranges
    judged: Sequence[int]
    probes: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Samples and what they show.

    Where the same samples calibrate and judge, a mixture is judged by two programs: each half of
    the samples gives the ranges for the other half. On the samples that it was calibrated on, a
    program is better than on all others.

    Attributes:
        budget: What is of interest.
        feeds: Samples to judge by: eight at the most, the first and the last among them.
        expected: What the model as it is makes of them, in ONNX Runtime without optimisations.
        folds: What to build, and what to judge it by.
        final: The ranges that a build has, of all samples that there are to calibrate on.
        memory: What was measured before with the same model, samples and budget.
    """

    budget: Budget
    feeds: Sequence[Feeds]
    expected: Sequence[Outputs]
    folds: Sequence[Fold]
    final: Ranges
    memory: Memory

    @classmethod
    def gather(
        cls,
        module: Module,
        places: Sequence[Place],
        budget: Budget,
        method: Method,
        probes: int,
        ctx: Context,
    ) -> Evidence:
        """Calibrate, and run the model as it is.

        Args:
            module: The model; not changed.
            places: The nodes in all schemes that they may take.
            budget: What is of interest.
            method: How ranges are chosen.
            probes: How many samples of each fold sensitivity is measured on.
            ctx: Samples; gets the calibration.
        """
        assert ctx.samples is not None
        ctx.calibration = calibrated(module, places, ctx)
        positions = ctx.samples.spaced(_SAMPLES)
        feeds = list(ctx.samples.at(positions))
        original = Reference(module, ctx.threads)
        expected = [original.run(sample) for sample in feeds]
        refuse_empty(sum(a.size for made in expected for a in made.values()), ctx.samples.source)
        return cls(
            budget,
            feeds,
            expected,
            list(_folds(module, places, positions, method, probes, ctx)),
            Ranges.of(ctx.calibration, method),
            Memory(_store(module, places, (str(budget), method, probes), feeds, ctx)),
        )


def _folds(
    module: Module,
    places: Sequence[Place],
    positions: Sequence[int],
    method: Method,
    probes: int,
    ctx: Context,
) -> Iterator[Fold]:
    every = range(len(positions))
    if ctx.calibration is None or ctx.calibration_samples is not None or len(positions) < 2:
        yield Fold(Ranges.of(ctx.calibration, method), every, every[:probes])
        return
    assert ctx.samples is not None
    pool = ctx.samples.spaced(_MOST)
    first, second = every[::2], every[1::2]
    for judged, probed in ((first, first[:probes]), (second, second[-probes:])):
        left_out = {positions[index] for index in judged}
        others = _only(ctx.samples, [place for place in pool if place not in left_out])
        other = dataclasses.replace(ctx, calibration=None, calibration_samples=others)
        yield Fold(Ranges.of(calibrated(module, places, other), method), judged, probed)


def _only(samples: Samples, positions: Sequence[int]) -> Samples:
    """The samples at some positions."""

    def read() -> Iterator[tuple[str, Feeds]]:
        for position, feeds in zip(positions, samples.at(positions), strict=True):
            yield f"{samples.source}, sample {position}", feeds

    return dataclasses.replace(samples, read=read)


def _store(
    module: Module,
    places: Sequence[Place],
    asked: tuple[object, ...],
    feeds: Sequence[Feeds],
    ctx: Context,
) -> Path:
    assert ctx.target is not None
    facts = [
        [digest_of(sample) for sample in feeds],
        ctx.calibration and ctx.calibration.digest,
        ctx.calibration_samples is None,
        sorted({repr(place.scheme) for place in places}),
        asked,
        ctx.target.runtime(),
        machine(),
        ctx.threads or os.cpu_count(),
        importlib.metadata.version("aigcc"),
        _REVISION,
    ]
    return cache_folder() / "search" / f"{digest_with(module, facts)}.json"

"""What a search judges mixtures by: samples, what the model makes of them, and ranges."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
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
from aigcc.passes.quant.latency import processor
from aigcc.passes.quant.memory import Memory
from aigcc.passes.quant.quantise import Method, Place, calibrated, channels_of, ranges
from aigcc.passes.quant.region import RangeOf, Tuning
from aigcc.pipeline.context import Context
from aigcc.runtime import OrtSession
from aigcc.samples import Feeds, Samples

_SAMPLES = 4
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
    """

    ranges: Ranges
    judged: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Samples and what they show.

    Where the same samples calibrate and judge, a mixture is judged by two programs: each half of
    the samples gives the ranges for the other half. On the samples that it was calibrated on, a
    program is better than on all others.

    Attributes:
        budget: What is of interest.
        feeds: Samples to judge by, four at the most.
        expected: What the model as it is makes of them, in ONNX Runtime without optimisations.
        folds: What to build, and what to judge it by.
        probes: Samples of the first fold, which sensitivity is measured on.
        memory: What was measured before with the same model, samples and budget.
    """

    budget: Budget
    feeds: Sequence[Feeds]
    expected: Sequence[Outputs]
    folds: Sequence[Fold]
    probes: Sequence[Feeds]
    memory: Memory

    @property
    def probed(self) -> Ranges:
        """The ranges that the probes had no part in."""
        return self.folds[0].ranges

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
            probes: How many samples sensitivity is measured on.
            ctx: Samples; gets the calibration.
        """
        assert ctx.samples is not None
        ctx.calibration = calibrated(module, places, ctx)
        feeds = list(itertools.islice(ctx.samples, _SAMPLES))
        exact = OrtSession(module, optimise=False, threads=ctx.threads)
        folds = list(_folds(module, places, feeds, method, ctx))
        return cls(
            budget,
            feeds,
            [exact.run(sample) for sample in feeds],
            folds,
            [feeds[position] for position in folds[0].judged[:probes]],
            Memory(_store(module, places, (str(budget), method, probes), feeds, ctx)),
        )


def _folds(
    module: Module,
    places: Sequence[Place],
    feeds: Sequence[Feeds],
    method: Method,
    ctx: Context,
) -> Iterator[Fold]:
    positions = range(len(feeds))
    if ctx.calibration is None or ctx.calibration_samples is not None or len(feeds) < 2:
        yield Fold(Ranges.of(ctx.calibration, method), positions)
        return
    for judged in (positions[::2], positions[1::2]):
        others = dataclasses.replace(
            ctx, calibration=None, calibration_samples=_without(ctx.samples, judged)
        )
        yield Fold(Ranges.of(calibrated(module, places, others), method), judged)


def _without(samples: Samples | None, positions: Sequence[int]) -> Samples:
    """The first samples but for some."""
    assert samples is not None

    def read() -> Iterator[tuple[str, Feeds]]:
        for position, feeds in enumerate(itertools.islice(samples, _MOST)):
            if position not in positions:
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
        processor(),
        ctx.threads or os.cpu_count(),
        importlib.metadata.version("aigcc"),
    ]
    return cache_folder() / "search" / f"{digest_with(module, facts)}.json"

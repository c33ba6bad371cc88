"""Mixtures of schemes that were measured as whole models: what they keep, and which is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from aigcc.analysis.budget import QUALITY, Budget
from aigcc.passes.quant.trial import Figures

_ENOUGH = 0.85  # of the budget used up is near enough to it


@dataclasses.dataclass(frozen=True)
class Found:
    """A mixture and what was measured of it.

    Attributes:
        precision: Scheme by position in the main graph; others stay as they are.
        figures: Of the whole model.
    """

    precision: Mapping[int, str]
    figures: Figures

    @property
    def used(self) -> float:
        """The largest share of a bound on quality that is used up."""
        return max(self.figures.shares.values(), default=0.0)

    def timed(self, ratio: float) -> Found:
        """The same with another latency, as a factor of the model's as it was."""
        figures = self.figures
        if figures.ratio is None:
            return self
        measured = {**figures.measured, "latency": figures.original["latency"] * ratio}
        return Found(self.precision, dataclasses.replace(figures, measured=measured))

    def scaled(self, factor: float) -> Found:
        """The same if quality uses up so many times as much of its bounds."""
        shares = {bound: share * factor for bound, share in self.figures.shares.items()}
        return Found(self.precision, dataclasses.replace(self.figures, shares=shares))

    def judged(self, figures: Figures) -> Found:
        """The same with quality and size as other samples show them, and its own latency."""
        measured = {**self.figures.measured, **figures.measured}
        original = {**self.figures.original, **figures.original}
        return Found(self.precision, Figures(figures.shares, measured, original))

    def facts(self) -> dict[str, Any]:
        """For the recipe."""
        figures = {k: v for k, v in self.figures.measured.items() if math.isfinite(v)}
        ratio = self.figures.ratio
        return figures if ratio is None else {**figures, "latency_ratio": ratio}


def keeps(found: Found, budget: Budget) -> bool:
    """Whether a budget is kept."""
    return found.used <= 1 and not budget.missed(found.figures.measured, found.figures.original)


def is_near(found: Found, nothing: Found, budget: Budget) -> bool:
    """Whether a mixture keeps the budget, and uses up nearly all of it."""
    if not keeps(found, budget):
        return False
    if budget.of(QUALITY):
        return found.used <= nothing.used or found.used >= _ENOUGH
    return all(
        found.figures.measured[limit.metric]
        >= _ENOUGH * limit.value(found.figures.original[limit.metric])
        for limit in budget.of(["latency"])
    )


def rank(found: Found, budget: Budget) -> float:
    """Less is better: latency, or without a bound on quality the error.

    Where latency cannot be measured, more quantised nodes count as faster.
    """
    if not budget.of(QUALITY):
        return -found.figures.measured.get("sqnr", 0.0)
    if found.figures.ratio is not None:
        return found.figures.ratio
    return 1.0 if not found.precision else 1 / (1 + len(found.precision))


def describe(found: Found, budget: Budget) -> str:
    """Such as "9 nodes, 0.78 times the latency, sqnr 31.2"."""
    measured = found.figures.measured
    ratio = found.figures.ratio
    shown = ["latency not measured" if ratio is None else f"{ratio:.2f} times the latency"]
    shown += [f"{limit.metric} {limit.show(measured[limit.metric])}" for limit in budget.limits]
    return f"{len(found.precision)} nodes, {', '.join(shown)}"

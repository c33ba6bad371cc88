"""Budgets: what a build may cost in quality, size and time, as text: `sqnr>=30,size<=0.3x`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from aigcc.errors import CompileError, did_you_mean
from aigcc.figures import seconds, size

_LIMIT = re.compile(
    r"\s*(?P<metric>[a-z_]+)\s*(?P<sign><=|>=)\s*(?P<plus>\+)?"
    r"(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?P<unit>[A-Za-z]*|%)\s*"
)
_PLAIN = {"": 1.0}
_DECIBEL = {"": 1.0, "dB": 1.0}
_FACTOR = {"x": 1.0, "%": 0.01}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "sqnr": _DECIBEL,
    "psnr": _DECIBEL,
    "cosine": _PLAIN,
    "relative": {"": 1.0, "%": 0.01},
    "max_abs": _PLAIN,
    "perplexity": {"": 1.0, **_FACTOR},
    "size": {"kB": 1e3, "MB": 1e6, "GB": 1e9, **_FACTOR},
    "latency": {"ms": 1e-3, "s": 1.0, **_FACTOR},
}
_OF_THE_ORIGINAL = ("perplexity", "size", "latency")  # of which there may be factors
_AT_LEAST = ("sqnr", "psnr", "cosine")
_AT_MOST = ("relative", "max_abs", "perplexity", "size", "latency")
QUALITY = ("sqnr", "psnr", "cosine", "relative", "max_abs", "perplexity")
METRICS = (*_AT_LEAST, *_AT_MOST)
_EXAMPLE = "write a budget as sqnr>=30,size<=0.3x"

NAMED: Mapping[str, str] = {
    "best": "sqnr>=40",
    "faster": "sqnr>=30",
    "smaller": "sqnr>=25,size<=0.35x",
}
"""Budgets with plain names: no difference to be seen, little of it, and a third of the bytes."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """One bound.

    Attributes:
        metric: "sqnr" and "psnr" in dB, "cosine", "relative", "max_abs", "perplexity", "size" in
            bytes, "latency" in seconds.
        bound: The number; a factor of the original's figure where `relative`.
        relative: Whether the bound is a factor of what the original has.
        text: As it was written.
    """

    metric: str
    bound: float
    relative: bool
    text: str

    def value(self, original: float) -> float:
        """The bound in the metric's own unit."""
        return self.bound * original if self.relative else self.bound

    def holds(self, measured: float, original: float = 0.0) -> bool:
        """Whether a figure keeps the bound; NaN never does."""
        bound = self.value(original)
        return measured >= bound if self.metric in _AT_LEAST else measured <= bound

    def verdict(self, measured: float, original: float = 0.0) -> dict[str, Any]:
        """The bound as it was written, the figure in words, and whether that keeps it."""
        figure = "not measured" if math.isnan(measured) else self.show(measured)
        if self.relative and original and not math.isnan(measured):
            figure = f"{figure}, {measured / original:.2f}x"
        return {"text": self.text, "figure": figure, "kept": self.holds(measured, original)}

    def show(self, figure: float) -> str:
        """A figure of the metric for people."""
        if self.metric in ("size", "latency"):
            return size(figure) if self.metric == "size" else seconds(figure)
        return f"{figure:.6g}" + (" dB" if self.metric in ("sqnr", "psnr") else "")


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bounds that all have to hold, for a model as a whole as it was measured.

    Attributes:
        limits: The bounds.
        implied_by: The pass whose own bounds these are, where nobody gave any.
    """

    limits: tuple[Limit, ...]
    implied_by: str = ""

    @classmethod
    def parse(cls, text: str, *, implied_by: str = "") -> Budget:
        """Read `sqnr>=30,size<=0.3x`, or one of the names in `NAMED`.

        `x` and `%` are factors of the original's figure (`perplexity<=+1%` is 1.01 of it); sizes
        take kB, MB or GB, latencies ms or s.

        Raises:
            CompileError: there is no bound; or one has an unknown metric, the wrong unit or
                direction, or is one that no model keeps.
        """
        text = NAMED.get(text.strip(), text)
        limits = tuple(_limit(part) for part in text.split(",") if part.strip())
        if not limits:
            raise CompileError("the budget has no bounds", hint=_EXAMPLE)
        return cls(limits, implied_by)

    def of(self, metrics: Iterable[str]) -> list[Limit]:
        """The limits on some metrics."""
        wanted = set(metrics)
        return [limit for limit in self.limits if limit.metric in wanted]

    def missed(
        self, measured: Mapping[str, float], original: Mapping[str, float]
    ) -> list[tuple[Limit, float]]:
        """The limits that figures break, with the figure.

        Quality that nobody measured breaks its limits, with NaN; size and latency do not.
        """
        known = {**dict.fromkeys(QUALITY, math.nan), **measured}
        return [
            (limit, known[limit.metric])
            for limit in self.limits
            if limit.metric in known
            and not limit.holds(known[limit.metric], original.get(limit.metric, 0.0))
        ]

    def shortfall(self, measured: Mapping[str, float], original: Mapping[str, float]) -> str:
        """By how much figures break the limits, in words: `sqnr is 28.3 dB, not 30 dB`."""
        return "; ".join(
            f"{limit.metric} could not be measured"
            if math.isnan(figure)
            else f"{limit.metric} is {limit.show(figure)}, "
            f"not {limit.show(limit.value(original.get(limit.metric, 0.0)))}"
            for limit, figure in self.missed(measured, original)
        )

    def named(self) -> str:
        """What messages call it: whether it was given, or by whom else it is asked."""
        if self.implied_by:
            return f"the {self} that {self.implied_by} asks of itself, as no budget was given"
        return f"the budget {self}"

    def __str__(self) -> str:
        return ",".join(limit.text for limit in self.limits)


def _limit(part: str) -> Limit:
    text = part.strip()
    match = _LIMIT.fullmatch(part)
    if match is None or not math.isfinite(float(match["number"])):
        raise CompileError(f"{text!r} is no bound", hint=_EXAMPLE)
    metric, sign, unit, plus = match["metric"], match["sign"], match["unit"], match["plus"] or ""
    if metric not in METRICS:
        raise CompileError(
            f"there is no metric {metric!r}", at=text, hint=did_you_mean(metric, METRICS)
        )
    right = ">=" if metric in _AT_LEAST else "<="
    if sign != right:
        raise CompileError(
            f"a budget cannot ask for {metric}{sign}",
            at=text,
            hint=f"write {metric}{right}{plus}{match['number']}{unit}",
        )
    units = _UNITS[metric]
    if unit not in units:
        known = ", ".join(name or "none" for name in units)
        what = f"{unit!r} is no unit of {metric}" if unit else f"{metric} needs a unit"
        raise CompileError(what, at=text, hint=f"its units: {known}")
    relative = metric in _OF_THE_ORIGINAL and unit in _FACTOR
    if plus and not (relative and unit == "%"):
        raise CompileError(f"{text!r} is no bound", hint="+ goes with %, as in perplexity<=+1%")
    limit = Limit(metric, float(match["number"]) * units[unit] + bool(plus), relative, text)
    _refuse_impossible(limit)
    return limit


def _refuse_impossible(limit: Limit) -> None:
    """Refuse what no quantised model keeps, before anything is measured."""
    if limit.metric in ("size", "latency") and limit.bound <= 0:
        reason, hint = f"no model has a {limit.metric} of 0", _EXAMPLE
    elif limit.metric == "cosine" and limit.bound > 1:
        reason, hint = "a cosine is at most 1", "write cosine>=0.999"
    elif limit.metric == "perplexity" and limit.bound < 1:
        reason = "quantising does not make a perplexity less than the original's, nor less than 1"
        hint = "for 1% more than the original has, write perplexity<=+1%"
    else:
        return
    raise CompileError(f"the bound cannot be kept: {reason}", at=limit.text, hint=hint)

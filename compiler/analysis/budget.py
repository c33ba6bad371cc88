"""Budgets: what a build may cost in quality, size and time, as text: `sqnr>=30,size<=0.3x`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from aigcc.errors import CompileError, did_you_mean

_LIMIT = re.compile(
    r"\s*(?P<metric>[a-z_]+)\s*(?P<sign><=|>=)\s*(?P<plus>\+)?(?P<number>\d+(?:\.\d+)?)\s*"
    r"(?P<unit>x|%|kB|MB|GB|ms|s|dB)?\s*"
)
_SCALES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "ms": 1e-3, "s": 1.0, "dB": 1.0}
_AT_LEAST = ("sqnr", "psnr", "cosine")
_AT_MOST = ("relative", "max_abs", "perplexity", "size", "latency")
QUALITY = ("sqnr", "psnr", "cosine", "relative", "max_abs", "perplexity")
METRICS = (*_AT_LEAST, *_AT_MOST)


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


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bounds that all have to hold, for a model as a whole as it was measured."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `sqnr>=30,size<=0.3x`.

        `x` and `%` are factors of the original's figure (`perplexity<=+1%` is 1.01 of it); sizes
        take kB, MB or GB, latencies ms or s.

        Raises:
            CompileError: a bound is no bound, its metric is unknown, or it points the wrong way.
        """
        return cls(tuple(_limit(part) for part in text.split(",") if part.strip()))

    def of(self, metrics: Iterable[str]) -> list[Limit]:
        """The limits on some metrics."""
        wanted = set(metrics)
        return [limit for limit in self.limits if limit.metric in wanted]

    def missed(
        self, measured: Mapping[str, float], original: Mapping[str, float]
    ) -> list[tuple[Limit, float]]:
        """The limits that figures break, with the figure; metrics nobody measured are left out."""
        return [
            (limit, measured[limit.metric])
            for limit in self.limits
            if limit.metric in measured
            and not limit.holds(measured[limit.metric], original.get(limit.metric, 0.0))
        ]

    def __str__(self) -> str:
        return ",".join(limit.text for limit in self.limits)


def _limit(part: str) -> Limit:
    match = _LIMIT.fullmatch(part)
    if match is None:
        raise CompileError(
            f"{part.strip()!r} is no bound", hint="write a budget as sqnr>=30,size<=0.3x"
        )
    metric, sign, unit = match["metric"], match["sign"], match["unit"]
    if metric not in METRICS:
        raise CompileError(
            f"there is no metric {metric!r}",
            at=part.strip(),
            hint=did_you_mean(metric, METRICS) or f"one of {', '.join(METRICS)}",
        )
    right = ">=" if metric in _AT_LEAST else "<="
    if sign != right:
        raise CompileError(
            f"a budget cannot ask for {metric}{sign}",
            at=part.strip(),
            hint=f"write {metric}{right}{match['number']}{unit or ''}",
        )
    number, relative = float(match["number"]), unit in ("x", "%")
    if unit == "%":
        number = number / 100 + (1 if match["plus"] else 0)
    elif not relative:
        number *= _SCALES.get(unit or "", 1.0)
    return Limit(metric, number, relative, part.strip())

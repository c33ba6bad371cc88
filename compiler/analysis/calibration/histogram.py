"""Histograms whose bins are powers of two wide: they grow and merge without losing a count."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Counts = npt.NDArray[np.int64]

BINS = 4096
"""The most bins of a histogram; more than half of them lie between zero and the largest value."""

_FINEST = -120  # so that 1 / width is a float32


@dataclasses.dataclass
class Histogram:
    """How often numbers fall into bins of width w = 2 ** exponent, aligned at zero.

    Bin k >= 0 holds k w <= x < (k + 1) w, and bin -1 - k what lies at the same distance below
    zero, so that negating the numbers mirrors the bins. The width is the smallest for which zero
    and all numbers lie within `BINS` bins. When the range grows, two bins become one. So the
    result depends on the numbers only, and not on the order or the pieces in which they came.

    Attributes:
        exponent: Of the width.
        first: Index of the first bin, not positive.
        counts: Numbers in each bin.
    """

    exponent: int = _FINEST
    first: int = 0
    counts: Counts = dataclasses.field(default_factory=lambda: np.zeros(1, np.int64))

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """Numbers in all bins."""
        return int(self.counts.sum())

    def edges(self) -> npt.NDArray[np.float64]:
        """The bounds of the bins, one more than there are bins."""
        return self.width * np.arange(self.first, self._last + 2, dtype=np.float64)

    def add(self, numbers: Floats, low: float, high: float) -> None:
        """Count finite numbers.

        Args:
            numbers: float32 or float64, any shape, not empty.
            low: The smallest of them.
            high: The largest of them.
        """
        exponent = max(self.exponent, _exponent(min(low, 0.0), max(high, 0.0)))
        while True:
            scale = math.ldexp(1.0, -exponent)
            first = min(_bin(low, scale), self.first >> (exponent - self.exponent))
            last = max(_bin(high, scale), self._last >> (exponent - self.exponent))
            if last - first < BINS:
                break
            exponent += 1
        self._stretch(exponent, first, last)
        bins = np.multiply(numbers.reshape(-1), numbers.dtype.type(scale)).astype(np.int32)
        bins -= numbers.reshape(-1) < 0
        bins -= first
        self.counts += np.bincount(bins, minlength=len(self.counts))

    def merge(self, other: Histogram) -> None:
        """Count what another histogram has counted."""
        exponent = max(self.exponent, other.exponent)
        while True:
            mine, its = exponent - self.exponent, exponent - other.exponent
            first = min(self.first >> mine, other.first >> its)
            last = max(self._last >> mine, other._last >> its)
            if last - first < BINS:
                break
            exponent += 1
        self._stretch(exponent, first, last)
        copy = dataclasses.replace(other)
        copy._stretch(exponent, first, last)
        self.counts += copy.counts

    def magnitudes(self) -> Counts:
        """Counts by distance from zero: item k is for k w <= |x| < (k + 1) w."""
        above, below = self.counts[-self.first :], self.counts[: -self.first][::-1]
        folded = np.zeros(max(len(above), len(below)), np.int64)
        folded[: len(above)] += above
        folded[: len(below)] += below
        return folded

    @property
    def _last(self) -> int:
        return self.first + len(self.counts) - 1

    def _stretch(self, exponent: int, first: int, last: int) -> None:
        """Make bins `first` to `last` of a width that is not smaller."""
        shift = exponent - self.exponent
        if (shift, first, last) == (0, self.first, self._last):
            return
        old = np.arange(self.first, self._last + 1) >> min(shift, 63)
        counts = np.zeros(last - first + 1, np.int64)
        np.add.at(counts, old - first, self.counts)
        self.exponent, self.first, self.counts = exponent, first, counts


def _exponent(low: float, high: float) -> int:
    """An exponent that is not larger than needed for numbers from `low` to `high`."""
    span = max(-low, high)
    return max(_FINEST, math.frexp(span)[1] - BINS.bit_length() + 1) if span else _FINEST


def _bin(number: float, scale: float) -> int:
    return int(number * scale) - (number < 0)

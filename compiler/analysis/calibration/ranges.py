"""The range that a tensor is quantised in, chosen from its histogram."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from aigcc.analysis.calibration.histogram import Counts, Histogram
from aigcc.errors import CompileError, did_you_mean

Floats = npt.NDArray[np.float64]

METHODS = ("minmax", "percentile", "entropy", "mse")
"""The ways to choose a range; `percentile` is short for `percentile(99.99)`."""

_PERCENTILE = re.compile(r"percentile(?:\((\d+(?:\.\d+)?)\))?")


def check_method(method: str) -> None:
    """Do nothing if `choose_range` knows a method.

    Raises:
        CompileError: it does not.
    """
    if method in ("minmax", "entropy", "mse") or _percent(method) is not None:
        return
    raise CompileError(
        f"there is no calibration method {method!r}", hint=did_you_mean(method, METHODS)
    )


def choose_range(
    histogram: Histogram,
    low: float,
    high: float,
    zeros: int,
    method: str,
    levels: int,
    symmetric: bool,
) -> tuple[float, float]:
    """The range to quantise in; what lies outside is clipped.

    - `minmax`: all numbers.
    - `percentile(p)`, p from 50 to 100: p percent of the magnitudes if symmetric, else of the
      numbers, with as many left out above as below.
    - `entropy`: the symmetric threshold at which the histogram and its quantised form differ
      least in the sense of Kullback and Leibler (Migacz, "8-bit inference with TensorRT", 2017).
    - `mse`: the range of bin edges with the smallest expected squared error, of which a number
      inside has step ** 2 / 12 (Bennett 1948) unless it is zero, and a number outside its distance
      squared.

    Args:
        histogram: Of all numbers.
        low: The smallest number.
        high: The largest number.
        zeros: How many numbers are exactly zero.
        method: See above.
        levels: How many values the quantised type has: 256 for all of int8.
        symmetric: Whether the range must be as far below zero as above.

    Returns:
        Low and high; zero lies between them. Both are zero where all numbers are.

    Raises:
        CompileError: the method is unknown.
    """
    check_method(method)
    low, high = min(low, 0.0), max(high, 0.0)
    if method == "minmax" or low == high:
        found = (low, high)
    elif method == "entropy":
        threshold = _entropy(histogram, levels if low == 0.0 and not symmetric else levels // 2)
        found = (-threshold, threshold)
    elif method == "mse" and symmetric:
        threshold = _symmetric_mse(histogram, max(-low, high), zeros, levels)
        found = (-threshold, threshold)
    elif method == "mse":
        found = _asymmetric_mse(histogram, low, high, zeros, levels)
    else:
        found = _percentile(histogram, (_percent(method) or 0.0) / 100, symmetric)
    low, high = min(max(low, found[0]), 0.0), max(min(high, found[1]), 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def _percent(method: str) -> float | None:
    match = _PERCENTILE.fullmatch(method)
    if match is None:
        return None
    percent = float(match[1] or 99.99)
    return percent if 50 <= percent <= 100 else None


def _percentile(histogram: Histogram, fraction: float, symmetric: bool) -> tuple[float, float]:
    if symmetric:
        counts = histogram.magnitudes()
        threshold = _quantile(counts, fraction) * histogram.width
        return -threshold, threshold
    tail = (1 - fraction) / 2
    places = (_quantile(histogram.counts, tail), _quantile(histogram.counts, 1 - tail))
    low, high = ((histogram.first + place) * histogram.width for place in places)
    return low, high


def _quantile(counts: Counts, fraction: float) -> float:
    """Where a fraction of all counts lies to the left, in bins, linear within a bin."""
    sums = np.cumsum(counts)
    target = fraction * float(sums[-1])
    index = min(int(np.searchsorted(sums, target)), len(counts) - 1)
    count = int(counts[index])
    return index + (1 - (float(sums[index]) - target) / count if count else 0.0)


def _entropy(histogram: Histogram, levels: int) -> float:
    counts = histogram.magnitudes().astype(np.float64)
    if len(counts) > 1:
        counts[0] = counts[1]  # a peak at zero is represented exactly and would decide alone
    size = len(counts)
    if size <= levels:
        return size * histogram.width
    ends = np.arange(levels, size + 1)
    divergence = _divergences(counts, ends, levels)
    return float(ends[np.argmin(divergence)]) * histogram.width


def _divergences(counts: Floats, ends: npt.NDArray[np.int64], levels: int) -> Floats:
    """For each end: how far counts[:end], with the rest put into its last bin, is from its
    quantised form, in which `levels` groups of bins have one height each.
    """
    sums, filled, logs = (
        np.concatenate([[0.0], np.cumsum(x)]) for x in (counts, counts > 0, _x_log_x(counts))
    )
    total = sums[-1]
    last, outside = counts[ends - 1], total - sums[ends]
    # sum p log p, of the bins with the outliers in the last one
    own = logs[ends] - _x_log_x(last) + _x_log_x(last + outside)
    crossed = np.zeros(len(ends))
    for level in range(levels):
        left, right = ends * level // levels, ends * (level + 1) // levels
        mass, bins = sums[right] - sums[left], filled[right] - filled[left]
        clipped = mass + (outside if level == levels - 1 else 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossed += np.where(mass > 0, clipped * np.log(mass / bins), 0.0)
    with np.errstate(divide="ignore"):
        divergence = (own - crossed + total * np.log(sums[ends])) / total - np.log(total)
    # nothing stands for outliers where the last bin is empty, or where all bins are
    impossible = ((last == 0) & (outside > 0)) | (sums[ends] == 0)
    return np.where(impossible, np.inf, divergence)


def _x_log_x(x: Floats) -> Floats:
    return x * np.log(np.where(x > 0, x, 1.0))


def _symmetric_mse(histogram: Histogram, largest: float, zeros: int, levels: int) -> float:
    counts = histogram.magnitudes()
    ends = np.minimum(np.arange(1, len(counts) + 1), largest / histogram.width)
    clipped, outside = _tail(counts, ends)
    inside = counts.sum() - outside - zeros
    errors = clipped + inside * _noise(2 * ends, levels)
    return float(ends[np.argmin(errors)]) * histogram.width


def _asymmetric_mse(
    histogram: Histogram, low: float, high: float, zeros: int, levels: int
) -> tuple[float, float]:
    below, above = histogram.counts[: -histogram.first][::-1], histogram.counts[-histogram.first :]
    highs = np.minimum(np.arange(len(above) + 1), high / histogram.width)
    clipped_above, out_above = _tail(above, highs)
    lows = np.minimum(np.arange(len(below) + 1), -low / histogram.width)
    clipped_below, out_below = _tail(below, lows)
    total = histogram.total - zeros - out_above
    best = (np.inf, 0.0, 0.0)
    for bottom, clipped, outside in zip(lows, clipped_below, out_below, strict=True):
        errors = clipped + clipped_above + (total - outside) * _noise(highs + bottom, levels)
        index = int(np.argmin(errors))
        best = min(best, (float(errors[index]), float(-bottom), float(highs[index])))
    return best[1] * histogram.width, best[2] * histogram.width


def _noise(spans: Floats, levels: int) -> Floats:
    return (spans / max(levels - 1, 1)) ** 2 / 12


def _tail(counts: Counts, ends: Floats) -> tuple[Floats, Floats]:
    """Squared error of clipping at each end, and what is clipped; all in bins.

    Numbers are spread evenly over their bin. The last end is the largest number, and clips nothing.
    """
    middles = np.arange(len(counts)) + 0.5
    moments = [counts.astype(np.float64), counts * middles, counts * (middles**2 + 1 / 12)]
    count, first, second = (np.append(np.cumsum(m[::-1])[::-1], 0.0) for m in moments)
    at = np.ceil(ends).astype(np.int64)
    at[-1] = len(counts)
    errors = second[at] - 2 * ends * first[at] + ends**2 * count[at]
    return np.maximum(errors, 0.0), count[at]

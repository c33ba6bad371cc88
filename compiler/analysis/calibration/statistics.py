"""What calibration remembers of a tensor: sums, extremes and a histogram, all of bounded size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from aigcc.analysis.calibration.histogram import Histogram
from aigcc.analysis.calibration.ranges import choose_range
from aigcc.errors import CompileError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# Elements that are looked at together: few enough to stay in the cache.
_CHUNK = 1 << 15
_BLOCK = 1 << 17
_DEVIATIONS = 5.0
_ROWS = 4096  # vectors whose products are summed in float32


@dataclasses.dataclass
class Channels:
    """The same, for each slice of a tensor along one axis; arrays of shape [channels].

    Attributes:
        count: Finite numbers.
        low: Smallest; infinite where there is none.
        high: Largest; negative infinity where there is none.
        total: Sum.
        squares: Sum of squares.
    """

    count: npt.NDArray[np.int64]
    low: Floats
    high: Floats
    total: Floats
    squares: Floats

    @classmethod
    def empty(cls, size: int) -> Channels:
        """Of no numbers at all."""
        zeros = np.zeros(size)
        inf = np.full(size, math.inf)
        return cls(np.zeros(size, np.int64), inf, -inf, zeros, zeros.copy())

    @property
    def absmax(self) -> Floats:
        """Largest magnitude; zero where there is no number."""
        return np.maximum(np.maximum(-self.low, self.high), 0.0)

    @property
    def mean(self) -> Floats:
        """Sum over count; zero where there is no number."""
        return self.total / np.maximum(self.count, 1)

    @property
    def mean_square(self) -> Floats:
        """Sum of squares over count; zero where there is no number."""
        return self.squares / np.maximum(self.count, 1)

    @property
    def reach(self) -> tuple[Floats, Floats]:
        """Between what a channel's numbers lie: all that were seen, five deviations at the least.

        A channel of few samples has few numbers: normal noise, of which 64 were seen, goes further
        than these 64 in every second sample.
        """
        deviation = np.sqrt(np.maximum(self.mean_square - np.square(self.mean), 0.0))
        low, high = self.mean - _DEVIATIONS * deviation, self.mean + _DEVIATIONS * deviation
        return np.minimum(self.low, low), np.maximum(self.high, high)

    def merge(self, other: Channels) -> None:
        """Take in what another has seen after this one."""
        self.count = self.count + other.count
        self.low = np.minimum(self.low, other.low)
        self.high = np.maximum(self.high, other.high)
        self.total = self.total + other.total
        self.squares = self.squares + other.squares


@dataclasses.dataclass
class Statistics:
    """All that calibration knows of one tensor; numbers that are not finite enter nothing.

    Everything but the sums is the same in whatever order and pieces the numbers come; the sums are
    float64 and are merged in the order of the samples.

    Attributes:
        count: Finite numbers.
        non_finite: Infinite ones; calibration refuses NaN.
        zeros: Numbers that are exactly zero.
        low: Smallest; infinite where there is none.
        high: Largest; negative infinity where there is none.
        total: Sum.
        squares: Sum of squares.
        histogram: Of all finite numbers.
        channels: The same by channel, if a channel axis was given.
    """

    count: int = 0
    non_finite: int = 0
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    squares: float = 0.0
    histogram: Histogram = dataclasses.field(default_factory=Histogram)
    channels: Channels | None = None

    @classmethod
    def of(cls, array: Array, axis: int | None = None) -> Statistics:
        """The statistics of one array of numbers or truth values.

        Raises:
            CompileError: the array has no such axis.
        """
        made = cls()
        for chunk in _chunks(array):
            made._add(chunk)
        if axis is not None:
            made.channels = _channels(array, axis)
        return made

    @property
    def mean(self) -> float:
        """Sum over count; zero without numbers."""
        return self.total / max(self.count, 1)

    @property
    def mean_square(self) -> float:
        """Sum of squares over count; zero without numbers."""
        return self.squares / max(self.count, 1)

    @property
    def is_constant(self) -> bool:
        """Whether all numbers are the same, so that any method gives the same range."""
        return self.low >= self.high

    def merge(self, other: Statistics) -> None:
        """Take in what another has seen after this one.

        Raises:
            CompileError: they have different numbers of channels.
        """
        self.count += other.count
        self.non_finite += other.non_finite
        self.zeros += other.zeros
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.total += other.total
        self.squares += other.squares
        self.histogram.merge(other.histogram)
        if other.channels is None:
            return
        if self.channels is None:
            self.channels = dataclasses.replace(other.channels)
            return
        sizes = len(self.channels.low), len(other.channels.low)
        if sizes[0] != sizes[1]:
            raise CompileError(
                f"the channel axis has {sizes[0]} channels in one sample and {sizes[1]} in another",
                hint="give the axis of a dim that is the same in all samples, or none",
            )
        self.channels.merge(other.channels)

    def range(self, method: str, levels: int, symmetric: bool) -> tuple[float, float]:
        """The range to quantise in; see `aigcc.analysis.calibration.ranges.choose_range`.

        Raises:
            CompileError: the method is unknown, or there are no numbers.
        """
        if not self.count:
            raise CompileError(
                "no sample has a finite number here, so there is no range",
                hint="give samples in which no dim is 0, or leave the node that reads it full",
            )
        return choose_range(
            self.histogram, self.low, self.high, self.zeros, method, levels, symmetric
        )

    def _add(self, chunk: Array) -> None:
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = chunk[np.isfinite(chunk)]
            self.non_finite += chunk.size - finite.size
            if not finite.size:
                return
            chunk, low, high = finite, float(finite.min()), float(finite.max())
        self.count += chunk.size
        self.zeros += chunk.size - int(np.count_nonzero(chunk))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.histogram.add(chunk, low, high)
        wide = chunk.astype(np.float64)
        self.total += float(wide.sum())
        with np.errstate(over="ignore"):  # of double precision
            self.squares += float(np.square(wide, out=wide).sum())


def _chunks(array: Array) -> Iterator[Array]:
    """Pieces of the flattened array, as float32 if that holds them, else as float64."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield _as_float(flat[start : start + _CHUNK])


def _as_float(array: Array) -> Array:
    is_narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
    return array.astype(np.float32 if is_narrow else np.float64, copy=False)


def _channels(array: Array, axis: int) -> Channels:
    if not -array.ndim <= axis < array.ndim:
        raise CompileError(
            f"the channel axis {axis} is outside of the shape {list(array.shape)}",
            hint="give the axis of a dim, or none",
        )
    axis %= array.ndim
    outer, inner = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
    cube = array.reshape(outer, array.shape[axis], inner)
    found = Channels.empty(cube.shape[1])
    if not array.size:
        return found
    rows = max(1, _BLOCK // max(cube.shape[1] * inner, 1))
    columns = max(1, _BLOCK // (min(rows, outer) * inner))
    for row in range(0, outer, rows):
        for column in range(0, cube.shape[1], columns):
            here = slice(column, column + columns)
            _add_block(found, here, cube[row : row + rows, here].astype(np.float64))
    return found


def _add_block(found: Channels, here: slice, block: Floats) -> None:
    axes = (0, 2)
    low, high = block.min(axes), block.max(axes)
    count: Any = block.shape[0] * block.shape[2]
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        finite = np.isfinite(block)
        low = block.min(axes, initial=math.inf, where=finite)
        high = block.max(axes, initial=-math.inf, where=finite)
        count = finite.sum(axes)
        block = np.where(finite, block, 0.0)
    found.count[here] += count
    found.low[here] = np.minimum(found.low[here], low)
    found.high[here] = np.maximum(found.high[here], high)
    found.total[here] += block.sum(axes)
    with np.errstate(over="ignore"):
        found.squares[here] += np.square(block, out=block).sum(axes)


@dataclasses.dataclass
class Moment:
    """The sum of x x^T over all vectors along a tensor's last axis.

    Attributes:
        matrix: float64, [channels, channels], symmetric.
        rows: Vectors in the sum.
    """

    matrix: Floats
    rows: int

    @classmethod
    def of(cls, array: Array) -> Moment:
        """Of one array, [..., channels]; products are float32 or wider, their sum is float64.

        Raises:
            CompileError: the array is a scalar.
        """
        if not array.ndim:
            raise CompileError("a scalar has no last axis to take second moments over")
        size = array.shape[-1]
        flat = array.reshape(-1, size)
        made = cls(np.zeros((size, size)), len(flat))
        for start in range(0, len(flat), _ROWS):
            block = _as_float(flat[start : start + _ROWS])
            made.matrix += block.T @ block
        return made

    def merge(self, other: Moment) -> None:
        """Take in what another has seen after this one.

        Raises:
            CompileError: they have different numbers of channels.
        """
        if self.matrix.shape != other.matrix.shape:
            raise CompileError(
                f"the last axis has {len(self.matrix)} channels in one sample "
                f"and {len(other.matrix)} in another",
                hint="second moments need a last axis that is the same in all samples",
            )
        self.matrix += other.matrix
        self.rows += other.rows

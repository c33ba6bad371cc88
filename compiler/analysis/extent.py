"""Bounds of the numbers in a tensor, and arithmetic with them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

ROUNDING = 1.01
"""Computed numbers may be a little over the exact ones."""

FLOATS = {
    ir.DataType.FLOAT16: float(np.finfo(np.float16).max),
    ir.DataType.BFLOAT16: 3.38e38,
    ir.DataType.FLOAT: float(np.finfo(np.float32).max),
    ir.DataType.DOUBLE: float(np.finfo(np.float64).max),
}
"""The types that are followed, with their largest numbers."""

_INFINITIES = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Extent:
    """Bounds of the numbers in a tensor.

    Attributes:
        low: No number is below; minus infinity if that may be among them.
        high: No number is above; infinity if that may be among them.
        nan: Whether NaN may be among them.
    """

    low: float
    high: float
    nan: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether neither NaN nor an infinity can be among the numbers."""
        return not self.nan and math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def reach(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    def has(self, number: float) -> bool:
        """Whether a number may be among them."""
        return self.low <= number <= self.high

    def __or__(self, other: Extent) -> Extent:
        return Extent(min(self.low, other.low), max(self.high, other.high), self.nan or other.nan)


ANYTHING = Extent(-math.inf, math.inf, True)


def extent_of(tensor: ir.TensorProtocol) -> Extent:
    """What a constant holds."""
    if tensor.dtype == ir.DataType.STRING:
        return ANYTHING
    array = tensor.numpy()
    if array.size == 0:
        return Extent(0.0, 0.0)
    if array.dtype.kind != "f" and tensor.dtype.is_floating_point():
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        return ANYTHING
    nan = array.dtype.kind == "f" and bool(np.isnan(array).any())
    if nan:
        array = array[~np.isnan(array)]
        if not array.size:
            return Extent(0.0, 0.0, True)
    return Extent(float(array.min()), float(array.max()), nan)


def whole_extent(dtype: ir.DataType | None) -> Extent:
    """All that a type can hold."""
    bounds = _bounds(dtype)
    return ANYTHING if bounds is None or dtype in FLOATS else Extent(*bounds)


def within(extent: Extent, dtype: ir.DataType | None) -> Extent:
    """An extent as a type holds it: floats overflow to infinity, whole numbers wrap around."""
    bounds = _bounds(dtype)
    if bounds is None:
        return ANYTHING
    low, high = bounds
    if dtype in FLOATS:
        return Extent(
            -math.inf if extent.low < low else extent.low,
            math.inf if extent.high > high else extent.high,
            extent.nan,
        )
    fits = low <= extent.low and extent.high <= high and not extent.nan
    return Extent(extent.low, extent.high) if fits else Extent(low, high)


def _bounds(dtype: ir.DataType | None) -> tuple[float, float] | None:
    """The largest numbers of a type; None for a type that is not followed."""
    if dtype in FLOATS:
        return -FLOATS[dtype], FLOATS[dtype]
    if dtype == ir.DataType.BOOL:
        return 0.0, 1.0
    if dtype is None or not dtype.is_integer() or dtype.bitwidth < 8:
        return None
    info = np.iinfo(dtype.numpy())
    return float(info.min), float(info.max)


def product(a: Extent, b: Extent) -> Extent:
    """Products of any number of one with any of the other."""
    ends = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    lost = (math.isinf(a.reach) and b.has(0.0)) or (math.isinf(b.reach) and a.has(0.0))
    return Extent(min(ends), max(ends), a.nan or b.nan or lost)


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def total(a: Extent, b: Extent) -> Extent:
    """Sums of any number of one with any of the other."""
    lost = (a.high == math.inf and b.low == -math.inf) or (
        a.low == -math.inf and b.high == math.inf
    )
    low, high = a.low + b.low, a.high + b.high
    if math.isnan(low) or math.isnan(high):
        return ANYTHING
    return Extent(low, high, a.nan or b.nan or lost)


def negative(a: Extent) -> Extent:
    """The numbers with the other sign."""
    return Extent(-a.high, -a.low, a.nan)


def repeated(a: Extent, times: int | None, dtype: ir.DataType | None) -> Extent:
    """Sums of so many numbers of a type; None stands for any count."""
    most = math.inf if times is None else times * ROUNDING
    low, high = min(_times(a.low, most), 0.0), max(_times(a.high, most), 0.0)
    whole = within(Extent(low, high, a.nan), dtype)
    # Some of the parts may overflow to one side, and some to the other.
    return dataclasses.replace(whole, nan=a.nan or (whole.low, whole.high) == _INFINITIES)

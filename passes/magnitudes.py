"""Which constants may change places with a sum or a product, as their sizes allow it.

Regrouping changes what stands between: it may overflow, underflow, or lose the digits of what it is
added to. The rules here admit constants of ordinary sizes, and of others those alone that change
nothing; values that are not constants count as ordinary.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.extents import Extents

Array = npt.NDArray[Any]


def largest(dtype: ir.DataType) -> float:
    """The largest number of a type of floats."""
    return float(ml_dtypes.finfo(dtype.numpy()).max)


def smallest(dtype: ir.DataType) -> float:
    """The smallest number of a type of floats that has all its digits."""
    return float(ml_dtypes.finfo(dtype.numpy()).smallest_normal)


def resolution(dtype: ir.DataType) -> float:
    """The distance from 1 to the next number of a type of floats."""
    return float(ml_dtypes.finfo(dtype.numpy()).eps)


def are_ordinary(factors: Array, dtype: ir.DataType) -> bool:
    """Whether factors leave other ordinary numbers far from both ends of a type.

    They are 0, or between the roots of its smallest and its largest number: from 1e-19 to 2e19 in
    float32, from 1/128 to 256 in float16.
    """
    sizes = np.abs(factors[factors != 0])
    low, high = math.sqrt(smallest(dtype)), math.sqrt(largest(dtype))
    return bool(((sizes >= low * 0.999) & (sizes <= high)).all())


def holds(numbers: Array, dtype: ir.DataType) -> bool:
    """Whether a type holds computed numbers, each with all digits that it has for others."""
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(numbers.astype(dtype.numpy()).astype(np.float64) - numbers)
    return bool((np.isfinite(numbers) & (off <= resolution(dtype) * np.abs(numbers))).all())


def may_multiply(x: ir.Value, first: Array, second: Array, dtype: ir.DataType) -> bool:
    """Whether (x · first) · second is x · (first · second), but for rounding.

    It is where both make x larger, or both smaller: then the product between is none that x and the
    result are not. Where the first makes x larger and the second smaller, x is asked whether the
    product can overflow; the other way round, both have to be ordinary.
    """
    a, b = np.broadcast_arrays(np.abs(first), np.abs(second))
    grows, shrinks = (a > 1) & (b < 1), (a < 1) & (b > 1)
    if grows.any() and not Extents().of(x).reach * float(a[grows].max()) <= largest(dtype):
        return False
    return are_ordinary(a[shrinks], dtype) and are_ordinary(b[shrinks], dtype)


def may_add(first: Array, second: Array, dtype: ir.DataType) -> bool:
    """Whether (x + first) + second is x + (first + second), but for rounding.

    It is where the sum of both is about as large as the first, and neither is so large that x loses
    its digits beside it, which is how numbers are rounded on purpose.
    """
    if rounds(first, 1.0, dtype) or rounds(second, 1.0, dtype):
        return False
    return bool((np.abs(first) <= 4 * np.abs(first + second)).all())


def rounds(shift: Array, scale: float, dtype: ir.DataType) -> bool:
    """Whether adding a shift takes half the digits, or more, from numbers as large as `scale`."""
    if not shift.size:
        return False
    return float(np.abs(shift).max()) * math.sqrt(resolution(dtype)) > scale

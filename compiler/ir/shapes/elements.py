"""Elements of traced tensors: numbers, booleans or symbolic expressions, and functions over them.

An expression holds for all sizes from 1. What is decided of it, such as its sign, holds for empty
tensors too, since an answer may become a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy

from aigcc.ir.shapes.dims import UNKNOWN, or_zero, tidy
from aigcc.ir.shapes.site import Array, Element, Site

MAX_ELEMENTS = 256
READABLE = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.FLOAT16,
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
    }
)
Rule = Callable[[Site], Array]
Rules = dict[str, tuple[Rule, frozenset[str]]]
"""By operator: how its elements are computed, and the attributes that are understood."""

_LIMITS = {ir.DataType.INT32: 2**31, ir.DataType.INT64: 2**63}
# A symbolic number times more than this might overflow.
_FACTORS = {ir.DataType.INT32: 2**15, ir.DataType.INT64: 2**31}


def fitted(dtype: ir.DataType, element: Element) -> Element:
    """`element` as a tensor of `dtype` holds it: floats are rounded, overflow is unknown."""
    if isinstance(element, float):
        if dtype.is_floating_point():
            with np.errstate(over="ignore"):
                element = float(dtype.numpy().type(element))
        return element if math.isfinite(element) else UNKNOWN
    if isinstance(element, int) and not isinstance(element, bool) and dtype in _LIMITS:
        return element if -_LIMITS[dtype] <= element < _LIMITS[dtype] else UNKNOWN
    if isinstance(element, sympy.Expr) and element is not UNKNOWN:
        if dtype == ir.DataType.FLOAT16:
            return UNKNOWN  # exact up to 2048 only
        limit = _FACTORS.get(dtype)
        if limit and any(abs(number) > limit for number in element.atoms(sympy.Integer)):
            return UNKNOWN
    return element


def array_of(elements: Sequence[Element]) -> Array:
    """A traced tensor of one axis."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def elementwise(function: Callable[..., Element]) -> Callable[..., Array]:
    """`function` over the elements of arrays that broadcast."""

    def apply(*arrays: Array) -> Array:
        result = np.frompyfunc(function, len(arrays), 1)(*arrays)
        if isinstance(result, np.ndarray):
            return result
        scalar = np.empty((), dtype=object)
        scalar[()] = result
        return scalar

    return apply


def over_known(function: Callable[..., Any], *, rounds: bool = False) -> Callable[..., Element]:
    """`function` for known elements; what is computed with an unknown one is unknown.

    Floats beside expressions become the fractions that they are, and such fractions must be simple
    ones. So a quotient that floats round is not computed with, unless `function` rounds it anyway.
    """

    def apply(*operands: Element) -> Element:
        if any(isinstance(operand, sympy.Expr) for operand in operands):
            operands = tuple(_exact(operand, rounds) for operand in operands)
        if any(operand is UNKNOWN for operand in operands):
            return UNKNOWN
        result: Element = tidy(function(*operands))
        return result

    return apply


def _exact(element: Element, rounds: bool) -> Element:
    if isinstance(element, float):
        return sympy.Rational(element) if (element * 64).is_integer() else UNKNOWN
    if isinstance(element, sympy.Expr) and not rounds and not (64 * element).is_integer:
        return UNKNOWN
    return element


def lifted(function: Callable[..., Any], *, rounds: bool = False) -> Rule:
    """A rule that applies `function` to the elements of all inputs, with broadcasting."""
    apply = elementwise(over_known(function, rounds=rounds))

    def rule(site: Site) -> Array:
        return apply(*(site.array(index) for index in range(len(site.node.inputs))))

    return rule


def is_negative(number: Any) -> bool | None:
    """Whether a number or an expression is below 0, or None where that depends on sizes."""
    if isinstance(number, sympy.Expr):
        negative: bool | None = sympy.expand(or_zero(number)).is_negative
        return negative
    return bool(number < 0)


def is_zero(number: Any) -> bool | None:
    """Whether a number or an expression is 0, or None where that depends on sizes."""
    if not isinstance(number, sympy.Expr):
        return bool(number == 0)
    number = sympy.expand(or_zero(number))
    if number.is_zero:
        return True
    is_apart = number.is_nonzero or number.is_positive or number.is_negative
    return False if is_apart else None

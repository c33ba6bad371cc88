"""Arithmetic, comparisons and reductions of traced elements."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy

from aigcc.ir.shapes.dims import UNKNOWN, floor_div
from aigcc.ir.shapes.elements import (
    READABLE,
    Rule,
    Rules,
    elementwise,
    is_negative,
    is_zero,
    lifted,
    over_known,
)
from aigcc.ir.shapes.site import Array, Site, Untraceable

_EXACT_IN_DOUBLE = 2**53


def _is_symbolic(*operands: Any) -> bool:
    return any(isinstance(operand, sympy.Expr) for operand in operands)


def _truncated(a: int, b: int) -> int:
    """The quotient rounded to 0, as integers divide."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _divide_integers(a: Any, b: Any) -> Any:
    if b == 0:
        return UNKNOWN
    if not _is_symbolic(a, b):
        return _truncated(a, b)
    # Rounding to 0 is rounding down only where nothing is negative.
    both = sympy.sympify(a).is_nonnegative and sympy.sympify(b).is_positive
    return floor_div(a, b) if both else UNKNOWN


def _divide(site: Site) -> Array:
    dtype = site.dtype(0)
    if dtype is None:
        raise Untraceable
    if dtype.is_floating_point():
        return lifted(lambda a, b: UNKNOWN if b == 0 else a / b)(site)
    return lifted(_divide_integers)(site)


def _modulo(site: Site) -> Array:
    """Mod takes the sign of the divisor, or with `fmod` that of the dividend."""
    like_dividend = bool(site.attribute("fmod", 0))

    def element(a: Any, b: Any) -> Any:
        if b == 0:
            return UNKNOWN
        if isinstance(a, float) or isinstance(b, float):
            return math.fmod(a, b) if like_dividend else UNKNOWN
        if not _is_symbolic(a, b):
            return a - b * _truncated(a, b) if like_dividend else a % b
        if like_dividend and not (is_negative(a) is False and is_negative(b) is False):
            return UNKNOWN
        return sympy.Mod(a, b)

    return lifted(element)(site)


def _absolute(a: Any) -> Any:
    if _is_symbolic(a):
        return a if is_negative(a) is False else UNKNOWN
    return abs(a)


def _floor(a: Any) -> Any:
    return sympy.floor(a) if _is_symbolic(a) else float(math.floor(a))


def _ceil(a: Any) -> Any:
    return -sympy.floor(-a) if _is_symbolic(a) else float(math.ceil(a))


def _equal(a: Any, b: Any) -> Any:
    if not _is_symbolic(a, b):
        return a == b
    answer = is_zero(a - b)
    return UNKNOWN if answer is None else answer


def _less(a: Any, b: Any) -> Any:
    if not _is_symbolic(a, b):
        return a < b
    answer = is_negative(a - b)
    return UNKNOWN if answer is None else answer


def _less_or_equal(a: Any, b: Any) -> Any:
    greater = _less(b, a)
    return greater if greater is UNKNOWN else not greater


def _greatest(*elements: Any) -> Any:
    return functools.reduce(_greater_of, elements)


def _greater_of(a: Any, b: Any) -> Any:
    if not _is_symbolic(a, b):
        return max(a, b)
    is_below = _less(a, b)
    if is_below is not UNKNOWN:
        return b if is_below else a
    if _less(b, a) is True:
        return a
    greatest = sympy.Max(a, b)
    # Sympy decides for sizes from 1; where that is not for empty tensors too, nothing is decided.
    return greatest if isinstance(greatest, sympy.Max) else UNKNOWN


def _least(*elements: Any) -> Any:
    return functools.reduce(_lesser_of, elements)


def _lesser_of(a: Any, b: Any) -> Any:
    if not _is_symbolic(a, b):
        return min(a, b)
    is_below = _less(a, b)
    if is_below is not UNKNOWN:
        return a if is_below else b
    if _less(b, a) is True:
        return b
    least = sympy.Min(a, b)
    return least if isinstance(least, sympy.Min) else UNKNOWN


def _where(site: Site) -> Array:
    def choose(c: Any, a: Any, b: Any) -> Any:
        if c is UNKNOWN:
            return a if a == b else UNKNOWN
        return a if c else b

    return elementwise(choose)(*(site.array(index) for index in range(3)))


def _cast(site: Site) -> Array:
    is_like = site.node.op_type == "CastLike"
    dtype = site.dtype(1) if is_like else ir.DataType(site.attribute("to", 0))
    if dtype not in READABLE:
        raise Untraceable
    is_float = dtype.is_floating_point()

    def convert(element: Any) -> Any:
        if isinstance(element, sympy.Expr):
            if element is UNKNOWN or dtype == ir.DataType.BOOL:
                return UNKNOWN
            if is_float or element.is_integer:
                return element
            return sympy.floor(element) if element.is_nonnegative else UNKNOWN
        if dtype == ir.DataType.BOOL:
            return bool(element)
        if is_float and abs(element) > _EXACT_IN_DOUBLE and isinstance(element, int):
            return UNKNOWN
        return float(element) if is_float else int(element)

    return elementwise(convert)(site.array(0))


def _reduction(function: Callable[[Any, Any], Any], *, is_exact: bool = True) -> Rule:
    reduce = np.frompyfunc(over_known(function), 2, 1).reduce

    def rule(site: Site) -> Array:
        array, axes = site.array(0), site.ints("axes", 1)
        dtype = site.dtype(0)
        if not is_exact and (dtype is None or dtype.is_floating_point()):
            raise Untraceable  # the sum of floats depends on the order
        if not axes and site.attribute("noop_with_empty_axes", 0):
            return array
        every = axes or range(array.ndim)
        dropped = tuple({axis + array.ndim if axis < 0 else axis for axis in every})
        for axis in dropped:
            if not 0 <= axis < array.ndim or array.shape[axis] == 0:
                raise Untraceable
            array = np.expand_dims(np.asarray(reduce(array, axis), dtype=object), axis)
        return array if site.attribute("keepdims", 1) else np.squeeze(array, dropped)

    return rule


_PLAIN: dict[str, Rule] = {
    "Abs": lifted(_absolute),
    "Add": lifted(operator.add),
    "And": lifted(lambda a, b: a and b),
    "Ceil": lifted(_ceil, rounds=True),
    "Div": _divide,
    "Equal": lifted(_equal),
    "Floor": lifted(_floor, rounds=True),
    "Greater": lifted(lambda a, b: _less(b, a)),
    "GreaterOrEqual": lifted(lambda a, b: _less_or_equal(b, a)),
    "Less": lifted(_less),
    "LessOrEqual": lifted(_less_or_equal),
    "Max": lifted(_greatest),
    "Min": lifted(_least),
    "Mul": lifted(operator.mul),
    "Neg": lifted(operator.neg),
    "Not": lifted(operator.not_),
    "Or": lifted(lambda a, b: a or b),
    "Sub": lifted(operator.sub),
    "Where": _where,
    "Xor": lifted(operator.ne),
}
_REDUCTIONS: dict[str, Rule] = {
    "ReduceMax": _reduction(_greater_of),
    "ReduceMin": _reduction(_lesser_of),
    "ReduceProd": _reduction(operator.mul, is_exact=False),
    "ReduceSum": _reduction(operator.add, is_exact=False),
}
ARITHMETIC: Rules = {
    **{op: (rule, frozenset()) for op, rule in _PLAIN.items()},
    **{
        op: (rule, frozenset({"axes", "keepdims", "noop_with_empty_axes"}))
        for op, rule in _REDUCTIONS.items()
    },
    "Cast": (_cast, frozenset({"to", "saturate", "round_mode"})),
    "CastLike": (_cast, frozenset({"saturate", "round_mode"})),
    "Mod": (_modulo, frozenset({"fmod"})),
}

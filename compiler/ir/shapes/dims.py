"""Symbolic dims: how they are read and spelled, and their arithmetic.

A dim is an `int` or a sympy expression over the names of symbolic dims; `UNKNOWN` absorbs whatever
is computed with it. A symbolic dim is taken to be at least 1, as `torch.export` and `onnx_ir` do.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import onnx_ir as ir
import sympy

Dim: TypeAlias = "int | sympy.Expr"

UNKNOWN = sympy.nan
_MAX_OPERATIONS = 64
_MAX_TERMS = 256
_MAX_TEXT = 400
_MAX_NUMBER = 2**63

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: sympy.floor(a / b),
    ast.Mod: sympy.Mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floor": sympy.floor,
    "max": sympy.Max,
    "min": sympy.Min,
    "mod": sympy.Mod,
}
_UNREADABLE = (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError)


@functools.lru_cache(maxsize=4096)
def parse_dim(text: str) -> Dim:
    """The expression that a symbolic dim spells, such as `past + 1` or `floor(H/2)`.

    A text that is no expression, or an absurdly large one, is one symbol; `?` is unknown, and so is
    a number, which as the name of a dim promises nothing.
    """
    if text in ("?", ""):
        return UNKNOWN
    names: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        name = match.group()
        if name.lower() in _FUNCTIONS and text[match.end() : match.end() + 1] == "(":
            return name.lower()
        return names.setdefault(name, f"v{len(names)}")

    # A dotted name such as `ids.1_dim_0` is one symbol, which Python's grammar cannot know.
    python = re.sub(r"[^\W\d][\w.]*", placeholder, text)
    symbols = {short: _symbol(name) for name, short in names.items()}
    try:
        if len(text) > _MAX_TEXT:
            return _symbol(text)
        dim = tidy(_evaluate(ast.parse(python, mode="eval").body, symbols))
    except _UNREADABLE:
        return _symbol(text)
    return UNKNOWN if isinstance(dim, int) else dim


def _symbol(name: str) -> sympy.Expr:
    return sympy.Symbol(name, integer=True, positive=True)


def _evaluate(tree: ast.expr, symbols: Mapping[str, sympy.Expr]) -> sympy.Expr:
    match tree:
        case ast.Name(id=name) if name in symbols:
            return symbols[name]
        case ast.Constant(value=int(value)):
            return _bounded(sympy.Integer(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, symbols)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(value))):
            if 0 < value < 8:
                return _bounded(_evaluate(left, symbols) ** value)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            operands = _evaluate(left, symbols), _evaluate(right, symbols)
            return _bounded(_OPERATORS[type(op)](*operands))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*(_evaluate(each, symbols) for each in args)))
    raise ValueError("not an expression over dims")


def _bounded(value: sympy.Expr) -> sympy.Expr:
    """A part of an expression, unless what is made of it could take forever."""
    if value.count_ops() > _MAX_OPERATIONS or _terms(value) > _MAX_TERMS:
        raise ValueError("too large")
    if any(abs(number) >= _MAX_NUMBER for number in value.atoms(sympy.Integer)):
        raise ValueError("too large")
    return value


def _terms(value: sympy.Basic) -> int:
    """How many terms a value may have when it is expanded."""
    if isinstance(value, sympy.Add):
        return sum(map(_terms, value.args))
    if isinstance(value, sympy.Mul):
        return math.prod(map(_terms, value.args))
    if isinstance(value, sympy.Pow) and value.exp.is_Integer:
        count = _terms(value.base)
        return count if count < 2 else count ** min(abs(int(value.exp)), _MAX_OPERATIONS)
    return max(map(_terms, value.args), default=1)


def tidy(value: Any) -> Any:
    """`value` in its one normal form: an int where it is one, else expanded."""
    if not isinstance(value, sympy.Basic):
        return value
    if value.is_Integer:
        return int(value)
    if value.is_Symbol or value is UNKNOWN:
        return value
    if value.has(sympy.nan, sympy.zoo, sympy.oo, sympy.I, sympy.Float):
        return UNKNOWN
    if value.count_ops() > _MAX_OPERATIONS or _terms(value) > _MAX_TERMS:
        return UNKNOWN
    value = sympy.expand(value)
    return int(value) if value.is_Integer else value


def to_dims(shape: ir.Shape | None) -> list[Dim] | None:
    """The dims of a shape; a negative one, as some exporters write, is unknown."""
    return None if shape is None else [to_dim(dim) for dim in shape]


def to_dim(dim: int | ir.SymbolicDim) -> Dim:
    """One dim of a shape."""
    if isinstance(dim, int):
        return dim if dim >= 0 else UNKNOWN
    return UNKNOWN if dim.value is None else parse_dim(dim.value)


def to_shape(dims: Iterable[Dim]) -> ir.Shape:
    """The shape with these dims."""
    return ir.Shape([spelled(dim) for dim in dims])


def spelled(dim: Dim) -> int | str | None:
    """A dim as `onnx_ir` and ONNX have it: a size, a text, or None where it is unknown."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    if dim is UNKNOWN or dim.is_negative or not dim.is_real:
        return None
    return dim_text(dim)


@functools.lru_cache(maxsize=4096)
def dim_text(dim: sympy.Expr) -> str:
    """How a symbolic dim is spelled; `parse_dim` reads it back."""
    return str(dim)


def is_known(dim: Dim) -> bool:
    """Whether anything is known of a dim."""
    return dim is not UNKNOWN


def add(*dims: Dim) -> Dim:
    """The sum."""
    return tidy(sum(dims))


def product(dims: Iterable[Dim]) -> Dim:
    """The product; 1 of nothing."""
    return tidy(math.prod(dims))


def quotient(dividend: Dim, divisor: Dim) -> Dim:
    """The exact quotient, for a division that a legal model guarantees to leave no rest."""
    if isinstance(dividend, int) and isinstance(divisor, int):
        return dividend // divisor if divisor and dividend % divisor == 0 else UNKNOWN
    if divisor == 0 or not (is_known(dividend) and is_known(divisor)):
        return UNKNOWN
    return tidy(sympy.cancel(sympy.sympify(dividend) / divisor))


def floor_div(dividend: Dim, divisor: Dim) -> Dim:
    """The quotient rounded down."""
    if isinstance(dividend, int) and isinstance(divisor, int):
        return dividend // divisor if divisor else UNKNOWN
    if divisor == 0 or not (is_known(dividend) and is_known(divisor)):
        return UNKNOWN
    total = sympy.expand(dividend)
    if isinstance(divisor, int):
        for term in sympy.Add.make_args(total):
            if isinstance(term, sympy.floor) and (total - term).is_integer:
                # Rounding down twice is rounding down once: floor(floor(x) / n) = floor(x / n).
                total = total - term + term.args[0]
                break
    return tidy(sympy.floor(sympy.expand(total / divisor)))


def ceil_div(dividend: Dim, divisor: Dim) -> Dim:
    """The quotient rounded up."""
    return tidy(-floor_div(tidy(-dividend), divisor))


def minimum(*dims: Dim) -> Dim:
    """The least of some dims."""
    if any(dim is UNKNOWN for dim in dims):
        return UNKNOWN
    return tidy(sympy.Min(*dims))


def maximum(*dims: Dim) -> Dim:
    """The greatest of some dims."""
    if any(dim is UNKNOWN for dim in dims):
        return UNKNOWN
    return tidy(sympy.Max(*dims))


def or_zero(dim: Any) -> Any:
    """A dim whose symbols may be 0: what holds of it holds when a tensor is empty too."""
    if not isinstance(dim, sympy.Expr):
        return dim
    return dim.xreplace(
        {
            symbol: sympy.Symbol(symbol.name, integer=True, nonnegative=True)
            for symbol in dim.free_symbols
        }
    )

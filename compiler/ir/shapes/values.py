"""Symbolic dims, and the values of small tensors traced through a graph as symbolic expressions.

A dim is an `int` or a sympy expression over the names of symbolic dims; `UNKNOWN` absorbs whatever
is computed with it. A symbolic dim is taken to be at least 1, as `torch.export` and `onnx_ir` do.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import sympy

Dim: TypeAlias = "int | sympy.Expr"
Element: TypeAlias = "int | float | bool | sympy.Expr"
Array = npt.NDArray[np.object_]

UNKNOWN = sympy.nan
MAX_ELEMENTS = 256
_MAX_BYTES = 1024
_MAX_OPERATIONS = 64
_MAX_DEPTH = 100

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


@functools.lru_cache(maxsize=4096)
def parse_dim(text: str) -> sympy.Expr:
    """The expression that a symbolic dim spells, such as `past + 1` or `floor(H/2)`.

    A text that is no expression is one symbol; `?` is unknown.
    """
    if text == "?":
        return UNKNOWN
    names: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        name = match.group()
        if name.lower() in _FUNCTIONS and text[match.end() : match.end() + 1] == "(":
            return name.lower()
        return names.setdefault(name, f"v{len(names)}")

    # A dotted name such as `ids.1_dim_0` is one symbol, which Python's grammar cannot know.
    python = re.sub(r"[A-Za-z_][\w.]*", placeholder, text)
    symbols = {short: _symbol(name) for name, short in names.items()}
    try:
        return tidy(_evaluate(ast.parse(python, mode="eval").body, symbols))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return _symbol(text)


def _symbol(name: str) -> sympy.Expr:
    return sympy.Symbol(name, integer=True, positive=True)


def _evaluate(tree: ast.expr, symbols: Mapping[str, sympy.Expr]) -> Any:
    match tree:
        case ast.Name(id=name):
            return symbols[name]
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, symbols)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(value))):
            if 0 < value < 8:
                return _evaluate(left, symbols) ** value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, symbols), _evaluate(right, symbols))
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(argument, symbols) for argument in args))
    raise ValueError(f"not an expression over dims: {ast.unparse(tree)}")


def tidy(value: Any) -> Any:
    """`value` in its one normal form: an int where it is one, else expanded."""
    if not isinstance(value, sympy.Basic):
        return value
    if value.is_Integer:
        return int(value)
    if value.is_Symbol or value is UNKNOWN:
        return value
    if value.has(sympy.nan, sympy.zoo, sympy.oo) or value.count_ops() > _MAX_OPERATIONS:
        return UNKNOWN
    value = sympy.expand(value)
    return int(value) if value.is_Integer else value


def to_dims(shape: ir.Shape | None) -> list[Dim] | None:
    """The dims of a shape; a negative one, as some exporters write, is unknown."""
    return None if shape is None else [_to_dim(dim) for dim in shape]


def _to_dim(dim: int | ir.SymbolicDim) -> Dim:
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


def minimum(*values: Element) -> Any:
    """The least of some elements."""
    if any(value is UNKNOWN for value in values):
        return UNKNOWN
    if any(isinstance(value, sympy.Expr) for value in values):
        return tidy(sympy.Min(*values))
    return min(values)


def maximum(*values: Element) -> Any:
    """The greatest of some elements."""
    if any(value is UNKNOWN for value in values):
        return UNKNOWN
    if any(isinstance(value, sympy.Expr) for value in values):
        return tidy(sympy.Max(*values))
    return max(values)


class Site:
    """One node as a rule sees it: the dims, dtypes and known values of its inputs.

    Args:
        node: The node.
        opset: The version of its domain.
        values: Where known values come from.
        output: The index of the output that is asked for.
    """

    def __init__(self, node: ir.Node, opset: int, values: Values, output: int = 0) -> None:
        self.node = node
        self.opset = opset
        self.output = output
        self._values = values

    def input(self, index: int) -> ir.Value | None:
        """Input `index`, or None where it is left out."""
        inputs = self.node.inputs
        return inputs[index] if index < len(inputs) else None

    def dims(self, index: int) -> list[Dim] | None:
        """The dims of input `index`, or None where its rank is not known."""
        value = self.input(index)
        return None if value is None else to_dims(value.shape)

    def dtype(self, index: int) -> ir.DataType | None:
        """The element type of input `index`."""
        value = self.input(index)
        return None if value is None else value.dtype

    def known(self, index: int) -> Array | None:
        """The elements of input `index`, where it is small and they can be traced."""
        value = self.input(index)
        return None if value is None else self._values.get(value)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def elements(self, name: str, index: int) -> list[Dim] | None:
        """A list that is attribute `name` in old opsets and input `index` in new ones."""
        if name in self.node.attributes:
            return list(self.node.attributes[name].value)
        known = self.known(index)
        return None if known is None else known.ravel().tolist()

    def ints(self, name: str, index: int) -> list[int] | None:
        """Like `elements`, when all of them are static."""
        elements = self.elements(name, index)
        if elements is None or not all(isinstance(element, int) for element in elements):
            return None
        return elements


class Values:
    """Finds the elements of small tensors by tracing them back to shapes and constants.

    Args:
        opset: The version of the default domain.
        known: Elements of values that nothing in the graph computes.
        defaults_are_constant: Whether an initializer that is also a graph input is a constant,
            as it is up to IR version 3.
    """

    def __init__(
        self,
        opset: int,
        known: Mapping[ir.Value, Array] | None = None,
        *,
        defaults_are_constant: bool = False,
    ) -> None:
        self._opset = opset
        self._memo: dict[ir.Value, Array | None] = dict(known or {})
        self._defaults_are_constant = defaults_are_constant
        self._depth = 0

    def get(self, value: ir.Value) -> Array | None:
        """The elements of `value` in its own shape, or None where they cannot be traced."""
        if value not in self._memo:
            self._memo[value] = self._trace(value)
        return self._memo[value]

    def _trace(self, value: ir.Value) -> Array | None:
        node = value.producer()
        if node is None:
            is_constant = not value.is_graph_input() or self._defaults_are_constant
            return from_tensor(value.const_value) if is_constant else None
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        if rule is None or self._depth > _MAX_DEPTH:
            return None
        self._depth += 1
        try:
            array = rule(Site(node, self._opset, self, value.index() or 0))
        except (ValueError, IndexError, OverflowError):
            # The node is illegal; that is for the type inference of the same node to say.
            return None
        finally:
            self._depth -= 1
        if array is None or np.size(array) > MAX_ELEMENTS:
            return None
        return _elementwise(functools.partial(_fit, value.dtype))(np.asarray(array, dtype=object))


def from_tensor(tensor: ir.TensorProtocol | None) -> Array | None:
    """The elements of a small tensor of numbers or booleans, None for any other."""
    if tensor is None or tensor.dtype not in _READABLE or tensor.nbytes > _MAX_BYTES:
        return None
    return _elementwise(functools.partial(_fit, tensor.dtype))(tensor.numpy().astype(object))


_READABLE = {
    ir.DataType.BOOL,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.FLOAT16,
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
}
_LIMITS = {ir.DataType.INT32: 2**31, ir.DataType.INT64: 2**63}


def _fit(dtype: ir.DataType | None, element: Element) -> Element:
    """`element` as a tensor of `dtype` holds it: floats are rounded, overflow is unknown."""
    if isinstance(element, float):
        if dtype in _READABLE and dtype.is_floating_point():
            element = float(dtype.numpy().type(element))
        return element if math.isfinite(element) else UNKNOWN
    if isinstance(element, int) and not isinstance(element, bool) and dtype in _LIMITS:
        return element if -_LIMITS[dtype] <= element < _LIMITS[dtype] else UNKNOWN
    return element


def _array(elements: Sequence[Element]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _elementwise(function: Callable[..., Element]) -> Callable[..., Array]:
    def apply(*arrays: Array) -> Array:
        result = np.frompyfunc(function, len(arrays), 1)(*arrays)
        if isinstance(result, np.ndarray):
            return result
        scalar = np.empty((), dtype=object)
        scalar[()] = result
        return scalar

    return apply


def _exact(element: Element) -> Element:
    """A float as the fraction it is, when it is a simple one."""
    if isinstance(element, float):
        return sympy.Rational(element) if (element * 64).is_integer() else UNKNOWN
    return element


def _lifted(function: Callable[..., Any]) -> Callable[[Site], Array | None]:
    """A rule that applies `function` to the elements of all inputs, with broadcasting."""

    def element(*operands: Element) -> Element:
        if any(isinstance(operand, sympy.Expr) for operand in operands):
            operands = tuple(_exact(operand) for operand in operands)
        if any(operand is UNKNOWN for operand in operands):
            return UNKNOWN
        return tidy(function(*operands))

    def rule(site: Site) -> Array | None:
        arrays = [site.known(index) for index in range(len(site.node.inputs))]
        known = [array for array in arrays if array is not None]
        return _elementwise(element)(*known) if len(known) == len(arrays) else None

    return rule


def _divide(site: Site) -> Array | None:
    dtype = site.dtype(0) or site.dtype(1)
    is_integer = dtype is None or dtype.is_integer()

    def divide(a: Any, b: Any) -> Any:
        if b == 0:
            return UNKNOWN
        if not is_integer:
            return a / b
        if isinstance(a, int) and isinstance(b, int):
            return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        # Division truncates, which is rounding down only where nothing is negative.
        both = sympy.sympify(a).is_nonnegative and sympy.sympify(b).is_positive
        return floor_div(a, b) if both else UNKNOWN

    return _lifted(divide)(site)


def _modulo(a: Any, b: Any) -> Any:
    if b == 0:
        return UNKNOWN
    if isinstance(a, sympy.Expr) or isinstance(b, sympy.Expr):
        return sympy.Mod(a, b)
    return a % b


def _absolute(a: Any) -> Any:
    if isinstance(a, sympy.Expr):
        return a if a.is_nonnegative else UNKNOWN
    return abs(a)


def _floor(a: Any) -> Any:
    return sympy.floor(a) if isinstance(a, sympy.Expr) else float(math.floor(a))


def _ceil(a: Any) -> Any:
    return -sympy.floor(-a) if isinstance(a, sympy.Expr) else float(math.ceil(a))


def _equal(a: Any, b: Any) -> Any:
    difference = sympy.expand(sympy.sympify(a) - sympy.sympify(b))
    if difference.is_zero:
        return True
    is_apart = difference.is_nonzero or difference.is_positive or difference.is_negative
    return False if is_apart else UNKNOWN


def _less(a: Any, b: Any) -> Any:
    difference = sympy.expand(sympy.sympify(a) - sympy.sympify(b))
    if difference.is_negative:
        return True
    return False if difference.is_nonnegative else UNKNOWN


def _or_equal(a: Any, b: Any) -> Any:
    greater = _less(b, a)
    return greater if greater is UNKNOWN else not greater


def _where(site: Site) -> Array | None:
    condition, then, otherwise = (site.known(index) for index in range(3))
    if condition is None or then is None or otherwise is None:
        return None

    def choose(c: Any, a: Any, b: Any) -> Any:
        if c is UNKNOWN:
            return a if a == b else UNKNOWN
        return a if c else b

    return _elementwise(choose)(condition, then, otherwise)


def _cast(site: Site) -> Array | None:
    is_like = site.node.op_type == "CastLike"
    array, dtype = site.known(0), site.dtype(1) if is_like else ir.DataType(site.attribute("to", 0))
    if array is None or dtype not in _READABLE:
        return None

    def convert(element: Any) -> Any:
        if isinstance(element, sympy.Expr):
            if element is UNKNOWN or dtype == ir.DataType.BOOL:
                return UNKNOWN
            if dtype.is_floating_point() or element.is_integer:
                return element
            return sympy.floor(element) if element.is_nonnegative else UNKNOWN
        if dtype == ir.DataType.BOOL:
            return bool(element)
        return float(element) if dtype.is_floating_point() else int(element)

    return _elementwise(convert)(array)


def _constant(site: Site) -> Array | None:
    if "value" in site.node.attributes:
        return from_tensor(site.attribute("value"))
    for name in ("value_int", "value_float", "value_ints", "value_floats"):
        if name in site.node.attributes:
            value = site.attribute(name)
            return _array(value) if name.endswith("s") else np.array(value, dtype=object)
    return None


def _shape(site: Site) -> Array | None:
    dims = site.dims(0)
    if dims is None:
        return None
    return _array(dims[site.attribute("start", 0) : site.attribute("end", len(dims))])


def _size(site: Site) -> Array | None:
    dims = site.dims(0)
    return None if dims is None else _array([product(dims)]).reshape(())


def _gather(site: Site) -> Array | None:
    array, indices = site.known(0), site.known(1)
    if array is None or indices is None or any(index is UNKNOWN for index in indices.flat):
        return None
    return array.take(indices.astype(np.int64), axis=site.attribute("axis", 0))


def _slice(site: Site) -> Array | None:
    array = site.known(0)
    starts, ends = site.ints("starts", 1), site.ints("ends", 2)
    if array is None or starts is None or ends is None:
        return None
    axes = site.ints("axes", 3) or list(range(len(starts)))
    steps = site.ints("steps", 4) or [1] * len(starts)
    window = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # A backward slice that includes element 0 ends beyond it, which Python spells None.
        is_past_start = step < 0 and end < -array.shape[axis]
        window[axis] = slice(start, None if is_past_start else end, step)
    return array[tuple(window)]


def _concat(site: Site) -> Array | None:
    arrays = [site.known(index) for index in range(len(site.node.inputs))]
    known = [array for array in arrays if array is not None]
    if len(known) < len(arrays):
        return None
    return np.concatenate(known, axis=site.attribute("axis", 0))


def _unsqueeze(site: Site) -> Array | None:
    array, axes = site.known(0), site.ints("axes", 1)
    return None if array is None or axes is None else np.expand_dims(array, tuple(axes))


def _squeeze(site: Site) -> Array | None:
    array, axes = site.known(0), site.ints("axes", 1)
    if array is None or (axes is None and site.input(1) is not None):
        return None
    return np.squeeze(array, None if axes is None else tuple(axes))


def _reshape(site: Site) -> Array | None:
    array, shape = site.known(0), site.ints("shape", 1)
    if array is None or shape is None:
        return None
    if not site.attribute("allowzero", 0):
        shape = [array.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return array.reshape(shape)


def _expand(site: Site) -> Array | None:
    array, shape = site.known(0), site.ints("shape", 1)
    if array is None or shape is None or math.prod(shape) > MAX_ELEMENTS:
        return None
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(shape)))


def _constant_of_shape(site: Site) -> Array | None:
    shape, value = site.ints("", 0), site.attribute("value")
    if shape is None or math.prod(shape) > MAX_ELEMENTS:
        return None
    fill = np.array([0.0], dtype=object) if value is None else from_tensor(value)
    return None if fill is None else np.full(shape, fill.item(), dtype=object)


def _range(site: Site) -> Array | None:
    bounds = [site.ints("", index) for index in range(3)]
    known = [bound[0] for bound in bounds if bound]
    if len(known) < 3 or known[2] == 0 or len(range(*known)) > MAX_ELEMENTS:
        return None
    return _array(list(range(*known)))


def _split(site: Site) -> Array | None:
    array, sizes = site.known(0), site.ints("split", 1)
    if array is None:
        return None
    axis, count = site.attribute("axis", 0), len(site.node.outputs)
    if sizes is None:
        chunk = -(-array.shape[axis] // count)
        sizes = [chunk] * count
    return np.split(array, np.cumsum(sizes)[:-1].tolist(), axis=axis)[site.output]


def _transpose(site: Site) -> Array | None:
    array = site.known(0)
    return None if array is None else array.transpose(site.attribute("perm"))


def _reduction(reduce: np.ufunc) -> Callable[[Site], Array | None]:
    def rule(site: Site) -> Array | None:
        array, axes = site.known(0), site.ints("axes", 1)
        if array is None or (axes is None and site.input(1) is not None):
            return None
        if axes is None and site.attribute("noop_with_empty_axes", 0):
            return array
        for axis in sorted((axis % array.ndim for axis in axes or range(array.ndim)), reverse=True):
            array = np.expand_dims(np.asarray(reduce.reduce(array, axis), dtype=object), axis)
        keep = site.attribute("keepdims", 1)
        dropped = tuple(axes) if axes else tuple(range(array.ndim))
        return array if keep else np.squeeze(array, dropped)

    return rule


def _identity(site: Site) -> Array | None:
    return site.known(0)


_RULES: dict[str, Callable[[Site], Array | None]] = {
    "Abs": _lifted(_absolute),
    "Add": _lifted(operator.add),
    "And": _lifted(lambda a, b: a and b),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _lifted(_ceil),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _divide,
    "Equal": _lifted(_equal),
    "Expand": _expand,
    "Floor": _lifted(_floor),
    "Gather": _gather,
    "Greater": _lifted(lambda a, b: _less(b, a)),
    "GreaterOrEqual": _lifted(lambda a, b: _or_equal(b, a)),
    "Identity": _identity,
    "Less": _lifted(_less),
    "LessOrEqual": _lifted(_or_equal),
    "Max": _lifted(maximum),
    "Min": _lifted(minimum),
    "Mod": _lifted(_modulo),
    "Mul": _lifted(operator.mul),
    "Neg": _lifted(operator.neg),
    "Not": _lifted(operator.not_),
    "Or": _lifted(lambda a, b: a or b),
    "Range": _range,
    "ReduceMax": _reduction(np.frompyfunc(maximum, 2, 1)),
    "ReduceMin": _reduction(np.frompyfunc(minimum, 2, 1)),
    "ReduceProd": _reduction(np.frompyfunc(lambda a, b: tidy(a * b), 2, 1)),
    "ReduceSum": _reduction(np.frompyfunc(lambda a, b: tidy(a + b), 2, 1)),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _lifted(operator.sub),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}

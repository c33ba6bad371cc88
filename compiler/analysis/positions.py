"""Values that are simple functions of their own indices: positions, comparisons of them, masks.

Exporters compute a causal mask from `Range`, `Unsqueeze`, `LessOrEqual` and dozens of nodes more.
Here such values are proven to be what they are: affine in the indices, or a choice between two
numbers by the sign of something affine.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import constant, read, scalar

Number = int | float
_DEEPEST = 100
_LARGEST = 1 << 22
_INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})


@dataclasses.dataclass(frozen=True)
class Affine:
    """`start + sum(slopes[axis] * index[axis])` at every index of a tensor of that rank."""

    start: int
    slopes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """`then` where `test` is at least zero, `otherwise` elsewhere; True counts as 1."""

    test: Affine
    then: Number
    otherwise: Number


Form = Affine | Choice


def is_causal(mask: ir.Value, *, inverted: bool = False) -> bool:
    """Whether an attention mask provably lets query `i` attend exactly the keys `j <= i`.

    Args:
        mask: bool (True attends) or floating point (added to the scores: 0 where attended, and
            elsewhere a number that no softmax survives), with queries and keys as its last dims.
        inverted: True marks the keys that are masked.
    """
    form = Positions().of(mask)
    if not isinstance(form, Choice) or len(form.test.slopes) < 2:
        return False
    attended, masked = form.then, form.otherwise
    start, slopes = form.test.start, form.test.slopes
    if slopes[-2] < 0:
        attended, masked = masked, attended
        start, slopes = -start - 1, tuple(-slope for slope in slopes)
    if start != 0 or slopes[-2:] != (1, -1) or any(slopes[:-2]):
        return False
    if mask.dtype == ir.DataType.BOOL:
        return bool(attended) != inverted and bool(masked) == inverted
    return attended == 0 and masked <= lowest_score(mask.dtype)


def lowest_score(dtype: ir.DataType | None) -> float:
    """A number so low that a score it is added to, or stands for, has no weight in a softmax."""
    return -6e4 if dtype == ir.DataType.FLOAT16 else -1e9


def same_dim(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two dims are provably equal: the same number, or the same symbol."""
    return a == b and (isinstance(a, int) or a.value is not None)


class Positions:
    """Finds the forms of values, each once."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Form | None] = {}
        self._depth = 0

    def of(self, value: ir.Value | None) -> Form | None:
        """What `value` is as a function of its indices, or None if that cannot be told."""
        if value is None or value.shape is None:
            return None
        if value not in self._known:
            self._known[value] = None
            self._known[value] = _settle(self._find(value), value.shape)
        return self._known[value]

    def _find(self, value: ir.Value) -> Form | None:
        tensor = constant(value)
        if tensor is not None:
            return _read(tensor) if tensor.size <= _LARGEST else None
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or self._depth > _DEEPEST:
            return None
        self._depth += 1
        try:
            if node.op_type in _MOVES and (whole := self._moved(node)) is not None:
                return whole
            rule = _RULES.get(node.op_type)
            return rule(self, node) if rule is not None else None
        finally:
            self._depth -= 1

    def _moved(self, node: ir.Node) -> Form | None:
        """A tensor of equal elements stays one, wherever its elements are moved to."""
        sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        numbers = [fixed(self.of(source)) for source in sources]
        shape = node.outputs[0].shape
        if shape is None or numbers[0] is None or any(n != numbers[0] for n in numbers):
            return None
        return whole(numbers[0], node.outputs[0])


def fixed(form: Form | None) -> Number | None:
    """The number that a form is at every index; None if it varies, or is not known."""
    if isinstance(form, Choice):
        return form.then if form.then == form.otherwise else None
    return form.start if form is not None and not any(form.slopes) else None


def whole(number: Number, like: ir.Value) -> Form:
    """The form of a tensor like `like` whose elements are all `number`."""
    assert like.shape is not None
    level = (0,) * len(like.shape)
    if like.dtype in _INTEGERS:
        return Affine(int(number), level)
    return Choice(Affine(0, level), number, number)


def _settle(form: Form | None, shape: ir.Shape) -> Form | None:
    """A form without slopes along dims of one element, and without a choice already made."""
    if form is None:
        return None
    affine = form if isinstance(form, Affine) else form.test
    slopes = tuple(0 if dim == 1 else s for s, dim in zip(affine.slopes, shape, strict=True))
    affine = Affine(affine.start, slopes)
    if isinstance(form, Affine):
        return affine
    if any(slopes):
        return Choice(affine, form.then, form.otherwise)
    number = form.then if affine.start >= 0 else form.otherwise
    return Choice(Affine(0, slopes), number, number)


def _read(tensor: ir.TensorProtocol) -> Form | None:
    array = tensor.numpy()
    if array.size == 0 or array.dtype.kind not in "bifu":
        return None
    first = array.reshape(-1)[0]
    level = Affine(0, (0,) * array.ndim)
    if (array == first).all():
        if tensor.dtype in _INTEGERS:
            return Affine(int(first), level.slopes)
        return Choice(level, first.item(), first.item())
    if tensor.dtype in _INTEGERS and (affine := _fit(array)) is not None:
        return affine
    return _fit_triangle(array) if array.ndim >= 2 else None


def _fit(array: np.ndarray) -> Affine | None:
    origin = (0,) * array.ndim
    start = int(array[origin])
    slopes = []
    for axis, size in enumerate(array.shape):
        one = tuple(int(other == axis) for other in range(array.ndim))
        slopes.append(int(array[one]) - start if size > 1 else 0)
    grid = np.ogrid[tuple(slice(size) for size in array.shape)]
    fitted = start + sum(slope * axis for slope, axis in zip(slopes, grid, strict=True))
    return Affine(start, tuple(slopes)) if np.array_equal(fitted, array) else None


def _fit_triangle(array: np.ndarray) -> Choice | None:
    """Two numbers, one on and below a diagonal of the last two dims, the other above."""
    rows, columns = array.shape[-2:]
    top = array[(0,) * (array.ndim - 2)][0]
    below, reach = top[0], int((top == top[0]).sum())
    above = array[(0,) * (array.ndim - 2)][0, reach] if reach < columns else None
    if above is None:
        return None
    triangle = np.where(np.tri(rows, columns, reach - 1, dtype=bool), below, above)
    if not np.array_equal(np.broadcast_to(triangle, array.shape), array):
        return None
    slopes = (*(0,) * (array.ndim - 2), 1, -1)
    return Choice(Affine(reach - 1, slopes), below.item(), above.item())


def _with(form: Form, change: Callable[[Affine], Affine]) -> Form:
    if isinstance(form, Affine):
        return change(form)
    return Choice(change(form.test), form.then, form.otherwise)


def _slopes(form: Form) -> tuple[int, ...]:
    return (form if isinstance(form, Affine) else form.test).slopes


def _spread(form: Form | None, source: ir.Value | None, target: ir.Value) -> Form | None:
    """The form of `source` broadcast to the shape of `target`."""
    if form is None or source is None or source.shape is None or target.shape is None:
        return None
    missing = len(target.shape) - len(source.shape)
    for axis, slope in enumerate(_slopes(form)):
        if slope and not same_dim(source.shape[axis], target.shape[missing + axis]):
            return None
    return _with(form, lambda a: Affine(a.start, (0,) * missing + a.slopes))


def _operands(positions: Positions, node: ir.Node) -> list[Form | None]:
    return [_spread(positions.of(value), value, node.outputs[0]) for value in node.inputs]


def _add(sign: int) -> Callable[[Positions, ir.Node], Form | None]:
    def rule(positions: Positions, node: ir.Node) -> Form | None:
        a, b = _operands(positions, node)
        if isinstance(a, Affine) and isinstance(b, Affine):
            return _plus(a, sign, b)
        return _by_number(a, b, operator.add if sign > 0 else operator.sub)

    return rule


def _multiply(positions: Positions, node: ir.Node) -> Form | None:
    a, b = _operands(positions, node)
    for form, other in ((a, b), (b, a)):
        factor = fixed(other)
        if isinstance(form, Affine) and isinstance(factor, int):
            return Affine(form.start * factor, tuple(s * factor for s in form.slopes))
    return _by_number(a, b, operator.mul)


def _by_number(
    a: Form | None, b: Form | None, compute: Callable[[Number, Number], Number]
) -> Form | None:
    """`compute` on a choice and a number, in either order."""
    x, y = fixed(a), fixed(b)
    if isinstance(a, Choice) and y is not None:
        return Choice(a.test, compute(a.then, y), compute(a.otherwise, y))
    if isinstance(b, Choice) and x is not None:
        return Choice(b.test, compute(x, b.then), compute(x, b.otherwise))
    return None


def _compare(
    compute: Callable[[Number, Number], bool], sign: int = 0, offset: int = 0
) -> Callable[[Positions, ir.Node], Form | None]:
    """A comparison of a and b that holds where `sign * (b - a) + offset` is at least zero."""

    def rule(positions: Positions, node: ir.Node) -> Form | None:
        a, b = _operands(positions, node)
        if not isinstance(a, Affine) or not isinstance(b, Affine):
            return _by_number(a, b, lambda x, y: int(compute(x, y)))
        gap = _plus(b, -1, a)
        if not any(gap.slopes):
            return whole(int(compute(0, gap.start)), node.outputs[0])
        if not sign:
            return None
        scaled = tuple(sign * slope for slope in gap.slopes)
        return Choice(Affine(sign * gap.start + offset, scaled), 1, 0)

    return rule


def _logic(neutral: int) -> Callable[[Positions, ir.Node], Form | None]:
    """And (neutral 1) or Or (neutral 0)."""

    def rule(positions: Positions, node: ir.Node) -> Form | None:
        a, b = _operands(positions, node)
        for form, other in ((a, b), (b, a)):
            number = fixed(other)
            if number is not None and bool(number) != bool(neutral):
                return whole(1 - neutral, node.outputs[0])
            if number is not None or form == other:
                return form
        return None

    return rule


def _not(positions: Positions, node: ir.Node) -> Form | None:
    form = positions.of(node.inputs[0])
    if not isinstance(form, Choice):
        return None
    return Choice(form.test, int(not form.then), int(not form.otherwise))


def _where(positions: Positions, node: ir.Node) -> Form | None:
    condition, x, y = _operands(positions, node)
    if not isinstance(condition, Choice):
        return None
    chosen = fixed(condition)
    if chosen is not None:
        return x if chosen else y
    a, b = fixed(x), fixed(y)
    if a is None or b is None:
        return None
    return Choice(condition.test, a if condition.then else b, a if condition.otherwise else b)


def _cast(positions: Positions, node: ir.Node) -> Form | None:
    form, target = positions.of(node.inputs[0]), node.outputs[0].dtype
    number = fixed(form)
    if number is not None and target is not None:
        return whole(bool(number) if target == ir.DataType.BOOL else number, node.outputs[0])
    if isinstance(form, Affine):
        return form if target in _INTEGERS else None
    if isinstance(form, Choice) and target == ir.DataType.BOOL:
        return Choice(form.test, int(bool(form.then)), int(bool(form.otherwise)))
    return form


def _range(positions: Positions, node: ir.Node) -> Form | None:
    start, step = fixed(positions.of(node.inputs[0])), fixed(positions.of(node.inputs[2]))
    if isinstance(start, int) and isinstance(step, int):
        return Affine(start, (step,))
    return None


def _constant_of_shape(positions: Positions, node: ir.Node) -> Form | None:
    value = node.attributes.get("value")
    number = 0.0 if value is None else value.as_tensor().numpy().reshape(-1)[0].item()
    return whole(number, node.outputs[0]) if node.outputs[0].shape is not None else None


def _regroup(positions: Positions, node: ir.Node) -> Form | None:
    """Reshape and its kin, where only dims of one element come and go."""
    source, target = node.inputs[0], node.outputs[0]
    form = positions.of(source)
    if form is None or source is None or source.shape is None or target.shape is None:
        return None
    old = [axis for axis, dim in enumerate(source.shape) if dim != 1]
    new = [axis for axis, dim in enumerate(target.shape) if dim != 1]
    if len(old) != len(new):
        return None
    if not all(same_dim(source.shape[a], target.shape[b]) for a, b in zip(old, new, strict=True)):
        return None
    slopes = [0] * len(target.shape)
    for a, b in zip(old, new, strict=True):
        slopes[b] = _slopes(form)[a]
    return _with(form, lambda affine: Affine(affine.start, tuple(slopes)))


def _expand(positions: Positions, node: ir.Node) -> Form | None:
    return _spread(positions.of(node.inputs[0]), node.inputs[0], node.outputs[0])


def _transpose(positions: Positions, node: ir.Node) -> Form | None:
    form, perm = positions.of(node.inputs[0]), node.attributes.get("perm")
    if form is None or perm is None:
        return None
    order = perm.as_ints()
    return _with(form, lambda a: Affine(a.start, tuple(a.slopes[axis] for axis in order)))


def _slice(positions: Positions, node: ir.Node) -> Form | None:
    form = positions.of(node.inputs[0])
    inputs = [*node.inputs, None, None][:5]
    starts, axes, steps = read(inputs[1]), read(inputs[3]), read(inputs[4])
    if form is None or starts is None or (starts < 0).any():
        return None
    if (axes is None) != (inputs[3] is None) or (steps is None) != (inputs[4] is None):
        return None
    begin, slopes = 0, list(_slopes(form))
    places = range(len(starts)) if axes is None else axes.tolist()
    for place, axis in enumerate(places):
        step = 1 if steps is None else int(steps[place])
        if step < 1:
            return None
        begin += slopes[axis] * int(starts[place])
        slopes[axis] *= step
    return _with(form, lambda a: Affine(a.start + begin, tuple(slopes)))


def _concat(positions: Positions, node: ir.Node) -> Form | None:
    """Pieces that continue each other, such as -1 before 0, 1, 2, ..."""
    pieces = [positions.of(value) for value in node.inputs]
    axis = node.attributes["axis"].as_int()
    last = pieces[-1]
    if not isinstance(last, Affine):
        return None
    offset = 0
    starts: list[tuple[Affine, int, bool]] = []
    for value, piece in zip(node.inputs, pieces, strict=True):
        if not isinstance(piece, Affine) or value is None or value.shape is None:
            return None
        size = value.shape[axis]
        starts.append((piece, offset, size == 1))
        if piece is not last:
            if not isinstance(size, int):
                return None
            offset += size
    start = last.start - last.slopes[axis] * offset
    for piece, at, single in starts:
        begins = piece.start == start + last.slopes[axis] * at
        if not begins or not _parallel(piece.slopes, last.slopes, axis, single):
            return None
    return Affine(start, last.slopes)


def _parallel(a: Sequence[int], b: Sequence[int], axis: int, single: bool) -> bool:
    """Whether slopes agree; those along `axis` need not for a `single` element."""
    along = axis % len(a)
    return all(x == y or (single and n == along) for n, (x, y) in enumerate(zip(a, b, strict=True)))


def _gather_nd(positions: Positions, node: ir.Node) -> Form | None:
    """Positions looked up at positions, which a Concat holds one beside the other."""
    form, picker = positions.of(node.inputs[0]), node.inputs[1]
    joined = picker.producer() if picker is not None else None
    batch_dims = node.attributes.get("batch_dims")
    if form is None or joined is None or joined.op_type != "Concat":
        return None
    if (batch_dims is not None and batch_dims.as_int()) or len(joined.inputs) != len(_slopes(form)):
        return None
    assert picker is not None and picker.shape is not None
    if joined.attributes["axis"].as_int() not in (-1, len(picker.shape) - 1):
        return None
    indices = [positions.of(value) for value in joined.inputs]
    rank = len(picker.shape) - 1
    looked_up = Affine(0, (0,) * rank)
    for slope, index in zip(_slopes(form), indices, strict=True):
        if slope and not _is_index(index):
            return None
        if slope and isinstance(index, Affine):
            looked_up = _plus(looked_up, slope, Affine(index.start, index.slopes[:rank]))
    return _with(form, lambda a: Affine(a.start + looked_up.start, looked_up.slopes))


def _gather(positions: Positions, node: ir.Node) -> Form | None:
    form, index = positions.of(node.inputs[0]), positions.of(node.inputs[1])
    if form is None or not isinstance(index, Affine) or not _is_index(index):
        return None
    attribute = node.attributes.get("axis")
    slopes = _slopes(form)
    axis = (attribute.as_int() if attribute is not None else 0) % len(slopes)
    inner = tuple(slopes[axis] * slope for slope in index.slopes)
    moved = (*slopes[:axis], *inner, *slopes[axis + 1 :])
    return _with(form, lambda a: Affine(a.start + slopes[axis] * index.start, moved))


def _is_index(form: Form | None) -> bool:
    """Whether a form is never negative, so that it does not count from the end."""
    return isinstance(form, Affine) and form.start >= 0 and all(s >= 0 for s in form.slopes)


def _plus(a: Affine, factor: int, b: Affine) -> Affine:
    slopes = tuple(x + factor * y for x, y in zip(a.slopes, b.slopes, strict=True))
    return Affine(a.start + factor * b.start, slopes)


def _cumulative(positions: Positions, node: ir.Node) -> Form | None:
    return whole(0, node.outputs[0]) if fixed(positions.of(node.inputs[0])) == 0 else None


def _triangle(positions: Positions, node: ir.Node) -> Form | None:
    number = fixed(positions.of(node.inputs[0]))
    diagonal = scalar(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else 0
    shape = node.outputs[0].shape
    if number is None or diagonal is None or shape is None:
        return None
    upper = node.attributes.get("upper")
    sign = -1 if upper is None or upper.as_int() else 1
    return Choice(Affine(sign * int(diagonal), (*(0,) * (len(shape) - 2), sign, -sign)), number, 0)


_MOVES = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)

_RULES: dict[str, Callable[[Positions, ir.Node], Form | None]] = {
    "Add": _add(1),
    "And": _logic(1),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative,
    "Equal": _compare(operator.eq),
    "Expand": _expand,
    "Flatten": _regroup,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Greater": _compare(operator.gt, -1, -1),
    "GreaterOrEqual": _compare(operator.ge, -1, 0),
    "Identity": _expand,
    "Less": _compare(operator.lt, 1, -1),
    "LessOrEqual": _compare(operator.le, 1, 0),
    "Mul": _multiply,
    "Not": _not,
    "Or": _logic(0),
    "Range": _range,
    "Reshape": _regroup,
    "Slice": _slice,
    "Squeeze": _regroup,
    "Sub": _add(-1),
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _regroup,
    "Where": _where,
}

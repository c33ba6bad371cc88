"""Rotary position embedding in the forms that exporters give it becomes `RotaryEmbedding`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from aigcc.analysis.positions import same_dim
from aigcc.ir.weights import read, scalar
from aigcc.passes.sizes import size_of
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder, either
from aigcc.pipeline.rules import Builder, Rule, RulePass

_OPSET = 23


class DoubleLater(Rule):
    """Cos(Concat(f, f)) -> Concat(Cos(f), Cos(f)); also Sin, and Cast, Unsqueeze, Mul after them"""

    name = "double"
    shared = frozenset({"both"})

    def pattern(self, op: PatternBuilder, f: Any, c: Any) -> Sequence[Apply]:
        both = op.Concat(f, f, _as="both")
        return [
            op.Cos(both, _or=("Sin",)),
            op.Cast(both, _or=("Unsqueeze",), _more=True),
            op.Mul(both, c),
        ]

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        root, rank = match.root, _rank(match.f)
        if rank is None or match.both.attributes["axis"].as_int() not in (-1, rank - 1):
            return None
        if root.op_type not in ("Cos", "Sin") and not _is_angle(match.f):
            return None
        rest = [value for value in root.inputs if value is not match.both.outputs[0]]
        if root.op_type == "Mul" and scalar(match.c) is None:
            return None
        if root.op_type == "Unsqueeze":
            axes = root.attributes.get_ints("axes") or read((*root.inputs, None)[1])
            if axes is None or list(axes) not in ([0], [1]):
                return None
        attributes = {name: attribute.value for name, attribute in root.attributes.items()}
        half = op.node(root.op_type, [match.f, *rest], attributes)
        value: ir.Value = op.Concat(half, half, axis=-1)
        return value


def _is_angle(value: ir.Value) -> bool:
    """Whether a value is a sine or cosine, maybe scaled, cast or given more dims."""
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Unsqueeze", "Mul"):
        first = node.inputs[0]
        node = first.producer() if first is not None else None
    return node is not None and node.op_type in ("Cos", "Sin")


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _halves(op: PatternBuilder, x: Any) -> tuple[Any, Any]:
    """The lower and the upper half of x's last dim, cut by Slice or Split."""
    lower = either(op.Slice(x, _more=True, _as="low"), op.Split(x, _more=True, _as="split"))
    upper = either(
        op.Slice(x, _more=True, _as="high"), op.Split(x, _more=True, _as="split", _output=1)
    )
    return lower, upper


def _pairs(op: PatternBuilder, x: Any) -> tuple[Any, Any]:
    """The even and the odd elements of x's last dim, cut from Reshape(x, [.., d / 2, 2])."""
    pairs = op.Reshape(x, _more=True, _as="pairs")

    def element(name: str, place: int) -> Any:
        cut = either(
            op.Slice(pairs, _more=True, _as=name),
            op.Split(pairs, _more=True, _as="split", _output=place),
        )
        return either(
            op.Squeeze(cut, _more=True, _or=("Reshape",)), op.Gather(pairs, place, _as=name)
        )

    return element("low", 0), element("high", 1)


class RotateHalf(Rule):
    """x * cos + Concat(-x2, x1) * sin -> RotaryEmbedding(x, cos, sin), x1 and x2 halves of x"""

    name = "half"
    opset = _OPSET

    def pattern(self, op: PatternBuilder, x: Any, cos: Any, sin: Any) -> Apply:
        lower, upper = _halves(op, x)
        turned = op.Concat(op.Neg(upper), lower, _as="turned")
        return op.Add(op.Mul(x, cos), op.Mul(turned, sin))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _are_halves(match) or not _is_last(match.turned, match.x):
            return None
        return _rotary(op, match.x, _unrepeated(match.cos), _unrepeated(match.sin), pairs=False)


class RotateHalves(Rule):
    """Concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin) -> RotaryEmbedding(x, cos, sin)"""

    name = "halves"
    opset = _OPSET

    def pattern(self, op: PatternBuilder, x: Any, cos: Any, sin: Any) -> Apply:
        lower, upper = _halves(op, x)
        real = op.Sub(op.Mul(lower, cos), op.Mul(upper, sin))
        return op.Concat(real, op.Add(op.Mul(upper, cos), op.Mul(lower, sin)))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _are_halves(match) or not _is_last(match.root, match.x):
            return None
        return _rotary(op, match.x, _Cache(match.cos), _Cache(match.sin), pairs=False)


class RotatePairs(Rule):
    """x * cos + stack(-odd, even) * sin -> RotaryEmbedding(x, cos, sin, interleaved=1)"""

    name = "pairs"
    opset = _OPSET

    def pattern(self, op: PatternBuilder, x: Any, cos: Any, sin: Any) -> Apply:
        even, odd = _pairs(op, x)
        return op.Add(op.Mul(x, cos), op.Mul(_stacked(op, op.Neg(odd), even), sin))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _are_pairs(match, match.stacked.outputs[0]):
            return None
        return _rotary(
            op, match.x, _unrepeated(match.cos, pairs=True), _unrepeated(match.sin, pairs=True),
            pairs=True,
        )  # fmt: skip


class RotateComplex(Rule):
    """stack(even * cos - odd * sin, odd * cos + even * sin) -> RotaryEmbedding(interleaved=1)"""

    name = "complex"
    opset = _OPSET

    def pattern(self, op: PatternBuilder, x: Any, cos: Any, sin: Any) -> Apply:
        even, odd = _pairs(op, x)
        real = op.Sub(op.Mul(even, cos), op.Mul(odd, sin))
        return _stacked(op, real, op.Add(op.Mul(odd, cos), op.Mul(even, sin)))

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if not _are_pairs(match, match.root.outputs[0]):
            return None
        return _rotary(op, match.x, _Cache(match.cos), _Cache(match.sin), pairs=True)


def _stacked(op: PatternBuilder, even: Any, odd: Any) -> Apply:
    """Two values side by side as pairs, which become the last dim."""
    columns = [op.Unsqueeze(part, _more=True, _or=("Reshape",)) for part in (even, odd)]
    return op.Reshape(op.Concat(*columns, _as="columns"), _more=True, _as="stacked")


@dataclasses.dataclass(frozen=True)
class _Cache:
    """Cosines or sines of one half of the width: a value, or the array of a constant."""

    value: ir.Value
    array: np.ndarray | None = None

    @property
    def dims(self) -> list[int | ir.SymbolicDim]:
        """The dims, with leading ones up to four."""
        shape = self.value.shape if self.array is None else self.array.shape
        if shape is None or len(shape) > 4:
            raise NoMatch("the shape of the cosines or sines is not known, or has over four dims")
        return [*[1] * (4 - len(shape)), *shape]


def _unrepeated(value: ir.Value, *, pairs: bool = False) -> _Cache:
    """The half that a value holds twice, one after the other or (`pairs`) element by element."""
    array = read(value)
    if array is not None and array.ndim:
        first, second = (
            (array[..., ::2], array[..., 1::2]) if pairs else np.split(array, 2, axis=-1)
        )
        if not np.array_equal(first, second):
            raise NoMatch("the two halves of the cosines or sines differ")
        return _Cache(value, np.ascontiguousarray(first))
    node = value.producer()
    if node is not None and node.op_type == "Reshape" and pairs:
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
        half = _repeated_column(node)
        if half is not None:
            return _Cache(half)
    elif node is not None and node.op_type == "Concat" and not pairs:
        a, *rest = node.inputs
        if a is not None and rest == [a] and _is_last(node, value):
            return _Cache(a)
    raise NoMatch("the cosines or sines are not provably the same for both halves of the width")


def _repeated_column(node: ir.Node | None) -> ir.Value | None:
    """x of Concat(Unsqueeze(x, -1), same) or Expand(Unsqueeze(x, -1), [.., 2])."""
    if node is None or node.outputs[0].shape is None or node.outputs[0].shape[-1] != 2:
        return None
    columns = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    column = columns[0].producer() if columns[0] is not None else None
    if node.op_type not in ("Concat", "Expand") or any(c is not columns[0] for c in columns):
        return None
    if column is None or column.op_type not in ("Unsqueeze", "Reshape"):
        return None
    x = column.inputs[0]
    if x is None or x.shape is None or not _adds_last(x.shape, column.outputs[0].shape, 1):
        return None
    return x if _adds_last(x.shape, node.outputs[0].shape, 2) else None


def _adds_last(shape: ir.Shape, longer: ir.Shape | None, size: int) -> bool:
    if longer is None or len(longer) != len(shape) + 1 or longer[-1] != size:
        return False
    return all(map(same_dim, shape, longer))


def _is_last(node: ir.Node, like: ir.Value) -> bool:
    """Whether the axis of a node is the last one of `like`."""
    axis, rank = node.attributes.get("axis"), _rank(like)
    return rank is not None and axis is not None and axis.as_int() in (-1, rank - 1)


def _are_halves(match: Match) -> bool:
    width = match.x.shape[-1] if match.x.shape is not None else None
    if not isinstance(width, int) or width % 2:
        return False
    if hasattr(match, "split"):
        parts = [value.shape for value in match.split.outputs]
        equal = len(parts) == 2 and all(p is not None and p[-1] == width // 2 for p in parts)
        return equal and _is_last(match.split, match.x)
    ranges = [(0, width // 2), (width // 2, width)]
    return [_cut(match.low, match.x), _cut(match.high, match.x)] == ranges


def _are_pairs(match: Match, stacked: ir.Value) -> bool:
    """Whether `match.low` and `match.high` are the even and odd elements of x, and stay so."""
    x, pairs, columns = match.x, match.pairs.outputs[0], match.columns.outputs[0]
    if x.shape is None or pairs.shape is None or columns.shape is None or stacked.shape is None:
        return False
    width = x.shape[-1]
    if not isinstance(width, int) or width % 2:
        return False
    paired = [*x.shape[:-1], width // 2, 2]
    for shape in (pairs.shape, columns.shape):
        if len(shape) != len(paired) or not all(map(same_dim, shape, paired)):
            return False
    if len(stacked.shape) != len(x.shape) or not all(map(same_dim, stacked.shape, x.shape)):
        return False
    if not _is_last(match.columns, columns):
        return False
    if hasattr(match, "split"):
        parts = [value.shape for value in match.split.outputs]
        return _is_last(match.split, pairs) and all(p is not None and p[-1] == 1 for p in parts)
    return _place(match.low, pairs) == (0, 1) and _place(match.high, pairs) == (1, 2)


def _place(node: ir.Node, pairs: ir.Value) -> tuple[int, int] | None:
    if node.op_type == "Slice":
        return _cut(node, pairs)
    place = read(node.inputs[1])
    if place is None or not _is_last(node, pairs):
        return None
    return int(place.item()), int(place.item()) + 1


def _cut(node: ir.Node, x: ir.Value) -> tuple[int, int] | None:
    """From where to where a Slice cuts the last dim of x, and nothing else."""
    inputs = [*node.inputs, None, None][:5]
    starts, ends, axes, steps = (read(value) for value in inputs[1:])
    size, rank = (x.shape[-1], len(x.shape)) if x.shape is not None else (None, 0)
    if starts is None or ends is None or axes is None or not isinstance(size, int):
        return None
    if starts.size != 1 or axes.item() not in (-1, rank - 1):
        return None
    if inputs[4] is not None and (steps is None or steps.item() != 1):
        return None
    begin, end, _ = slice(int(starts.item()), int(ends.item())).indices(size)
    return begin, end


def _rotary(op: Builder, x: ir.Value, cos: _Cache, sin: _Cache, *, pairs: bool) -> ir.Value | None:
    if x.shape is None or len(x.shape) != 4:
        raise NoMatch("the rotated value does not have four dims")
    axis = _tokens_axis(x.shape, cos.dims)
    if axis != _tokens_axis(x.shape, sin.dims) or axis is None:
        raise NoMatch("the cosines and sines do not belong to the tokens alone")
    heads, width = x.shape[2], x.shape[3]
    caches = _whole_batch(op, x, [_cache(op, cache, 3 - axis) for cache in (cos, sin)])
    interleaved = 1 if pairs else None
    if axis == 2:
        value: ir.Value = op.RotaryEmbedding(x, *caches, interleaved=interleaved)
        return value
    if not isinstance(heads, int) or not isinstance(width, int):
        raise NoMatch("the number of heads is not known")
    rows = op.Reshape(x, [0, 0, heads * width])
    turned = op.RotaryEmbedding(rows, *caches, interleaved=interleaved, num_heads=heads)
    split: ir.Value = op.Reshape(turned, [0, 0, heads, width])
    return split


def _tokens_axis(x: ir.Shape, cache: Sequence[int | ir.SymbolicDim]) -> int | None:
    """Which dim of x counts tokens, as cosines that are the same for all heads show."""
    width = x[3]
    if not isinstance(width, int) or cache[3] != width // 2:
        return None
    if cache[0] != 1 and not same_dim(cache[0], x[0]):
        return None
    if cache[1] == 1 and same_dim(cache[2], x[2]):
        return 2
    return 1 if cache[2] == 1 and same_dim(cache[1], x[1]) else None


def _cache(op: Builder, cache: _Cache, heads: int) -> ir.Value:
    """Cosines or sines as RotaryEmbedding takes them: [batch, tokens, width / 2]."""
    if cache.array is None:
        return _without_heads(op, cache.value, heads)
    four = cache.array.reshape([1] * (4 - cache.array.ndim) + list(cache.array.shape))
    return op.constant(np.squeeze(four, axis=heads), "rotary_cache")


def _whole_batch(op: Builder, x: ir.Value, caches: list[ir.Value]) -> list[ir.Value]:
    """Cosines and sines with a row for each of the batch: kernels do not broadcast them."""
    assert x.shape is not None
    batch = x.shape[0]
    narrow = [c for c in caches if c.shape is None or not same_dim(c.shape[0], batch)]
    if not narrow:
        return caches
    shape = [batch, 1, 1]
    if not isinstance(batch, int):
        shape = op.Concat(size_of(op, x, 0), [1, 1], axis=0)
    return [op.Expand(c, shape) if c in narrow else c for c in caches]


def _without_heads(op: Builder, value: ir.Value, heads: int) -> ir.Value:
    """[batch, tokens, width / 2] from up to four dims, of which `heads` is 1."""
    rank, node = _rank(value), value.producer()
    if rank == 4:
        if node is not None and node.op_type == "Unsqueeze":
            source, axes = node.inputs[0], read(node.inputs[1])
            if source is not None and axes is not None and axes.tolist() == [heads]:
                return source
        squeezed: ir.Value = op.Squeeze(value, [heads])
        return squeezed
    if heads == 2:
        raise NoMatch("the cosines and sines have too few dims")
    if rank == 3:
        return value
    unsqueezed: ir.Value = op.Unsqueeze(value, [0])
    return unsqueezed


class PartOfWidth(Rule):
    """Concat(RotaryEmbedding(x[.., :r]), x[.., r:]) -> RotaryEmbedding(x, the first r only)"""

    name = "part"
    opset = _OPSET

    def pattern(self, op: PatternBuilder, x: Any, cos: Any, sin: Any) -> Apply:
        first, rest = _halves(op, x)
        return op.Concat(op.RotaryEmbedding(first, cos, sin, _as="rotary"), rest)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        x, part = match.x, match.rotary.inputs[0].shape
        if _rank(x) != 4 or part is None or not isinstance(part[3], int):
            return None
        width = part[3]
        if not _is_last(match.root, x):
            return None
        if hasattr(match, "split"):
            if len(match.split.outputs) != 2 or not _is_last(match.split, x):
                return None
        elif [_cut(match.low, x), _cut(match.high, x)] != [(0, width), (width, x.shape[3])]:
            return None
        attributes = {n: a.value for n, a in match.rotary.attributes.items()}
        turned = attributes.get("rotary_embedding_dim", 0) or width
        value: ir.Value = op.RotaryEmbedding(
            x, match.cos, match.sin, **{**attributes, "rotary_embedding_dim": turned}
        )
        return value


@dataclasses.dataclass(frozen=True)
class FuseRotary(RulePass):
    """Fuse rotary position embedding, of the whole width or a part, into `RotaryEmbedding`.

    ```
    a = Mul (x, cos); n = Neg (x2); t = Concat (n, x1); b = Mul (t, sin); y = Add (a, b)
        →      y = RotaryEmbedding (x, cos, sin)      with opset 23
    ```
    """

    name: ClassVar[str] = "fuse-rotary"
    rules: ClassVar[tuple[Rule, ...]] = (
        DoubleLater(),
        RotateHalf(),
        RotateHalves(),
        RotatePairs(),
        RotateComplex(),
        PartOfWidth(),
    )

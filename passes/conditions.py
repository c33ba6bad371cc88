"""What rules ask of shapes and constants, and how they compute new constants from old ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.positions import same_dim
from aigcc.ir.weights import constant, derive, read
from aigcc.pipeline.pattern import NoMatch
from aigcc.pipeline.rules import Builder

Array = npt.NDArray[Any]
Dim = int | ir.SymbolicDim

LARGE = 1 << 16
"""Constants of more bytes than this are derived lazily, and never copied for the sake of a rule."""

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FLOATS = HALVES | {ir.DataType.FLOAT, ir.DataType.DOUBLE}


def rank(value: ir.Value) -> int | None:
    """The number of dims, where it is known."""
    return None if value.shape is None else len(value.shape)


def size(value: ir.Value, axis: int) -> int | None:
    """The size of one dim, where it is known and static."""
    if value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def same_dims(a: Iterable[Dim], b: Iterable[Dim]) -> bool:
    """Whether dims are provably equal: static ones, or symbols of one name."""
    a, b = list(a), list(b)
    return len(a) == len(b) and all(map(same_dim, a, b))


def product(dims: Iterable[Dim]) -> int | None:
    """The number of elements in dims that are all static."""
    static = list(dims)
    if not all(isinstance(dim, int) for dim in static):
        return None
    return math.prod(dim for dim in static if isinstance(dim, int))


def groups_of(x: ir.Value, grouped: ir.Value) -> int:
    """How many groups `grouped`, a Reshape of `x`, makes of its channels.

    Raises:
        NoMatch: it is not known, or they run across the batch.
    """
    groups = size(grouped, 1)
    if x.shape is None or grouped.shape is None or groups is None or len(x.shape) < 3:
        raise NoMatch("the shapes around InstanceNormalization are not known")
    if not same_dims(x.shape[:1], grouped.shape[:1]):
        raise NoMatch(f"the groups run across the batch: {x.shape} becomes {grouped.shape}")
    return groups


def trailing_axes(axes: Sequence[int], dims: int) -> int | None:
    """The first of `axes`, counted from 0, where they are the last of `dims` dims and no others."""
    normal = sorted(axis % dims for axis in axes)
    start = dims - len(normal)
    return start if normal == list(range(start, dims)) and normal else None


def is_all(value: ir.Value, number: float) -> bool:
    """Whether a value is a constant with all elements equal to `number`."""
    array = read(value)
    return array is not None and bool((array == number).all())


def spreads_along(value: ir.Value, axis: int, dims: int, length: int) -> bool:
    """Whether a value broadcasts to `dims` dims with one number for each place along `axis`.

    That is, its size is 1 or `length` along `axis`, and 1 along all others.
    """
    if value.shape is None or len(value.shape) > dims:
        return False
    shape = [1] * (dims - len(value.shape)) + list(value.shape)
    return all(dim == 1 or (place == axis and dim == length) for place, dim in enumerate(shape))


def vector(array: Array, length: int) -> Array:
    """A constant that `spreads_along` an axis, as a vector of `length`, in double precision."""
    return np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (length,))


def number(value: float, like: ir.Value) -> np.ndarray:
    """A scalar of the element type of `like`."""
    if like.dtype is None:
        raise NoMatch("the type of its input is not known: run infer-shapes first")
    return np.array(value, like.dtype.numpy())


def tensor_of(value: ir.Value, what: str) -> ir.TensorProtocol:
    """The tensor of a floating-point constant.

    Raises:
        NoMatch: it is not one.
    """
    tensor = constant(value)
    if tensor is None:
        raise NoMatch(f"{what} is not a constant")
    if tensor.dtype not in FLOATS:
        raise NoMatch(f"{what} is {tensor.dtype.name}")
    return tensor


def unshared(value: ir.Value, what: str) -> ir.TensorProtocol:
    """The tensor of a floating-point constant that may be replaced without being kept as well.

    Raises:
        NoMatch: it is not a constant, or it is large and others use it too.
    """
    tensor = tensor_of(value, what)
    users = len(value.uses())
    if users > 1 and tensor.nbytes > LARGE:
        raise NoMatch(f"{what} has {users} users and would be stored twice")
    return tensor


def computed(
    op: Builder,
    fn: Callable[..., Array],
    *sources: ir.TensorProtocol,
    like: ir.TensorProtocol,
    shape: Sequence[int],
    name: str,
) -> ir.Value:
    """A new constant of the dtype of `like`: `fn` of the arrays of `sources`.

    Half precision is given to `fn` as float32, and rounded once. Large results are computed when
    they are read, and again each time.
    """
    dtype: Any = like.dtype.numpy()

    def compute(*arrays: Array) -> Array:
        result = fn(*(a.astype(np.float32) if a.dtype.itemsize == 2 else a for a in arrays))
        return np.ascontiguousarray(result, dtype).reshape(shape)

    if math.prod(shape) * like.dtype.itemsize <= LARGE:
        tensor = ir.Tensor(compute(*(source.numpy() for source in sources)), dtype=like.dtype)
        return op.constant(tensor, name)
    lazy = derive(compute, *sources, dtype=like.dtype, shape=shape, name=name)
    return op.constant(lazy, name)


def keeping(node: ir.Node, *without: str) -> dict[str, Any]:
    """The attributes of a node, to be passed on to another one."""
    return {name: value for name, value in node.attributes.items() if name not in without}

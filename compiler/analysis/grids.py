"""The numbers that a quantised tensor can hold: choose scales, round to them, and come back."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Clip = Literal["max", "mse"]
Piece = tuple[slice, ...]
T = TypeVar("T")

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
EMPTY_SCALE = 2.0**-40
"""Of a slice of zeros: small enough for a bias in units of it to keep its precision."""

_LIMITS: dict[ir.DataType, tuple[float, float]] = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.FLOAT8E4M3FN: (-448, 448),
}
_FACTORS = np.linspace(1.0, 0.55, 16, dtype=np.float32)
_CHUNK = 1 << 16  # elements that are worked on at a time: they stay in the cache


def limits(dtype: ir.DataType) -> tuple[float, float]:
    """The lowest and the highest number of a quantised dtype."""
    return _LIMITS[dtype]


def stored(numbers: Array, dtype: ir.DataType) -> Array:
    """Numbers of a grid, from float, in its dtype."""
    if dtype.bitwidth < 8:
        return numbers.astype(np.int8).astype(dtype.numpy())
    return numbers.astype(dtype.numpy())


@dataclasses.dataclass(frozen=True)
class Grid:
    """A symmetric grid for weights: `w` becomes `scale * q`, with `q` of a narrow dtype.

    Arrays of any float dtype are read once, in pieces that threads share.

    Attributes:
        dtype: int4, int8, int16 or float8e4m3fn.
        axis: With `block`: the axis that blocks lie along. Without: one scale for each index of
            it. None: one scale for the whole tensor.
        block: How many neighbours along `axis` share a scale; the last block may be shorter.
        bits: How many of the dtype's bits are made use of, if not all of them: with 7 of int8
            numbers are from -64 to 64.
    """

    dtype: ir.DataType
    axis: int | None = None
    block: int | None = None
    bits: int | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest number."""
        if self.bits is None:
            return _LIMITS[self.dtype]
        reach = float(1 << (self.bits - 1))
        return -reach, reach

    def nearest(self, array: Array, out: Array | None = None) -> Array:
        """The nearest numbers, as float32: ties to even, what is outside is clipped.

        Args:
            array: In steps of the grid.
            out: Where to write them; may be `array`.
        """
        made: Array = np.clip(array, *self.limits, out=out, dtype=np.float32)
        if self.dtype == ir.DataType.FLOAT8E4M3FN:
            return np.asarray(made.astype(ml_dtypes.float8_e4m3fn), np.float32)
        np.rint(made, out=made)
        return made

    def scale(self, array: Array, clip: Clip = "max") -> Array:
        """Scales for an array, float32, of the shape that DequantizeLinear wants.

        They are not finite where the array is not. Slices of zeros get `EMPTY_SCALE`.

        Args:
            array: The weight, float.
            clip: "max" leaves nothing outside of the grid; "mse" takes for each slice the range,
                from 0.55 to 1 of that, with the least squared error (Banner et al., 2019).
        """
        if _is_turned(array):
            return np.ascontiguousarray(self._turned.scale(array.T, clip).T)
        reach = np.zeros(self.scale_shape(array.shape), np.float32)
        for part, place in self._pairs(array, reach):
            _gather(np.maximum, _reach, part, place, place)
        highest = np.float32(self.limits[1])
        scale = reach / highest
        with np.errstate(over="ignore"):  # a rounded-up scale may lead beyond the largest float
            is_over = np.isinf(scale * highest) & np.isfinite(reach)
        scale = np.where(is_over, np.nextafter(scale, np.float32(0)), scale)
        scale = np.where(reach == 0, np.float32(EMPTY_SCALE), np.maximum(scale, SMALLEST_SCALE))
        if clip == "mse":
            scale = self._least_error(array, scale)
        return np.asarray(scale, np.float32)

    def round(self, array: Array, scale: Array) -> Array:
        """The nearest numbers of the grid, in `dtype`; ties to even, what is outside is clipped."""
        if _is_turned(array):
            return np.ascontiguousarray(self._turned.round(array.T, scale.T).T)
        made = np.empty(array.shape, self.dtype.numpy())

        def one(part: Array, place: Array, out: Array, room: Array) -> None:
            numbers = np.divide(_float(part), place, out=room)
            numbers = self.nearest(numbers, out=numbers)
            if self.dtype.bitwidth < 8:
                numbers = stored(numbers, self.dtype)
            np.copyto(out, numbers, casting="unsafe")

        for (part, place), (out, _) in zip(
            self._pairs(array, scale), self._pairs(made, scale), strict=True
        ):
            _each(one, part, place, out)
        return made

    def back(self, rounded: Array, scale: Array) -> Array:
        """What `rounded` stands for, float32: what DequantizeLinear gives."""
        made = np.empty(rounded.shape, np.float32)

        def one(part: Array, place: Array, out: Array, room: Array) -> None:
            np.copyto(room, part, casting="unsafe")
            np.multiply(room, place, out=out)

        for (part, place), (out, _) in zip(
            self._pairs(rounded, scale), self._pairs(made, scale), strict=True
        ):
            _each(one, part, place, out)
        return made

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales for a weight's shape."""
        if self.axis is None:
            return ()
        axis = self.axis % len(shape)
        if self.block is None:
            return (shape[axis],)
        return (*shape[:axis], -(-shape[axis] // self.block), *shape[axis + 1 :])

    @property
    def _turned(self) -> Grid:
        """The same grid for a matrix that is turned."""
        return dataclasses.replace(self, axis=None if self.axis is None else 1 - self.axis % 2)

    def _pairs(self, array: Array, scale: Array) -> list[tuple[Array, Array]]:
        """The array as views of rank 4, and for each its scales, which broadcast against it."""
        if self.axis is None:
            return [(array.reshape(1, 1, -1, 1), scale.reshape(1, 1, 1, 1))]
        axis = self.axis % array.ndim
        outer, inner = math.prod(array.shape[:axis]), math.prod(array.shape[axis + 1 :])
        length = array.shape[axis]
        cube = array.reshape(outer, length, inner)
        if self.block is None:
            return [(cube.reshape(outer, length, 1, inner), scale.reshape(1, length, 1, 1))]
        whole, rest = divmod(length, self.block)
        blocks = scale.reshape(outer, whole + bool(rest), 1, inner)
        main = cube[:, : whole * self.block].reshape(outer, whole, self.block, inner)
        pairs = [(main, blocks[:, :whole])]
        if rest:
            pairs.append((cube[:, None, whole * self.block :], blocks[:, whole:]))
        return pairs

    def _least_error(self, array: Array, scale: Array) -> Array:
        error = np.zeros((len(_FACTORS), *scale.shape), np.float64)

        def errors(part: Array, place: Array, axes: tuple[int, ...]) -> Array:
            unit = _float(part) / place  # in steps: squares of weights might overflow
            found = []
            for factor in _FACTORS:
                left = self.nearest(unit / factor)
                left *= factor
                left -= unit
                found.append(np.square(left, out=left).sum(axes, np.float64, keepdims=True))
            return np.stack(found)

        tries = zip(*(self._pairs(array, each) for each in error), strict=True)
        for (part, place), trial in zip(self._pairs(array, scale), tries, strict=True):
            sums = np.zeros((len(_FACTORS), *trial[0][1].shape))
            _gather(np.add, errors, part, place, sums)
            for (_, into), found in zip(trial, sums, strict=True):
                into[...] = found
        best = _FACTORS[np.argmin(error, axis=0)]
        return np.asarray(np.maximum(scale * best, SMALLEST_SCALE), np.float32)


def _is_turned(array: Array) -> bool:
    """Whether a matrix is a view of one that lies the other way: pieces of that are contiguous."""
    return array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous


def _reach(part: Array, place: Array, axes: tuple[int, ...]) -> Array:
    part = _float(part)
    low, high = part.min(axes, keepdims=True), part.max(axes, keepdims=True)
    return np.asarray(np.maximum(high, -low))


def _float(array: Array) -> Array:
    return array.astype(np.float32, copy=False)


def _chunks(shape: tuple[int, ...]) -> Iterator[Piece]:
    """Pieces of an array of rank 4 along its first axes, as few as cover it."""
    if 0 in shape:
        return
    steps = []
    for axis, size in enumerate(shape):
        behind = math.prod(shape[axis + 1 :])
        is_cut = math.prod(shape[axis:]) > _CHUNK
        steps.append(max(1, min(size, _CHUNK // behind)) if is_cut else size)
    starts = [range(0, size, step) for size, step in zip(shape, steps, strict=True)]
    for a in starts[0]:
        for b in starts[1]:
            for c in starts[2]:
                for d in starts[3]:
                    yield tuple(slice(n, n + s) for n, s in zip((a, b, c, d), steps, strict=True))


def _within(chunk: Piece, shape: tuple[int, ...]) -> Piece:
    """The same piece of what broadcasts."""
    return tuple(
        slice(None) if size == 1 else cut for cut, size in zip(chunk, shape[-4:], strict=True)
    )


def _map(work: Callable[[Sequence[Piece]], list[T]], shape: tuple[int, ...]) -> list[T]:
    """What `work` makes of all pieces, in their order; each thread takes its share of them."""
    chunks = list(_chunks(shape))
    threads = min(os.cpu_count() or 1, len(chunks))
    if threads < 2:
        return work(chunks)
    with ThreadPoolExecutor(threads) as pool:
        made = list(pool.map(work, [chunks[start::threads] for start in range(threads)]))
    return [made[index % threads][index // threads] for index in range(len(chunks))]


def _each(
    work: Callable[[Array, Array, Array, Array], None], part: Array, place: Array, out: Array
) -> None:
    """Work on each piece of an array, with its scales, where it goes, and room to compute in.

    Whoever asks for that much memory for each piece waits for the kernel more than it computes.
    """

    def share(chunks: Sequence[Piece]) -> list[None]:
        room = np.empty(_CHUNK, np.float32)
        for chunk in chunks:
            piece = part[chunk]
            here = room[: piece.size].reshape(piece.shape)
            work(piece, place[_within(chunk, place.shape)], out[chunk], here)
        return [None] * len(chunks)

    _map(share, part.shape)


def _gather(
    join: np.ufunc,
    work: Callable[[Array, Array, tuple[int, ...]], Array],
    part: Array,
    place: Array,
    into: Array,
) -> None:
    """Reduce an array to the shape of its scales, piece by piece."""
    axes = tuple(axis for axis, size in enumerate(place.shape) if size == 1)

    def share(chunks: Sequence[Piece]) -> list[tuple[Piece, Array]]:
        cuts = [_within(chunk, place.shape) for chunk in chunks]
        return [
            (cut, work(part[chunk], place[cut], axes))
            for chunk, cut in zip(chunks, cuts, strict=True)
        ]

    for cut, found in _map(share, part.shape):
        here = into[(slice(None),) * (into.ndim - len(cut)) + cut]
        join(here, found, out=here)


@dataclasses.dataclass(frozen=True)
class Affine:
    """A grid for activations: `x` becomes `scale * (q - zero)`, one scale for the tensor."""

    dtype: ir.DataType
    scale: float
    zero: int

    @classmethod
    def over(cls, low: float, high: float, dtype: ir.DataType, symmetric: bool) -> Affine:
        """The grid for a range; it always has an exact 0."""
        lowest, highest = _LIMITS[dtype]
        low, high = min(low, 0.0), max(high, 0.0)
        if symmetric:
            middle = 0 if lowest < 0 else int(highest + 1) // 2
            reach = highest - middle
            return cls(dtype, _legal(max(-low, high) / reach), middle)
        scale = _legal((high - low) / (highest - lowest))
        return cls(dtype, scale, int(np.clip(round(lowest - low / scale), lowest, highest)))


def _legal(scale: float) -> float:
    """A scale that divides: 1 where there are only zeros, else no number below the normal ones."""
    return float(np.float32(max(scale, SMALLEST_SCALE))) if scale > 0 else 1.0

"""Weights as quantised terms: their scales, and numbers that are rounded when they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.grids import SMALLEST_SCALE, Clip, Grid
from aigcc.errors import CompileError
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import constant, derive
from aigcc.passes.quant.placement import Scheme, Weight

Array = npt.NDArray[Any]
Key = tuple[ir.Value, str, int, bytes | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """One term of a weight; equal to itself alone.

    Attributes:
        numbers: In the grid's dtype.
        scale: Float32, in the shape that DequantizeLinear wants, and no finer than the weight's
            own dtype can say.
        grid: What it is of.
    """

    numbers: ir.TensorProtocol
    scale: Array
    grid: Grid


def key_of(weight: Weight, scheme: Scheme, without: Array | None) -> Key:
    """Equal for weights that become the same terms, `without` some input channels."""
    left_out = None if without is None else without.tobytes()
    return weight.value, scheme.name, weight.out_axis, left_out


def grid_of(weight: Weight, scheme: Scheme) -> Grid:
    """The grid that a scheme wants for a weight.

    Where blocks would be shorter than half of what the scheme wants there is a scale for each
    output channel instead: a convolution of few channels would have as many scales as numbers.
    """
    shape = weight.tensor.shape.numpy()
    block = None if scheme.block is None else _block(shape[weight.in_axis], len(shape), scheme)
    axis = weight.out_axis if block is None else weight.in_axis
    return Grid(scheme.grid_dtype, axis, block, scheme.weight_bits)


def _block(length: int, rank: int, scheme: Scheme) -> int | None:
    assert scheme.block is not None
    if length < scheme.block:
        is_long = rank == 2 or 2 * length >= scheme.block
        return (length if scheme.even else scheme.block) if is_long else None
    if not scheme.even:
        return scheme.block
    fitting = range(scheme.block, scheme.block // 2 - 1, -1)
    return next((block for block in fitting if length % block == 0), None)


def make_terms(
    weight: Weight,
    scheme: Scheme,
    clip: Clip,
    floor: Array | None = None,
    without: Array | None = None,
) -> list[Term]:
    """The terms of a weight, each rounded to the nearest numbers when it is read.

    Args:
        weight: The weight; it is read once for each term.
        scheme: Dtype, blocks, and how many terms.
        clip: How scales are chosen.
        floor: What the scales of the first term are at least.
        without: Input channels whose weights count as 0.

    Raises:
        CompileError: the weight holds NaN or infinity.
    """
    grid, source, made = grid_of(weight, scheme), source_of(weight, without), []
    for term in range(scheme.weight_terms):
        scale = choose_scale(grid, source, weight, clip, floor if term == 0 else None)
        made.append(Term(_rounded(source, grid, scale, weight), scale, grid))
        if term + 1 < scheme.weight_terms:
            source = _remainder(source, grid, scale)
    return made


@dataclasses.dataclass(frozen=True)
class Source:
    """Numbers that are to be rounded: a weight on disk, and what is made of it when it is read."""

    tensor: ir.TensorProtocol
    view: Callable[[Array], Array]

    def read(self) -> Array:
        """The array as the node reads it; a turned one is a view."""
        return self.view(self.tensor.numpy())


def source_of(weight: Weight, without: Array | None) -> Source:
    """The weight's numbers as the node reads them, with 0 for some input channels."""

    def view(array: Array) -> Array:
        return array.T if weight.turned else array

    def blank(array: Array) -> Array:
        array = view(array).copy()
        np.moveaxis(array, weight.in_axis, 0)[without] = 0
        return array

    tensor = constant(weight.value)
    assert tensor is not None
    return Source(tensor, view if without is None else blank)


def choose_scale(
    grid: Grid, source: Source, weight: Weight, clip: Clip, floor: Array | None = None
) -> Array:
    """The scales of a weight.

    Raises:
        CompileError: the weight holds NaN or infinity.
    """
    scale = grid.scale(source.read(), clip)
    release(source.tensor)
    if not np.isfinite(scale).all():
        raise CompileError(
            "the weight holds numbers that are not finite, and cannot be quantised",
            at=f"weight {weight.value.name!r}",
            hint="was the model trained to its end, or converted to a type that overflowed?",
        )
    if floor is not None:
        scale = np.maximum(scale, floor)
    return storable(scale, source.tensor.dtype)


def storable(scale: Array, dtype: ir.DataType) -> Array:
    """Scales as a float dtype holds them, float32, none of them 0."""
    narrow = dtype.numpy()
    lowest = SMALLEST_SCALE
    if dtype == ir.DataType.FLOAT16:
        lowest = float(np.finfo(np.float16).smallest_normal)
    return np.maximum(scale, lowest).astype(narrow).astype(np.float32)


def is_above(scale: Array, floor: Array | None) -> bool:
    """Whether scales are all that a bias needs; a little is lost where they were stored."""
    return floor is None or bool((scale >= floor * np.float32(0.99)).all())


def release(tensor: ir.TensorProtocol) -> None:
    """Drop the pages of a weight that was read."""
    if isinstance(tensor, MappedTensor):
        tensor.release()


def _rounded(source: Source, grid: Grid, scale: Array, weight: Weight) -> ir.TensorProtocol:
    return derive(
        lambda array: grid.round(source.view(array), scale),
        source.tensor,
        dtype=grid.dtype,
        shape=tuple(weight.tensor.shape.numpy()),
        name=f"{source.tensor.name}_{grid.dtype.name.lower()}",
    )


def _remainder(source: Source, grid: Grid, scale: Array) -> Source:
    """What a weight's first term leaves over."""

    def left(array: Array) -> Array:
        array = np.asarray(source.view(array), np.float32)
        return np.asarray(array - grid.back(grid.round(array, scale), scale), np.float32)

    return Source(source.tensor, left)

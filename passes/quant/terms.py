"""Weights as quantised terms: their scales, and numbers that are rounded when they are needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.analysis.grids import SMALLEST_SCALE, Clip, Grid
from aigcc.errors import CompileError
from aigcc.ir.storage.mapped import MappedTensor
from aigcc.ir.weights import derive
from aigcc.passes.quant.placement import Scheme, Weight

Array = npt.NDArray[Any]
Key = tuple[ir.Value, str, int]


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of a weight.

    Attributes:
        numbers: In the grid's dtype.
        scale: Float32, in the shape that DequantizeLinear wants, and no finer than the weight's
            own dtype can say.
        grid: What it is of.
    """

    numbers: ir.TensorProtocol
    scale: Array
    grid: Grid


def key_of(weight: Weight, scheme: Scheme) -> Key:
    """Equal for weights that become the same terms."""
    return weight.value, scheme.name, weight.out_axis


def grid_of(weight: Weight, scheme: Scheme) -> Grid:
    """The grid that a scheme wants for a weight."""
    if scheme.block is None:
        return Grid(scheme.weight, weight.out_axis)
    return Grid(scheme.weight, weight.in_axis, scheme.block)


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
        made.append(Term(_rounded(source, grid, scale), scale, grid))
        if term + 1 < scheme.weight_terms:
            source = _remainder(source, grid, scale)
    return made


def source_of(weight: Weight, without: Array | None) -> ir.TensorProtocol:
    """The weight's numbers as the node reads them, with 0 for some input channels."""
    tensor = weight.tensor
    if without is None:
        return tensor

    def blank(array: Array) -> Array:
        array = array.copy()
        np.moveaxis(array, weight.in_axis, 0)[without] = 0
        return array

    shape = tuple(tensor.shape.numpy())
    return derive(blank, tensor, dtype=tensor.dtype, shape=shape, name=tensor.name or "")


def choose_scale(
    grid: Grid, source: ir.TensorProtocol, weight: Weight, clip: Clip, floor: Array | None = None
) -> Array:
    """The scales of a weight.

    Raises:
        CompileError: the weight holds NaN or infinity.
    """
    scale = grid.scale(source.numpy(), clip)
    release(source)
    if not np.isfinite(scale).all():
        raise CompileError(
            "the weight holds numbers that are not finite, and cannot be quantised",
            at=f"weight {weight.value.name!r}",
            hint="was the model trained to its end, or converted to a type that overflowed?",
        )
    if floor is not None:
        scale = np.maximum(scale, floor)
    return storable(scale, weight.tensor.dtype)


def storable(scale: Array, dtype: ir.DataType) -> Array:
    """Scales as a float dtype holds them, float32, none of them 0."""
    narrow = dtype.numpy()
    lowest = SMALLEST_SCALE
    if dtype == ir.DataType.FLOAT16:
        lowest = float(np.finfo(np.float16).smallest_normal)
    return np.maximum(scale, lowest).astype(narrow).astype(np.float32)


def release(tensor: ir.TensorProtocol) -> None:
    """Drop the pages of a weight that was read."""
    if isinstance(tensor, MappedTensor):
        tensor.release()


def _rounded(source: ir.TensorProtocol, grid: Grid, scale: Array) -> ir.TensorProtocol:
    return derive(
        lambda array: grid.round(array, scale),
        source,
        dtype=grid.dtype,
        shape=tuple(source.shape.numpy()),
        name=f"{source.name}_{grid.dtype.name.lower()}",
    )


def _remainder(source: ir.TensorProtocol, grid: Grid, scale: Array) -> ir.TensorProtocol:
    """What a weight's first term leaves over."""

    def left(array: Array) -> Array:
        array = np.asarray(array, np.float32)
        return np.asarray(array - grid.back(grid.round(array, scale), scale), np.float32)

    shape = tuple(source.shape.numpy())
    return derive(left, source, dtype=ir.DataType.FLOAT, shape=shape, name=source.name or "")

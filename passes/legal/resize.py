"""Resize along one axis after the other, by gathering and weighing what lies around each place."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from aigcc.ir.weights import read
from aigcc.passes.conditions import number
from aigcc.pipeline.pattern import Apply, Match, NoMatch, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

Array = npt.NDArray[Any]

_MOST_TAPS = 64
_F = np.float32  # what runtimes compute places in: neighbours are chosen by its roundings


@dataclasses.dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        axis: Its number.
        size: Numbers along it before.
        out: Numbers along it after.
        scale: What places are scaled by, near out / size.
        start: Where the region of interest begins, and where it ends, as parts of the axis.
    """

    axis: int
    size: int
    out: int
    scale: float
    start: float = 0.0
    end: float = 1.0


class SpelledResize(Rule):
    """Resize(x) -> the sum of Gather(x, neighbour) * weight over the neighbours, axis by axis

    Sizes, scales and the region of interest must be constant, and the resized axes static.
    """

    name = "resize"

    def pattern(
        self, op: PatternBuilder, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None
    ) -> Apply:
        return op.Resize(x, roi, scales, sizes)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        y: ir.Value = match.x
        outside = []
        if y.dtype is None or not y.dtype.is_floating_point():
            raise NoMatch("its numbers are no floats")
        if op.opset == 10 and match.root.attributes.get_string("mode", "nearest") == "nearest":
            raise NoMatch("opset 10 does not say which neighbour is nearest")
        usual = "asymmetric" if op.opset == 10 else "half_pixel"
        for axis in axes_of(match, op.opset):
            places, weights, is_outside = neighbours(axis, match.root, usual)
            y = _weighed(op, y, axis.axis, places, weights)
            if is_outside.any():
                shape = [1] * len(match.x.shape)
                shape[axis.axis] = axis.out
                outside.append(is_outside.reshape(shape))
        if y is match.x:
            same: ir.Value = op.Identity(y)
            return same
        filling = number(match.root.attributes.get_float("extrapolation_value", 0.0), match.x)
        for mask in outside:
            y = op.Where(mask, filling, y)
        return y


def axes_of(match: Match, opset: int) -> list[Axis]:
    """The axes whose numbers change.

    Raises:
        NoMatch: something that must be known is not.
    """
    node, x = match.root, match.x
    if x.shape is None:
        raise NoMatch("the rank of its input is not known")
    rank = len(x.shape)
    axes = [axis % rank for axis in node.attributes.get_ints("axes", range(rank))]
    places = (match.scales, match.sizes) if opset > 10 else (match.roi, None)
    given = [None if value is None else read(value) for value in places]
    scales, sizes = (array if array is not None and array.size else None for array in given)
    if scales is None and sizes is None:
        raise NoMatch("its sizes or scales are not constant")
    dims = [x.shape[axis] for axis in axes]
    if not all(isinstance(dim, int) and dim > 0 for dim in dims):
        raise NoMatch("the axes that it resizes are not of known size")
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    is_cropped = mode == "tf_crop_and_resize" and match.roi is not None
    roi = read(match.roi) if is_cropped else None
    factors, lengths = _factors(scales, sizes, dims, policy)
    made = []
    for index, (axis, dim) in enumerate(zip(axes, dims, strict=True)):
        part = (0.0, 1.0) if roi is None else (float(roi[index]), float(roi[index + len(axes)]))
        made.append(Axis(axis, dim, lengths[index], factors[index], *part))
    changed = [axis for axis in made if axis.out != axis.size]
    # like runtimes: what keeps its size is left alone, or has a scale of 1
    if not changed or node.attributes.get_int("antialias", 0) == 1:
        return changed
    return [axis for axis in made if axis.scale != 1]


def _factors(
    scales: Array | None, sizes: Array | None, dims: list[int], policy: str
) -> tuple[list[float], list[int]]:
    """The scale and the size of each axis, from the one or the other."""
    if sizes is None:
        assert scales is not None
        factors = [float(_F(scale)) for scale in scales]
        pairs = zip(factors, dims, strict=True)
        return factors, [math.floor(_F(scale) * _F(dim)) for scale, dim in pairs]
    factors = [float(_F(size / dim)) for size, dim in zip(sizes, dims, strict=True)]
    if policy == "stretch":
        return factors, [int(size) for size in sizes]
    factors = [(min if policy == "not_larger" else max)(factors)] * len(dims)
    return factors, [math.floor(factors[0] * dim + 0.5) for dim in dims]


def neighbours(axis: Axis, node: ir.Node, usual: str = "half_pixel") -> tuple[Array, Array, Array]:
    """For each place: the indices that it is made of, their weights, and whether it is outside.

    Indices and weights are arrays of (neighbours, places).
    """
    attributes = node.attributes
    mode = attributes.get_string("coordinate_transformation_mode", usual)
    kind = attributes.get_string("mode", "nearest")
    at = _coordinates(axis, mode)
    outside = np.zeros(axis.out, bool)
    if mode == "tf_crop_and_resize":
        outside = (at < 0) | (at > axis.size - 1)
    if kind == "nearest":
        rounded = _rounded(at, attributes.get_string("nearest_mode", "round_prefer_floor"))
        places = np.clip(rounded, 0, axis.size - 1).astype(np.int64)[None]
        return places, np.ones_like(places, np.float64), outside
    narrow = min(axis.scale, 1.0) if attributes.get_int("antialias", 0) else 1.0
    reach = math.ceil((1 if kind == "linear" else 2) / narrow)
    if 2 * reach > _MOST_TAPS:
        raise NoMatch(f"each place is made of more than {_MOST_TAPS} others")
    first = np.floor(at).astype(np.int64)
    places = first + np.arange(1 - reach, reach + 1)[:, None]
    distance = np.abs(places - at.astype(np.float64)) * narrow
    weights = (
        np.clip(1 - distance, 0, 1)
        if kind == "linear"
        else _cubic(distance, attributes.get_float("cubic_coeff_a", -0.75))
    )
    if attributes.get_int("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= axis.size), 0, weights)
    total = weights.sum(0)
    weights = weights / np.where(total == 0, 1, total)
    return np.clip(places, 0, axis.size - 1), weights, outside


def _coordinates(axis: Axis, mode: str) -> Array:
    """Where each place lies among the numbers before, in float32."""
    place, scale, last = np.arange(axis.out, dtype=_F), _F(axis.scale), _F(axis.size - 1)
    half = (place + _F(0.5)) / scale - _F(0.5)
    match mode:
        case "align_corners":
            return place * (last / _F(axis.out - 1)) if axis.out > 1 else _F(0) * place
        case "asymmetric":
            return place / scale
        case "pytorch_half_pixel":
            return half if axis.out > 1 else _F(0) * place
        case "tf_half_pixel_for_nn":
            return (place + _F(0.5)) / scale
        case "half_pixel_symmetric":
            adjusted = _F(axis.out) / (scale * _F(axis.size))
            return _F(axis.size / 2) * (_F(1) - adjusted) + (place + _F(0.5)) / scale - _F(0.5)
        case "tf_crop_and_resize":
            width = _F(axis.end) - _F(axis.start)
            if axis.out == 1:
                return _F(0.5) * (_F(axis.start) + _F(axis.end)) * last + _F(0) * place
            return _F(axis.start) * last + place * (width * last) / _F(axis.out - 1)
    return half


def _rounded(at: Array, mode: str) -> Array:
    match mode:
        case "floor":
            return np.floor(at)
        case "ceil":
            return np.ceil(at)
        case "round_prefer_ceil":
            return np.floor(at + _F(0.5))
    return np.ceil(at - _F(0.5))


def _cubic(distance: Array, a: float) -> Array:
    """The convolution kernel of Keys (1981), which is 0 from a distance of 2 on."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _weighed(op: Builder, x: ir.Value, axis: int, places: Array, weights: Array) -> ir.Value:
    """The sum of gathered neighbours, without those of no weight."""
    column = [1] * len(x.shape or ())
    column[axis] = places.shape[1]
    total: ir.Value | None = None
    used = weights.any(1) if weights.any() else np.arange(len(weights)) == 0
    for index, weight in zip(places[used], weights[used], strict=True):
        part = op.Gather(x, index, axis=axis)
        if not (weight == 1).all():
            part = op.Mul(part, weight.reshape(column).astype(number(0.0, x).dtype))
        total = part if total is None else op.Add(total, part)
    assert total is not None
    return total

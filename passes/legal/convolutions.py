"""Convolutions from smaller ones that do less."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import read
from aigcc.passes.conditions import Array, computed, rank, same_dims, size, unshared
from aigcc.pipeline.pattern import Apply, Match, PatternBuilder
from aigcc.pipeline.rules import Builder, Rule

# Ways of choosing the nearest pixel that repeat each one twice: coordinates, and rounding.
_REPEATING = frozenset(
    {
        ("asymmetric", "floor"),
        ("asymmetric", "round_prefer_floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
        ("pytorch_half_pixel", "round_prefer_floor"),
        ("pytorch_half_pixel", "round_prefer_ceil"),
    }
)


@dataclasses.dataclass
class UpsampledConv(Rule):
    """Conv3x3(Resize2x(x)) -> DepthToSpace(Concat(four Conv2x2(x)))

    A pixel that nearest neighbours enlarge meets two or four of the nine weights of a 3x3 window,
    so that they can be added up beforehand: 4/9 of the products remain, and 16/9 of the weights.

    Attributes:
        channels: From so many input channels on the products saved outweigh the interleaving.
    """

    channels: int = 0

    name = "upsample-conv"

    def pattern(self, op: PatternBuilder, x: Any, w: Any, b: Any = None) -> Apply:
        return op.Conv(op.Resize(x, _more=True, _as="resize"), w, b)

    def rewrite(self, op: Builder, match: Match) -> ir.Value | None:
        if match.x.dtype != ir.DataType.FLOAT or not _is_plain_3x3(match.root):
            return None
        if not _doubles(match.resize):
            return None
        if (size(match.w, 1) or 0) < self.channels:
            return None
        weight = unshared(match.w, "the weight")
        bias = [] if match.b is None else [match.b]
        phases = []
        for below, right in itertools.product((0, 1), repeat=2):
            folded = computed(
                op,
                lambda w, below=below, right=right: _added_up(_added_up(w, 2, below), 3, right),
                weight,
                like=weight,
                shape=(*weight.shape.numpy()[:2], 2, 2),
                name="weight",
            )
            pads = [1 - below, 1 - right, below, right]
            phases.append(op.Conv(match.x, folded, *bias, pads=pads))
        value: ir.Value = op.DepthToSpace(op.Concat(*phases, axis=1), blocksize=2)
        return value


def _is_plain_3x3(conv: ir.Node) -> bool:
    weight, attributes = conv.inputs[1], conv.attributes
    if weight is None or rank(weight) != 4 or (size(weight, 2), size(weight, 3)) != (3, 3):
        return False
    padding = attributes.get_string("auto_pad", "NOTSET")
    padded = attributes.get_ints("pads", ()) == (1, 1, 1, 1) or padding.startswith("SAME")
    steps = (*attributes.get_ints("strides", ()), *attributes.get_ints("dilations", ()))
    return padded and set(steps) <= {1} and attributes.get_int("group", 1) == 1


def _doubles(resize: ir.Node) -> bool:
    """Whether a Resize repeats every row and every column of an image, and nothing else."""
    attributes = resize.attributes
    how = (
        attributes.get_string("coordinate_transformation_mode", "half_pixel"),
        attributes.get_string("nearest_mode", "round_prefer_floor"),
    )
    if attributes.get_string("mode", "nearest") != "nearest" or how not in _REPEATING:
        return False
    x, y, scales = resize.inputs[0], resize.outputs[0], (*resize.inputs, None, None)[2]
    if "axes" in attributes or x is None or x.shape is None:
        return False
    factors = read(scales)
    if factors is not None and factors.size:
        return bool(factors.tolist() == [1, 1, 2, 2])
    if y.shape is None or not same_dims(x.shape[:2], y.shape[:2]):
        return False
    sizes = [(size(x, axis), size(y, axis)) for axis in (2, 3)]
    return all(old is not None and new == 2 * old for old, new in sizes)


def _added_up(weight: Array, axis: int, phase: int) -> Array:
    """Two weights from three along an axis; `phase` 0 is for the first of two equal pixels."""
    first, middle, last = np.split(weight, 3, axis)
    parts = (first + middle, last) if phase else (first, middle + last)
    return np.concatenate(parts, axis)

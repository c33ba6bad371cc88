"""What changed between versions of the default operator set, one adapter for each change.

An adapter gets a node as a `Call` in the meaning of one version and returns it in that of the next.
Operators that are not listed mean the same in all versions from 1 to 28, apart from taking more
types and having more attributes with neutral defaults.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from aigcc.passes.opsets.call import (
    Adapter,
    Blocked,
    Call,
    Operand,
    call,
    constant,
    data,
    dims,
    integers,
    to_inputs,
)
from aigcc.passes.opsets.early import EARLY


def _from_input(name: str) -> Adapter:
    """The second input, if it is constant, becomes an attribute of integers."""

    def adapter(old: Call, node: ir.Node) -> Call:
        array = None if len(old.inputs) < 2 or old.inputs[1] is None else constant(old, 1)
        if array is None or not array.size:
            if old.number("noop_with_empty_axes", 0):
                raise Blocked("reduces nothing when it has no axes")
            return old.replace(drop=["noop_with_empty_axes"]).give(old.inputs[0])
        drop = ["noop_with_empty_axes"]
        return old.replace(drop=drop, **{name: array.tolist()}).give(old.inputs[0])

    return adapter


def _one_output(old: Call, node: ir.Node) -> Call:
    if len(node.outputs) > 1:
        raise Blocked("has outputs for training")
    return old


def _half_pixel_outside(old: Call, node: ir.Node) -> Call:
    return old.replace(coordinate_transformation_mode="output_half_pixel")


def _was_half_pixel_outside(old: Call, node: ir.Node) -> Call:
    name = "coordinate_transformation_mode"
    if old.text(name, "half_pixel") != "output_half_pixel":
        raise Blocked("maps half pixels inside")
    return old.replace(drop=[name])


def _count_outputs(old: Call, node: ir.Node) -> Call:
    if len(old.inputs) > 1 and old.inputs[1] is not None:
        return old
    return old.replace(num_outputs=len(node.outputs))


def _uncount_outputs(old: Call, node: ir.Node) -> Call:
    count, shape = old.number("num_outputs", 0), data(node).shape
    if not count:
        return old
    axis = old.number("axis", 0)
    size = shape[axis] if shape is not None else None
    part = -(-size // count) if isinstance(size, int) else None
    if part is None or not isinstance(size, int):
        raise Blocked("splits a dim of unknown size")
    sizes = [*[part] * (count - 1), size - part * (count - 1)]
    return old.replace(drop=["num_outputs"]).give(old.inputs[0], integers(sizes))


_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def _grid_mode(old: Call, node: ir.Node) -> Call:
    mode = old.text("mode", "bilinear")
    return old.replace(mode=_GRID_MODES.get(mode, mode))


def _old_grid_mode(old: Call, node: ir.Node) -> Call:
    shape, mode = data(node).shape, old.text("mode", "linear")
    if shape is None or len(shape) != 4:
        raise Blocked("does not sample images")
    back = {new: name for name, new in _GRID_MODES.items()}
    return old.replace(mode=back.get(mode, mode))


def _dft_axis(old: Call, node: ir.Node) -> Call:
    length = old.inputs[1] if len(old.inputs) > 1 else None
    axis = np.array(old.number("axis", 1), np.int64)
    return old.replace(drop=["axis"]).give(old.inputs[0], length, axis)


def _dft_attribute(old: Call, node: ir.Node) -> Call:
    axis = constant(old, 2).item() if len(old.inputs) > 2 and old.inputs[2] is not None else -2
    shape = data(node).shape
    if axis < 0:
        if shape is None:
            raise Blocked("counts its axis from the end, and the rank is not known")
        axis += len(shape)
    inputs = old.inputs[:2]
    return old.replace(axis=axis).give(*inputs[: 2 if inputs[-1] is not None else 1])


def _whole_shape(old: Call, node: ir.Node) -> Call:
    start, end = old.known("start"), old.known("end")
    first = 0 if start is None else start.as_int()
    if not first and end is None:
        return old.replace(drop=["start"])
    last = np.iinfo(np.int64).max if end is None else end.as_int()
    whole = Call("Shape", old.inputs)
    return call("Slice", whole, integers([first]), integers([last]))


def _no_zeros(old: Call, node: ir.Node) -> Call:
    if old.number("allowzero", 0) and not constant(old, 1).all():
        raise Blocked("makes a dim of size zero")
    return old.replace(drop=["allowzero"])


def _no_wrap(old: Call, node: ir.Node) -> Call:
    if old.text("mode", "constant") == "wrap":
        raise Blocked("wraps around")
    return old


def _not_symmetric(old: Call, node: ir.Node) -> Call:
    if old.text("coordinate_transformation_mode", "half_pixel") == "half_pixel_symmetric":
        raise Blocked("maps half pixels symmetrically")
    return old


def _undilated(old: Call, node: ir.Node) -> Call:
    if set(old.numbers("dilations") or []) - {1}:
        raise Blocked("is dilated")
    return old.replace(drop=["dilations"])


def _adds_or_multiplies(old: Call, node: ir.Node) -> Call:
    if old.text("reduction", "none") in ("min", "max"):
        raise Blocked("scatters a minimum or maximum")
    return old


def _typed_by_zero_point(old: Call, node: ir.Node) -> Call:
    if old.number("output_dtype", 0) and (len(old.inputs) < 3 or old.inputs[2] is None):
        raise Blocked("has no zero point to tell its type")
    return old.replace(drop=["output_dtype"])


def _scales_of_channels(old: Call, node: ir.Node) -> Call:
    """Before opset 21 a GroupNormalization had one scale and one bias for each group."""
    x, *parameters = old.inputs
    groups, channels = old.number("num_groups", 1), dims(x)[1]
    if channels == groups:
        return old
    sizes: Operand = integers([1, channels // groups]) if isinstance(channels, int) else None
    if sizes is None:
        count = call("Slice", call("Shape", x), integers([1]), integers([2]))
        sizes = call("Concat", integers([1]), call("Div", count, integers([groups])), axis=0)
    repeated = (
        call(
            "Reshape", call("Expand", call("Reshape", p, integers([-1, 1])), sizes), integers([-1])
        )
        for p in parameters
    )
    return old.give(x, *repeated)


def _scaled_by_channels(old: Call, node: ir.Node) -> Call:
    raise Blocked("has a scale for each channel")


_REDUCES = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)

RAISE: Mapping[int, Mapping[str, Adapter]] = {
    **EARLY,
    14: {"BatchNormalization": _one_output},
    16: {"RoiAlign": _half_pixel_outside},
    18: {"Split": _count_outputs, **dict.fromkeys(_REDUCES, to_inputs("axes"))},
    20: {"DFT": _dft_axis, "GridSample": _grid_mode},
    21: {"GroupNormalization": _scales_of_channels},
}
"""Version -> operator -> how to say in it what the version before said."""

LOWER: Mapping[int, Mapping[str, Adapter]] = {
    21: {"GroupNormalization": _scaled_by_channels, "QuantizeLinear": _typed_by_zero_point},
    20: {"DFT": _dft_attribute, "GridSample": _old_grid_mode},
    19: {"AveragePool": _undilated, "Pad": _no_wrap, "Resize": _not_symmetric},
    18: {
        "LpPool": _undilated,
        "ScatterElements": _adds_or_multiplies,
        "ScatterND": _adds_or_multiplies,
        "Split": _uncount_outputs,
        **dict.fromkeys(_REDUCES, _from_input("axes")),
    },
    16: {"RoiAlign": _was_half_pixel_outside},
    15: {"Shape": _whole_shape},
    14: {"Reshape": _no_zeros},
}
"""Version -> operator -> how to say in the version before what it says."""

LOWEST, HIGHEST = 1, 28
"""The versions that models are converted from and to."""

LOWEST_RESULT = 13
"""The lowest version that models are lowered to."""

"""What changed up to opset 12, when much that is an input now was an attribute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from aigcc.passes.opsets.call import (
    Adapter,
    Blocked,
    Call,
    call,
    constant,
    data,
    dims,
    dtype_of,
    integers,
    is_used,
    to_inputs,
)


def _split_attribute(old: Call, node: ir.Node) -> Call:
    if len(old.inputs) < 2 or old.inputs[1] is None:
        return old
    return old.replace(split=[int(size) for size in constant(old, 1)]).give(old.inputs[0])


def _paddings(old: Call, node: ir.Node) -> Call:
    return old.replace(drop=["paddings"], pads=old.numbers("paddings") or [])


def _whole_power(old: Call, node: ir.Node) -> Call:
    power = old.known("p")
    return old if power is None else old.replace(p=int(power.as_float()))


def _concat_axis(old: Call, node: ir.Node) -> Call:
    return old.replace(axis=old.number("axis", 1))


def _cast_to(old: Call, node: ir.Node) -> Call:
    return old.replace(to=int(ir.DataType[old.text("to", "FLOAT").upper()]))


def _selu(old: Call, node: ir.Node) -> Call:
    """The numbers had fewer digits."""
    alpha, gamma = (old.known(name) for name in ("alpha", "gamma"))
    return old.replace(
        alpha=1.6732 if alpha is None else alpha.as_float(),
        gamma=1.0507 if gamma is None else gamma.as_float(),
    )


def _tile(old: Call, node: ir.Node) -> Call:
    repeats = [1] * len(dims(old.inputs[0]))
    repeats[int(constant(old, 2).item())] = int(constant(old, 1).item())
    return old.give(old.inputs[0], integers(repeats))


def _broadcast(old: Call, node: ir.Node) -> Call:
    """The second operand lay along the first from `axis` on; now it gets dims of 1 behind it."""
    axis, (a, b) = old.known("axis"), old.inputs
    plain = old.replace(drop=["broadcast", "axis"])
    if not old.number("broadcast", 0) or axis is None:
        return plain
    rank, own = len(dims(a)), len(dims(b))
    behind = rank - axis.as_int() % rank - own
    if behind <= 0:
        return plain
    return plain.give(a, call("Reshape", b, integers([*[0] * own, *[1] * behind])))


def _slope_of_channels(old: Call, node: ir.Node) -> Call:
    x, slope = old.inputs
    shape, behind = dims(slope), len(dims(x)) - 2
    if len(shape) != 1 or shape[0] == 1 or behind <= 0:
        return old
    return old.give(x, call("Reshape", slope, integers([-1, *[1] * behind])))


def _tested(old: Call, node: ir.Node) -> Call:
    if not old.number("is_test", 0):
        raise Blocked("does not say that it is a test, and not training")
    return old.replace(drop=["is_test"])


def _dropped(*names: str) -> Adapter:
    return lambda old, node: old.replace(drop=names)


def _upsample_images(old: Call, node: ir.Node) -> Call:
    sizes = [old.known(name) for name in ("height_scale", "width_scale")]
    scales = [1.0, 1.0, *(size.as_float() for size in sizes if size is not None)]
    return old.replace(drop=["height_scale", "width_scale"], scales=scales)


def _batched(old: Call, node: ir.Node) -> Call:
    raise Blocked("of opset 8 has a batch")


def _no_mask(old: Call, node: ir.Node) -> Call:
    """A mask was of the type of the data before opset 10, and False up to 11 where it is True."""
    if is_used(node, 1):
        raise Blocked("has a mask that is another one")
    return old.replace(drop=["ratio"])


def _spatial(old: Call, node: ir.Node) -> Call:
    if old.number("spatial", 1) != 1:
        raise Blocked("is not spatial")
    return old.replace(drop=["spatial"])


def _upsample_scales(old: Call, node: ir.Node) -> Call:
    scales = old.known("scales")
    assert scales is not None
    return old.replace(drop=["scales"]).give(
        old.inputs[0], np.array(scales.as_floats(), np.float32)
    )


def _upsample_to_resize(old: Call, node: ir.Node) -> Call:
    return Call("Resize", old.inputs, old.attributes)


def _resize_as_it_was(old: Call, node: ir.Node) -> Call:
    """Resize-10 maps coordinates by the scale alone; nearest cuts down, or up where it shrinks."""
    scales = constant(old, 1)
    if (scales > 1).any() and (scales < 1).any():
        raise Blocked("enlarges one dim and shrinks another")
    made = old.replace(
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil" if (scales < 1).any() else "floor",
    )
    return made.give(old.inputs[0], None, old.inputs[1])


def _topk(old: Call, node: ir.Node) -> Call:
    return old.replace(drop=["k"]).give(old.inputs[0], integers([old.number("k", 0)]))


def _clip(old: Call, node: ir.Node) -> Call:
    bounds = [old.known(name) for name in ("min", "max")]
    given = [None if b is None else np.array(b.as_float(), dtype_of(node)) for b in bounds]
    while given and given[-1] is None:
        given.pop()
    return old.replace(drop=["min", "max"]).give(old.inputs[0], *given)


def _pad(old: Call, node: ir.Node) -> Call:
    value, pads = old.known("value"), old.numbers("pads") or []
    given = [] if value is None else [np.array(value.as_float(), dtype_of(node))]
    return old.replace(drop=["pads", "value"]).give(old.inputs[0], integers(pads), *given)


def _known_modes(old: Call, node: ir.Node) -> Call:
    """Up to opset 12 Resize had a mode that it does not have since."""
    if old.text("coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn":
        raise Blocked("maps half pixels as TensorFlow did for nearest neighbours")
    return old


def _scatter(old: Call, node: ir.Node) -> Call:
    return Call("ScatterElements", old.inputs, old.attributes)


def _flattened(old: Call, node: ir.Node) -> Call:
    """Softmax and its kin saw a matrix, with the dims before `axis` as rows."""
    axis, shape = old.number("axis", 1), data(node).shape
    last = old.replace(axis=-1)
    if axis == -1 or (shape is not None and axis % len(shape) == len(shape) - 1):
        return last
    x = old.inputs[0]
    matrix = last.give(call("Flatten", x, axis=axis))
    return call("Reshape", matrix, call("Shape", x))


_BROADCASTING = (
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "Less",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Xor",
)

EARLY: Mapping[int, Mapping[str, Adapter]] = {
    2: {
        "GlobalLpPool": _whole_power,
        "LpPool": _whole_power,
        "Pad": _paddings,
        "Split": _split_attribute,
    },
    4: {"Concat": _concat_axis},
    5: {"Reshape": to_inputs("shape")},
    6: {"Cast": _cast_to, "Selu": _selu, "Tile": _tile},
    7: {
        **dict.fromkeys(_BROADCASTING, _broadcast),
        **dict.fromkeys(("GRU", "LSTM", "RNN"), _dropped("output_sequence")),
        "BatchNormalization": _tested,
        "Dropout": _tested,
        "Gemm": _dropped("broadcast"),
        "PRelu": _slope_of_channels,
        "Upsample": _upsample_images,
    },
    9: {"BatchNormalization": _spatial, "Scan": _batched, "Upsample": _upsample_scales},
    10: {
        "Dropout": _no_mask,
        "Slice": to_inputs("starts", "ends", "axes"),
        "TopK": _topk,
        "Upsample": _upsample_to_resize,
    },
    11: {"Clip": _clip, "Pad": _pad, "Resize": _resize_as_it_was, "Scatter": _scatter},
    12: {"Dropout": _no_mask},
    13: {
        "Hardmax": _flattened,
        "LogSoftmax": _flattened,
        "ReduceSum": to_inputs("axes"),
        "Resize": _known_modes,
        "Softmax": _flattened,
        "Split": to_inputs("split"),
        "Squeeze": to_inputs("axes"),
        "Unsqueeze": to_inputs("axes"),
    },
}
"""Version -> operator -> how to say in it what the version before said."""

"""What changed between versions of the default operator set, one adapter for each change.

An adapter gets a node as a `Call` in the meaning of one version and returns it in that of the next.
Operators that are not listed mean the same in all versions from 8 to 26, apart from taking more
types and having more attributes with neutral defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from aigcc.ir.weights import read


@dataclasses.dataclass(frozen=True)
class Call:
    """An operator on inputs: values, arrays that become constants, other calls, or absent ones."""

    op_type: str
    inputs: tuple[ir.Value | np.ndarray | Call | None, ...]
    attributes: Mapping[str, ir.Attr] = dataclasses.field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.known(name)
        return default if attribute is None else attribute.as_int()

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.known(name)
        return default if attribute is None else attribute.as_string()

    def numbers(self, name: str) -> list[int] | None:
        """An attribute of integers, None where it is absent."""
        attribute = self.known(name)
        return None if attribute is None else list(attribute.as_ints())

    def known(self, name: str) -> ir.Attr | None:
        """An attribute, None where it is absent.

        Raises:
            Blocked: it is a parameter of the function that the node is in.
        """
        attribute = self.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            raise Blocked(f"its attribute {name} is a parameter of the function")
        return attribute

    def replace(self, *, drop: Sequence[str] = (), **attributes: Any) -> Call:
        """The same call without some attributes and with others."""
        kept = {name: a for name, a in self.attributes.items() if name not in drop}
        made = ir.convenience.convert_attributes(attributes)
        return dataclasses.replace(self, attributes={**kept, **{a.name: a for a in made}})

    def give(self, *inputs: ir.Value | np.ndarray | Call | None) -> Call:
        """The same call on other inputs."""
        return dataclasses.replace(self, inputs=inputs)


class Blocked(Exception):
    """A node that means nothing in the other version; the sentence goes on after its name."""


Adapter = Callable[[Call, ir.Node], Call]


def call(op_type: str, *inputs: ir.Value | np.ndarray | Call | None, **attributes: Any) -> Call:
    """A call with attributes given as numbers, strings and lists."""
    return Call(op_type, inputs).replace(**attributes)


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _dtype(node: ir.Node) -> np.dtype[Any]:
    dtype = _data(node).dtype
    if dtype is None:
        raise Blocked("the type of its input is not known: run infer-shapes first")
    return dtype.numpy()


def _to_inputs(*names: str) -> Adapter:
    """Attributes of integers become inputs of the same order, behind the first one."""

    def adapter(old: Call, node: ir.Node) -> Call:
        arrays = [old.numbers(name) for name in names]
        while arrays and arrays[-1] is None:
            arrays.pop()
        given = [None if array is None else _integers(array) for array in arrays]
        return old.replace(drop=names).give(old.inputs[0], *given)

    return adapter


def _from_input(name: str, *, drop: Sequence[str] = ()) -> Adapter:
    """The second input, if it is constant, becomes an attribute of integers."""

    def adapter(old: Call, node: ir.Node) -> Call:
        if len(old.inputs) < 2 or old.inputs[1] is None:
            if old.number("noop_with_empty_axes", 0):
                raise Blocked("reduces nothing when it has no axes")
            return old.replace(drop=drop)
        array = _constant(old, 1)
        return old.replace(drop=drop, **{name: array.tolist()}).give(old.inputs[0])

    return adapter


def _constant(old: Call, place: int) -> np.ndarray:
    given = old.inputs[place]
    array = given if isinstance(given, np.ndarray) else None
    if isinstance(given, ir.Value):
        array = read(given)
    if array is None:
        raise Blocked(f"computes its input {place}, which must be an attribute there")
    return array


def _spatial(old: Call, node: ir.Node) -> Call:
    if old.number("spatial", 1) != 1:
        raise Blocked("is not spatial")
    return old.replace(drop=["spatial"])


def _one_output(old: Call, node: ir.Node) -> Call:
    if len(node.outputs) > 1:
        raise Blocked("has outputs for training")
    return old


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
    scales = _constant(old, 1)
    if (scales > 1).any() and (scales < 1).any():
        raise Blocked("enlarges one dim and shrinks another")
    made = old.replace(
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil" if (scales < 1).any() else "floor",
    )
    return made.give(old.inputs[0], None, old.inputs[1])


def _topk(old: Call, node: ir.Node) -> Call:
    return old.replace(drop=["k"]).give(old.inputs[0], _integers([old.number("k", 0)]))


def _clip(old: Call, node: ir.Node) -> Call:
    bounds = [old.known(name) for name in ("min", "max")]
    given = [None if b is None else np.array(b.as_float(), _dtype(node)) for b in bounds]
    while given and given[-1] is None:
        given.pop()
    return old.replace(drop=["min", "max"]).give(old.inputs[0], *given)


def _pad(old: Call, node: ir.Node) -> Call:
    value, pads = old.known("value"), old.numbers("pads") or []
    given = [] if value is None else [np.array(value.as_float(), _dtype(node))]
    return old.replace(drop=["pads", "value"]).give(old.inputs[0], _integers(pads), *given)


def _scatter(old: Call, node: ir.Node) -> Call:
    return Call("ScatterElements", old.inputs, old.attributes)


def _flattened(old: Call, node: ir.Node) -> Call:
    """Softmax and its kin saw a matrix, with the dims before `axis` as rows."""
    axis, shape = old.number("axis", 1), _data(node).shape
    last = old.replace(axis=-1)
    if axis == -1 or (shape is not None and axis % len(shape) == len(shape) - 1):
        return last
    x = old.inputs[0]
    matrix = last.give(call("Flatten", x, axis=axis))
    return call("Reshape", matrix, call("Shape", x))


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
    count, shape = old.number("num_outputs", 0), _data(node).shape
    if not count:
        return old
    axis = old.number("axis", 0)
    size = shape[axis] if shape is not None else None
    part = -(-size // count) if isinstance(size, int) else None
    if part is None or not isinstance(size, int):
        raise Blocked("splits a dim of unknown size")
    sizes = [*[part] * (count - 1), size - part * (count - 1)]
    return old.replace(drop=["num_outputs"]).give(old.inputs[0], _integers(sizes))


_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def _grid_mode(old: Call, node: ir.Node) -> Call:
    mode = old.text("mode", "bilinear")
    return old.replace(mode=_GRID_MODES.get(mode, mode))


def _old_grid_mode(old: Call, node: ir.Node) -> Call:
    shape, mode = _data(node).shape, old.text("mode", "linear")
    if shape is None or len(shape) != 4:
        raise Blocked("does not sample images")
    back = {new: name for name, new in _GRID_MODES.items()}
    return old.replace(mode=back.get(mode, mode))


def _dft_axis(old: Call, node: ir.Node) -> Call:
    length = old.inputs[1] if len(old.inputs) > 1 else None
    axis = np.array(old.number("axis", 1), np.int64)
    return old.replace(drop=["axis"]).give(old.inputs[0], length, axis)


def _dft_attribute(old: Call, node: ir.Node) -> Call:
    axis = _constant(old, 2).item() if len(old.inputs) > 2 and old.inputs[2] is not None else -2
    shape = _data(node).shape
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
    return call("Slice", whole, _integers([first]), _integers([last]))


def _no_zeros(old: Call, node: ir.Node) -> Call:
    if old.number("allowzero", 0) and not _constant(old, 1).all():
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
    9: {"BatchNormalization": _spatial, "Upsample": _upsample_scales},
    10: {
        "Dropout": _one_output,
        "Slice": _to_inputs("starts", "ends", "axes"),
        "TopK": _topk,
        "Upsample": _upsample_to_resize,
    },
    11: {"Clip": _clip, "Pad": _pad, "Resize": _resize_as_it_was, "Scatter": _scatter},
    12: {"Dropout": lambda old, node: old.replace(drop=["ratio"])},
    13: {
        "Hardmax": _flattened,
        "LogSoftmax": _flattened,
        "ReduceSum": _to_inputs("axes"),
        "Softmax": _flattened,
        "Split": _to_inputs("split"),
        "Squeeze": _to_inputs("axes"),
        "Unsqueeze": _to_inputs("axes"),
    },
    14: {"BatchNormalization": _one_output},
    16: {"RoiAlign": _half_pixel_outside},
    18: {"Split": _count_outputs, **dict.fromkeys(_REDUCES, _to_inputs("axes"))},
    20: {"DFT": _dft_axis, "GridSample": _grid_mode},
}
"""Version -> operator -> how to say in it what the version before said."""

LOWER: Mapping[int, Mapping[str, Adapter]] = {
    21: {"QuantizeLinear": _typed_by_zero_point},
    20: {"DFT": _dft_attribute, "GridSample": _old_grid_mode},
    19: {"AveragePool": _undilated, "Pad": _no_wrap, "Resize": _not_symmetric},
    18: {
        "LpPool": _undilated,
        "ScatterElements": _adds_or_multiplies,
        "ScatterND": _adds_or_multiplies,
        "Split": _uncount_outputs,
        **dict.fromkeys(_REDUCES, _from_input("axes", drop=["noop_with_empty_axes"])),
    },
    16: {"RoiAlign": _was_half_pixel_outside},
    15: {"Shape": _whole_shape},
    14: {"Reshape": _no_zeros},
}
"""Version -> operator -> how to say in the version before what it says."""

LOWEST, HIGHEST = 8, 26
"""The versions that models are converted from and to."""

LOWEST_RESULT = 13
"""The lowest version that models are lowered to."""

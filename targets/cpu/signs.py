"""Signed numbers beside a Concat, which OpenVINO clips at 0 where it has no signed convolutions.

Without VNNI its convolutions take uint8, and it makes int8 activations unsigned. Where the range
that they are rounded to is moved through a Concat, it forgets to add 128: what is negative becomes
0. Where a Concat joins signed numbers with unsigned ones, convolutions are wrong on all processors.
The same numbers in uint8, each 128 higher, beside a zero point that is 128 higher, are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_HALF = 128

# What OpenVINO moves such a range through, and what Q/DQ are made of.
_PASSED = frozenset(
    {
        "Clamp",
        "Concat",
        "Convert",
        "DepthToSpace",
        "FakeQuantize",
        "Interpolate",
        "MaxPool",
        "Multiply",
        "Pad",
        "Relu",
        "Reshape",
        "ShuffleChannels",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "StridedSlice",
        "Subtract",
        "Transpose",
        "Unsqueeze",
        "VariadicSplit",
    }
)


def mend_signs(op: Any) -> None:
    """Make activations unsigned that are joined by a Concat and convolved behind it."""
    below = _reached([op], _users)
    if not any(reached.get_type_name() == "Convolution" for reached in below):
        return
    for reached in {r.get_name(): r for r in [*below, *_reached([op], _makers)]}.values():
        if reached.get_type_name() == "FakeQuantize":
            _make_unsigned(reached)


def _reached(ops: Iterable[Any], ways: Callable[[Any], list[Any]]) -> list[Any]:
    """All that is reached from some ops without passing others than `_PASSED`."""
    waiting, found = list(ops), {}
    while waiting:
        for op in ways(waiting.pop()):
            if op.get_name() not in found:
                found[op.get_name()] = op
                if op.get_type_name() in _PASSED:
                    waiting.append(op)
    return list(found.values())


def _users(op: Any) -> list[Any]:
    return [use.get_node() for output in op.outputs() for use in output.get_target_inputs()]


def _makers(op: Any) -> list[Any]:
    return [value.get_node() for value in op.input_values()]


def _make_unsigned(rounded: Any) -> None:
    """Numbers and zero points of an int8 activation, 128 higher and in uint8."""
    from openvino import opset13

    narrowed = _users(rounded)
    limits = [rounded.input_value(place).get_node() for place in (3, 4)]
    widened = [user for op in narrowed for user in _users(op)]
    if not (
        all(_is_convert(op, "i8") for op in narrowed)
        and all(_is_convert(op, "f32") for op in widened)
        and all(limit.get_type_name() == "Constant" for limit in limits)
    ):
        return
    for place, limit in zip((3, 4), limits, strict=True):
        moved = opset13.constant(np.asarray(limit.get_data() + np.float32(_HALF)))
        rounded.input(place).replace_source_output(moved.output(0))
    for old in narrowed:
        users = list(old.output(0).get_target_inputs())
        new = opset13.convert(rounded, "u8")
        for user in users:
            user.replace_source_output(new.output(0))
        new.set_friendly_name(old.get_friendly_name())
    for op in widened:
        _raise_zero(op)


def _raise_zero(widened: Any) -> None:
    """Subtract 128 more of numbers that are 128 higher."""
    from openvino import opset13

    users = list(widened.output(0).get_target_inputs())
    plain = []
    for use in users:
        node = use.get_node()
        zero = _signed_zero(node.input_value(1).get_node()) if _subtracts(use) else None
        if zero is None:
            plain.append(use)
        else:
            raised = opset13.convert(_unsigned(zero), "f32")
            node.input(1).replace_source_output(raised.output(0))
    if plain:
        less = opset13.subtract(widened, opset13.convert(_unsigned(np.zeros((), np.int8)), "f32"))
        for use in plain:
            use.replace_source_output(less.output(0))


def _is_convert(op: Any, kind: str) -> bool:
    made = op.get_output_element_type(0).get_type_name() if op.get_output_size() else ""
    return op.get_type_name() == "Convert" and bool(made == kind)


def _subtracts(use: Any) -> bool:
    return bool(use.get_node().get_type_name() == "Subtract" and use.get_index() == 0)


def _signed_zero(op: Any) -> np.ndarray | None:
    """The int8 zero point, which is read as a float."""
    read = op.input_value(0).get_node() if _is_convert(op, "f32") else op
    kind = read.get_output_element_type(0).get_type_name()
    if read.get_type_name() != "Constant" or kind != "i8":
        return None
    return np.asarray(read.get_data())


def _unsigned(zero: np.ndarray) -> Any:
    from openvino import opset13

    return opset13.constant((zero.astype(np.int16) + _HALF).astype(np.uint8))

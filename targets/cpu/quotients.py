"""Whole numbers of quotients, which OpenVINO takes of x * (1 / s) and not of x / s."""

from __future__ import annotations

from typing import Any

import numpy as np

# Quotients up to here are told apart by FloorMod; beyond, float32 has no halves left to miss.
_FAR = float(1 << 21)
_FLOAT = float(np.finfo(np.float32).max)
_WHOLE = frozenset({"i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"})


def mend_quotient(op: Any) -> None:
    """Floor, Ceiling, Round or Convert of x / s, where the quotient has to be exact.

    49 * (1 / 49) is below 1 in float32, and its floor is 0. FloorMod divides as it should: with
    r = FloorMod(x, s), x - r is floor(x / s) * s.
    """
    division = op.input_value(0).get_node()
    is_float = division.get_output_element_type(0).get_type_name() == "f32"
    if division.get_type_name() != "Divide" or not is_float:
        return
    make = _MAKERS.get(op.get_type_name())
    facts = op.get_attributes()
    if make is None and op.get_output_element_type(0).get_type_name() in _WHOLE:
        make = _truncated
    if make is None or facts.get("mode", "half_to_even") != "half_to_even":
        return
    from openvino import opset13

    x, s = division.input_value(0), division.input_value(1)
    near = opset13.less(opset13.absolute(division.output(0)), _number(_FAR))
    is_finite = opset13.less_equal(opset13.absolute(s), _number(_FLOAT))
    exact = make(x, s)
    if op.get_type_name() == "Convert":
        right = opset13.select(opset13.logical_and(near, is_finite), exact, division.output(0))
        op.input(0).replace_source_output(right.output(0))
        return
    result = op.output(0)
    users, names = list(result.get_target_inputs()), result.get_names()
    right = opset13.select(opset13.logical_and(near, is_finite), exact, result)
    for user in users:
        user.replace_source_output(right.output(0))
    result.get_tensor().set_names(set())
    right.output(0).get_tensor().set_names(names)


def fold_quotient(op: Any) -> None:
    """A quotient of constants, which OpenVINO would compute as a product too."""
    from openvino import opset13

    x, s = (op.input_value(index).get_node() for index in range(2))
    is_float = op.get_output_element_type(0).get_type_name() == "f32"
    if not is_float or {x.get_type_name(), s.get_type_name()} != {"Constant"}:
        return
    with np.errstate(all="ignore"):
        folded = opset13.constant(np.asarray(x.get_data() / s.get_data()))
    folded.set_friendly_name(op.get_friendly_name())
    op.output(0).replace(folded.output(0))


def _number(value: float) -> Any:
    from openvino import opset13

    return opset13.constant(np.float32(value))


def _floor(x: Any, s: Any) -> Any:
    from openvino import opset13

    multiple = opset13.subtract(x, opset13.floor_mod(x, s))
    return opset13.round(opset13.divide(multiple, s))


def _ceiling(x: Any, s: Any) -> Any:
    from openvino import opset13

    return opset13.negative(_floor(opset13.negative(x), s))


def _truncated(x: Any, s: Any) -> Any:
    from openvino import opset13

    low, high = _floor(x, s), _ceiling(x, s)
    return opset13.select(opset13.less(low, _number(0)), high, low)


def _rounded(x: Any, s: Any) -> Any:
    """The floor of two quotients and its ceiling are one number where that is whole: a tie.

    Else half of their mean is a quarter beside what is looked for.
    """
    from openvino import opset13

    twice = opset13.multiply(x, _number(2))
    sides = opset13.add(_floor(twice, s), _ceiling(twice, s))
    return opset13.round(opset13.multiply(sides, _number(0.25)))


_MAKERS = {"Ceiling": _ceiling, "Floor": _floor, "Round": _rounded}
